"""Contenders that do the same work, timed in turns so that a slow moment hits all of them."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

Contender = Callable[[int], object]
"""Does the i-th piece of work of a pool; every contender's i-th piece is the same."""

OURS = "recengine"


@dataclasses.dataclass(frozen=True)
class Times:
    """Milliseconds of a call, over all rounds: the median and the quartiles."""

    median: float
    quartiles: tuple[float, float]


def race(
    contenders: Mapping[str, Contender], pool: int, rounds: int, seconds: float
) -> dict[str, Times]:
    """Times calls over a pool of work, `seconds` each and round, in random order.

    The first call of each turn is not counted.
    """
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in order.sample(list(contenders), len(contenders)):
            run, times = contenders[name], taken[name]
            end, call = time.perf_counter() + seconds, 0
            while call < 2 or time.perf_counter() < end:
                start = time.perf_counter()
                run(call % pool)
                if call > 0:
                    times.append(time.perf_counter() - start)
                call += 1
    return {name: _summary(times) for name, times in taken.items()}


def best_peer(times: Mapping[str, Times]) -> str:
    """The fastest contender that is not ours."""
    peers = [name for name in times if not name.startswith(OURS)]
    return min(peers, key=lambda name: times[name].median)


def plot_ratios(path: Path, labels: Sequence[str], ratios: Sequence[float], title: str) -> None:
    """One bar a case: the best peer's time over ours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.28 * len(labels)), layout="constrained")
    positions = range(len(labels))
    bars = axes.barh(positions, ratios, color=["#4878a8" if r >= 1 else "#c44e52" for r in ratios])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(positions, labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of the best peer ÷ time of recengine")
    axes.set_title(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _summary(times: Sequence[float]) -> Times:
    low, median, high = 1e3 * np.percentile(times, [25, 50, 75])
    return Times(float(median), (float(low), float(high)))
