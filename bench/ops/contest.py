"""Contenders that do the same work, timed in turns so that a slow moment hits all of them.

And what the benches of the ops share: their arguments, and how a result is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.ops.limits import Limits
from recengine import ops
from recengine.serving.bench.commands import provenance
from recengine.serving.bench.machine import machine_name
from recengine.serving.bench.report import Bar, write_result

Contender = Callable[[int], object]
"""Does the i-th piece of work of a pool; every contender's i-th piece is the same."""

OURS = "recengine"
SECONDS_OF_ONE_TURN = 5.0


class Times(NamedTuple):
    """Milliseconds of a call: 25, 50 and 75 % quantiles."""

    low: float
    median: float
    high: float


def quartiles(seconds: Sequence[float]) -> Times:
    """Of calls."""
    return Times(*(1e3 * np.percentile(seconds, [25, 50, 75])).tolist())


def times_json(times: Mapping[str, Times]) -> dict[str, Any]:
    """As JSON values, with the best peer, if there is one, and its time over ours."""
    ms = {name: value.median for name, value in times.items()}
    best = min((name for name in ms if name != OURS), key=lambda name: ms[name], default=None)
    return {
        "ms": ms,
        "quartiles_ms": {name: (value.low, value.high) for name, value in times.items()},
        "best_peer": best,
        "ratio": None if best is None else ms[best] / ms[OURS],
    }


def spread(point: Mapping[str, Any], scale: float = 1.0, digits: int = 2) -> str:
    """Our 25 and 75 % quantiles of `times_json`, times `scale`, as one cell of a table."""
    low, high = point["quartiles_ms"][OURS]
    return f"{scale * low:.{digits}f}–{scale * high:.{digits}f}"


def peers_ahead(ratios: Mapping[str, float], kinds: str = "") -> str:
    """In which cases a peer is faster, in one sentence.

    Args:
        ratios: the best peer's time over ours, by case.
        kinds: of cases, in words behind their number.
    """
    behind = [f"{name} ({ratio:.3g})" for name, ratio in ratios.items() if ratio < 1]
    if not behind:
        return f"No peer is faster in any of the {len(ratios)} cases{kinds}."
    return (
        f"A peer is faster in {len(behind)} of the {len(ratios)} cases{kinds} (its time over "
        f"ours): {'; '.join(behind)}."
    )


def race(
    contenders: Mapping[str, Contender],
    pool: int,
    rounds: int,
    seconds: float,
    known: Mapping[str, float] | None = None,
) -> dict[str, Times]:
    """Times calls over a pool of work, `seconds` each and round, in random order.

    The first call of each turn is not counted, unless it takes all of it; who takes longer than
    SECONDS_OF_ONE_TURN has only one.

    Args:
        contenders: by name.
        pool: pieces of work.
        rounds: turns of each.
        seconds: of a turn.
        known: seconds of a call before the race, by contender; a slow one's is its only one.
    """
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for name, took in (known or {}).items():
        if took > SECONDS_OF_ONE_TURN:
            taken[name].append(took)
    for _ in range(rounds):
        for name in order.sample(list(contenders), len(contenders)):
            run, times = contenders[name], taken[name]
            if times and times[0] > SECONDS_OF_ONE_TURN:
                continue
            end, call = time.perf_counter() + seconds, 0
            while not times or time.perf_counter() < end:
                start = time.perf_counter()
                run(call % pool)
                took = time.perf_counter() - start
                if call > 0 or took > seconds:
                    times.append(took)
                call += 1
    return {name: quartiles(times) for name, times in taken.items()}


def parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments that every bench of an op takes."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument(
        "--quick", action="store_true", help="a tenth of the rows, short turns; writes nothing"
    )
    made.add_argument("--work", type=Path, default=Path("build/bench"))
    made.add_argument("--out", type=Path, default=Path("bench/results"))
    made.set_defaults(started=time.monotonic())
    return made


def publish(
    arguments: argparse.Namespace,
    name: str,
    title: str,
    limits: Limits,
    packages: tuple[str, ...],
    measured: Mapping[str, Any],
    text: Sequence[str],
    ratios: Mapping[str, float],
    bars: Sequence[Bar],
) -> None:
    """Writes <name>-<machine>.{json,md,png}; prints the bars and what the run took.

    Args:
        arguments: of `parser`; a quick run writes nothing.
        name: of the files.
        title: of the page and the plot.
        limits: of this run.
        packages: whose versions matter.
        measured: what was measured, as JSON values.
        text: paragraphs of the page.
        ratios: the best peer's time over ours, by case.
        bars: what was promised.
    """
    minutes = (time.monotonic() - arguments.started) / 60
    took = f"Took {minutes:.1f} min."
    for line in (*bars, peers_ahead(ratios), took):
        print(line)
    if arguments.quick:
        return
    result = {
        **provenance(packages),
        "threads": ops.usable_cores(),
        "took_minutes": minutes,
        "limits": dataclasses.asdict(limits),
        **measured,
    }
    path = arguments.out / f"{name}-{machine_name()}"
    write_result(path, title, result, [*text, peers_ahead(ratios), took], bars)
    plot_ratios(path.with_suffix(".png"), ratios, title)


def plot_ratios(path: Path, ratios: Mapping[str, float], title: str) -> None:
    """One bar a case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.28 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    positions = range(len(ratios))
    colors = ["#4878a8" if ratio >= 1 else "#c44e52" for ratio in ratios.values()]
    bars = axes.barh(positions, list(ratios.values()), color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(positions, list(ratios), fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time of the best peer ÷ time of recengine")
    axes.set_title(title)
    figure.savefig(path, dpi=120)
