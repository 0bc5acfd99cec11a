"""Closed-loop load with perf_analyzer over one or more servers, round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from recengine.serving.bench.perf_analyzer import LoadPoint, Windows, measure, median_point

Series = dict[str, list[LoadPoint]]
"""Measured points by label, in order of concurrency."""


@dataclasses.dataclass(frozen=True)
class Load:
    """What is measured on a server: `label` names it in the results."""

    label: str
    model: str
    input_data: Path


@dataclasses.dataclass(frozen=True)
class Contender:
    """A server and its loads. `serve()` starts it, gives its gRPC address, and ends it on exit."""

    serve: Callable[[], AbstractContextManager[str]]
    loads: Sequence[Load]


def measure_rounds(
    contenders: Sequence[Contender],
    perf_analyzer: Path,
    concurrency: Sequence[int],
    windows: Windows,
    rounds: int,
    progress: Callable[[str], None] = print,
) -> Series:
    """Measures every load at every concurrency, `rounds` times, one server at a time.

    Contenders take turns within a round, so that a slow spell of the machine meets all of them.

    Returns:
        The median over the rounds of each number.

    Raises:
        ServerError: a server did not start, or perf_analyzer failed.
    """
    points: dict[tuple[str, int], list[LoadPoint]] = {}
    for number in range(1, rounds + 1):
        for contender in contenders:
            with contender.serve() as url:
                for load in contender.loads:
                    for level in concurrency:
                        point = measure(
                            perf_analyzer, url, load.model, load.input_data, level, windows
                        )
                        points.setdefault((load.label, level), []).append(point)
                        progress(
                            f"round {number}/{rounds}  {load.label} at {level}: "
                            f"{point.throughput:,.0f}/s, p50 {point.p50_us / 1e3:.2f} ms, "
                            f"p99 {point.p99_us / 1e3:.2f} ms"
                        )
    series: Series = {}
    for (label, _), repeated in points.items():
        series.setdefault(label, []).append(median_point(repeated))
    return series
