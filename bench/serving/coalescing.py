"""Requests that wait together are searched together: retrieval over a large catalog under load.

Closed loop with perf_analyzer at rising concurrency, beside the same model as a Python-backend
model with faiss on the same server. Both answer the same users before anything is timed. Then open
loop, each at half of what it reached.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.serving import synthetic
from bench.serving.compare import check_agreement, prepare_peer, serve_peer
from bench.serving.peer import repository as peer
from recengine.compile import compile_bundle
from recengine.ops import usable_cores
from recengine.serving.bench.closed_loop import Contender, Load, Series, measure_rounds
from recengine.serving.bench.commands import NUM_REQUESTS, served, write_serving
from recengine.serving.bench.perf_analyzer import (
    LoadPoint,
    Windows,
    find_perf_analyzer,
    measure_rate,
)
from recengine.serving.bench.report import Bar
from recengine.serving.bench.requests import draw_requests, write_input_data

CONCURRENCY = (1, 8, 32, 128)
BARS = {32: 5.0, 128: 5.0}
"""Our throughput over the peer's, by concurrency."""
CHECKED_USERS = 64


def throughput_bars(series: Series) -> list[Bar]:
    """The bars of retrieval against the peer."""
    ours, theirs = (
        {point.concurrency: point.throughput for point in series[label]}
        for label in ("retrieval", "peer retrieval")
    )
    return [
        Bar(
            f"throughput at concurrency {level}, over the peer's",
            bar,
            ours[level] / theirs[level],
            True,
        )
        for level, bar in BARS.items()
    ]


def at_half_of_saturation(
    contenders: Sequence[Contender], series: Series, windows: Windows
) -> dict[str, LoadPoint]:
    """Requests at half of each one's highest throughput, by label."""
    points = {}
    for contender in contenders:
        with contender.serve() as url:
            for load in contender.loads:
                rate = max(point.throughput for point in series[load.label]) / 2
                points[load.label] = measure_rate(
                    find_perf_analyzer(), url, load.model, load.input_data, rate, windows
                )
    return points


def half_table(points: dict[str, LoadPoint]) -> str:
    """As markdown; latencies in milliseconds."""
    lines = ["| at half of saturation | requests/s | p50 ms | p99 ms |", "|---|---:|---:|---:|"]
    for label, point in points.items():
        lines.append(
            f"| {label} | {point.throughput:,.0f} | {point.p50_us / 1e3:.2f} "
            f"| {point.p99_us / 1e3:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path("build/bench/coalescing"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--window-ms", type=int, default=2000)
    parser.add_argument("--peer-instances", type=int, default=usable_cores())
    parser.add_argument("--peer-threads", type=int, default=peer.Tuning.threads)
    arguments = parser.parse_args()
    work: Path = arguments.work
    size = synthetic.Size(items=arguments.items, candidates=100, hidden=(64, 32))
    synthetic.write(work / "bundle", size)
    with tempfile.TemporaryDirectory() as folder:
        repository = compile_bundle(work / "bundle", Path(folder) / "model_repository")
        requests = draw_requests(work / "bundle", NUM_REQUESTS, "zipf")
        data = Path(folder) / "requests.json"
        write_input_data(data, requests)
        tuning = peer.Tuning(instances=arguments.peer_instances, threads=arguments.peer_threads)
        prepare_peer(work / "peer", work / "bundle", tuning)
        ours = Contender(
            lambda: served(repository, None, None, work / "recengine.log"),
            [Load("retrieval", "retrieval", data)],
        )
        theirs = Contender(
            lambda: serve_peer(work / "peer", work / "peer.log"),
            [Load("peer retrieval", "retrieval", data)],
        )
        agreement = check_agreement(ours, theirs, requests[:CHECKED_USERS])
        windows = Windows(arguments.window_ms)
        series = measure_rounds(
            [ours, theirs], find_perf_analyzer(), CONCURRENCY, windows, arguments.rounds
        )
        half = at_half_of_saturation([ours, theirs], series, windows)
    write_serving(
        arguments.out,
        series,
        {"rounds": arguments.rounds, "window_ms": arguments.window_ms},
        {
            "peer": dataclasses.asdict(tuning),
            "agreement": dataclasses.asdict(agreement),
            "half_of_saturation": {
                label: dataclasses.asdict(point) for label, point in half.items()
            },
        },
        text=f"{size.items:,} items of {size.dim} dimensions, {size.candidates} wanted.",
        bars=throughput_bars(series),
        tables=[half_table(half)],
        name="coalescing",
    )


if __name__ == "__main__":
    main()
