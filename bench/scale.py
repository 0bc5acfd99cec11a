"""The mission's size on one machine: 100 million users and 10 million items, served.

Writes a synthetic bundle (int8 user table, dense ranges of ids, so vocabularies cost nothing),
compiles it, serves it with a real tritonserver, measures it with perf_analyzer and starts the
server once more. Needs about 11 GB of disk and of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.ops.large_catalog import require_disk
from bench.serving import synthetic
from recengine.compile import compile_bundle
from recengine.serving.bench.closed_loop import Series
from recengine.serving.bench.commands import NUM_REQUESTS, provenance
from recengine.serving.bench.machine import machine_name
from recengine.serving.bench.perf_analyzer import Windows, find_perf_analyzer, measure
from recengine.serving.bench.report import Bar, series_json, serving_table, write_result
from recengine.serving.bench.requests import draw_requests, write_input_data
from recengine.serving.server import TritonServer

T = TypeVar("T")

CONCURRENCY = (1, 16)
MODELS = ("recommend", "retrieval")
MAX_RESTART_SECONDS = 10.0


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds that it took, and what it returned."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def memory_gb(pid: int) -> dict[str, float]:
    """Resident memory of a process: its own, and mapped files, which the kernel may drop.

    A page that two models map counts once.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    values = dict(line.split(":", 1) for line in lines)
    return {
        name: int(values[field].split()[0]) / 1e6
        for name, field in (("own", "Pss_Anon"), ("mapped", "Pss_File"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000_000)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--work", type=Path, default=Path("build/bench/scale"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--window-ms", type=int, default=2000)
    arguments = parser.parse_args()
    work: Path = arguments.work
    size = synthetic.Size(
        items=arguments.items,
        users=arguments.users,
        candidates=100,
        hidden=(64, 32),
        row_type="int8",
    )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    # Tables and vectors, once: what is compiled links to them.
    require_disk(work, 1.1 * (size.users * (size.dim + 4) + size.items * (5 * size.dim + 12)))
    seconds: dict[str, float] = {}
    seconds["bundle"], _ = timed(lambda: synthetic.write(work / "bundle", size))
    repository = work / "model_repository"
    seconds["compile"], _ = timed(lambda: compile_bundle(work / "bundle", repository))
    print(f"bundle {seconds['bundle']:.0f} s, compile {seconds['compile']:.0f} s", flush=True)
    data = work / "requests.json"
    write_input_data(data, draw_requests(work / "bundle", NUM_REQUESTS, "zipf"))

    series: Series = {}
    with TritonServer(repository, log=work / "server.log", ready_timeout=300) as server:
        for model in MODELS:
            series[model] = [
                measure(
                    find_perf_analyzer(),
                    server.endpoints.grpc,
                    model,
                    data,
                    level,
                    Windows(arguments.window_ms),
                )
                for level in CONCURRENCY
            ]
        memory = memory_gb(server.pid)
    again = TritonServer(repository, log=work / "server.log", ready_timeout=300)
    seconds["restart"], _ = timed(again.start)
    again.stop()

    files = {
        path.name: path.stat().st_size / 1e9
        for path in sorted((work / "bundle").iterdir())
        if path.stat().st_size > 1e6
    }
    bars = [Bar("seconds of a restart", MAX_RESTART_SECONDS, seconds["restart"], False)]
    write(arguments.out, size, seconds, files, memory, series, bars)
    shutil.rmtree(work)
    for bar in bars:
        print(bar)


def write(
    out: Path,
    size: synthetic.Size,
    seconds: dict[str, float],
    files: dict[str, float],
    memory: dict[str, float],
    series: Series,
    bars: list[Bar],
) -> None:
    """Writes scale-<machine>.{json,md}."""
    facts = [
        "| | |",
        "|---|---:|",
        *(f"| {name}, s | {value:.1f} |" for name, value in seconds.items()),
        *(f"| {name}, GB | {value:.2f} |" for name, value in files.items()),
        *(f"| {name} memory of the server, GB | {value:.2f} |" for name, value in memory.items()),
    ]
    write_result(
        out / f"scale-{machine_name()}",
        "Scale",
        {
            **provenance(),
            "size": dataclasses.asdict(size),
            "seconds": seconds,
            "files_gb": files,
            "memory_gb": memory,
            "series": series_json(series),
        },
        [
            f"{size.users:,} users and {size.items:,} items of {size.dim} dimensions, int8 tables, "
            f"{size.candidates} candidates; a synthetic recommender. A restart is from the start "
            "of the process to ready, with the files in the page cache: every file is checked "
            "against its SHA-256 and mapped.",
            "\n".join(facts),
            serving_table(series),
        ],
        bars,
    )


if __name__ == "__main__":
    main()
