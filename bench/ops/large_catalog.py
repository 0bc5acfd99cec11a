"""Exact top-K over catalogs that fit in memory as codes only: float16 rows on disk, mapped.

Writes random unit vectors, packs them, checks answers against every row in fp64, times searches. A
catalog of 100 million rows x 64 needs 13 GB of disk, 7 GB of memory and some minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.ops.contest import OURS, race
from bench.ops.cosine_topk import Vectors, best_scores, check_rows, to_unit
from bench.ops.limits import Limits, measure_limits
from recengine import ops
from recengine.errors import RecengineError
from recengine.serving.bench.commands import provenance
from recengine.serving.bench.machine import machine_name
from recengine.serving.bench.report import Bar, write_result

K = 100
BATCHES = (1, 32)
CHECKED = 32  # queries, at every batch size
MISSION_ROWS = 10_000_000  # that the bars are for
SPARE_DISK = 1.25  # of what is written


def require_disk(folder: Path, num_bytes: float) -> None:
    """Raises a RecengineError where less is free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RecengineError(
            f"[bench] {folder}: expected {num_bytes / 1e9:.1f} GB of free disk, "
            f"found {free / 1e9:.1f} GB"
        )


def write_catalog(path: Path, rows: int, dim: int) -> npt.NDArray[np.float16]:
    """Random unit vectors as a file; the mapped array [rows, dim].

    Raises:
        RecengineError: the disk is too small.
    """
    require_disk(path.parent, 2 * rows * dim * SPARE_DISK)
    vectors = np.memmap(path, np.float16, "w+", shape=(rows, dim))
    rng = np.random.default_rng(0)
    for block in blocks(rows):
        shape = block.stop - block.start, dim
        vectors[block] = to_unit(rng.standard_normal(shape, dtype=np.float32))
    vectors.flush()
    return np.memmap(path, np.float16, "r", shape=(rows, dim))


def blocks(rows: int, size: int = 1 << 20) -> Iterator[slice]:
    """Slices of up to `size` rows."""
    for begin in range(0, rows, size):
        yield slice(begin, min(begin + size, rows))


def own_memory_gb() -> float:
    """Resident memory of this process without mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1e6


def run(folder: Path, rows: int, dim: int, rounds: int, limits: Limits) -> dict[str, Any]:
    """One catalog: a line of the table, as JSON values."""
    path = folder / "catalog.float16"
    try:
        vectors = write_catalog(path, rows, dim)
        start = time.perf_counter()
        index = ops.ItemIndex.from_unit_vectors(vectors)
        pack_seconds = time.perf_counter() - start
        rng = np.random.default_rng(1)
        pool = to_unit(rng.standard_normal((128, dim), dtype=np.float32))
        best = best_scores(vectors, pool[:CHECKED], K)
        points = []
        for batch in BATCHES:
            batches = [pool[i : i + batch] for i in range(0, len(pool), batch)]
            parts = [ops.cosine_topk(index, part, K)[0] for part in batches[: CHECKED // batch]]
            check_rows(f"batch {batch}", vectors, pool[:CHECKED], np.concatenate(parts), best)

            def search(i: int, batches: list[Vectors] = batches) -> object:
                return ops.cosine_topk(index, batches[i], K)

            times = race({OURS: search}, len(batches), rounds, 5.0)[OURS]
            points.append(
                {
                    "batch": batch,
                    "ms": times.median,
                    "quartiles_ms": (times.low, times.high),
                    "least_ms": limits.scan_ms(rows, dim, batch),
                    "queries_per_s": 1e3 * batch / times.median,
                }
            )
        return {
            "rows": rows,
            "dim": dim,
            "disk_gb": path.stat().st_size / 1e9,
            "pack_seconds": pack_seconds,
            "own_memory_gb": own_memory_gb(),
            "points": points,
        }
    finally:
        path.unlink(missing_ok=True)


def table(results: list[dict[str, Any]]) -> str:
    """Every catalog and batch as markdown."""
    lines = [
        "| items | rows on disk | packed in | own memory | batch | ms | limit ms | queries/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        for point in result["points"]:
            lines.append(
                f"| {result['rows']:,} × {result['dim']} | {result['disk_gb']:.1f} GB "
                f"| {result['pack_seconds']:.1f} s | {result['own_memory_gb']:.1f} GB "
                f"| {point['batch']} | {point['ms']:.1f} | {point['least_ms']:.1f} "
                f"| {point['queries_per_s']:,.0f} |"
            )
    return "\n".join(lines)


def find_bars(result: dict[str, Any]) -> list[Bar]:
    """What the mission's catalog must hold."""
    one, many = result["points"]
    return [
        Bar("10M, batch 1: time over reading the codes", 1.3, one["ms"] / one["least_ms"], False),
        Bar("10M, batch 32: queries/s", 300, many["queries_per_s"], True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[MISSION_ROWS, 100_000_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    sizes = [rows * arguments.dim for rows in arguments.rows]
    limits = measure_limits(arguments.work, ops.usable_cores(), sizes=sizes)
    results = [
        run(arguments.work, rows, arguments.dim, arguments.rounds, limits)
        for rows in arguments.rows
    ]
    bars = [
        bar for result in results if result["rows"] == MISSION_ROWS for bar in find_bars(result)
    ]
    text = (
        f"Median milliseconds of a call for the {K} best, {ops.usable_cores()} threads. Rows are "
        "float16 in a mapped file; memory holds their 8-bit codes. Answers were compared with "
        "every row in fp64. Limit: reading every code once, at the rate of as many bytes in order "
        "in this run, or multiplying it by every query."
    )
    path = arguments.out / f"large-catalog-{machine_name()}"
    result = {**provenance(), "limits": dataclasses.asdict(limits), "results": results}
    write_result(path, "Large catalogs", result, [text, table(results)], bars)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
