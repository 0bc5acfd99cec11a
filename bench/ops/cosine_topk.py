"""Exact top-K beside faiss, torch and usearch: the same items, queries and threads, in one run.

Contenders take turns in every round, so that a slow moment of the machine hits all of them. Before
they are timed their answers are compared: the same items, near ties aside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.compiler import compile_cpp
from recengine import ops
from recengine.errors import RecengineError
from recengine.serving.bench.commands import provenance
from recengine.serving.bench.machine import machine_name
from recengine.serving.bench.report import (
    Bar,
    bars_json,
    bars_table,
    provenance_lines,
    write_result,
)

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Search = Callable[[Vectors], Rows]

BATCHES = (1, 8, 32, 256)
BARS = {"gaussian": (8, 8, 7, 5.5), "decaying": (10, 10, 10, 10)}
"""Best peer over ours, per batch of BATCHES."""
SECONDS = 1.0
"""That one contender takes of a round, at most one call over it."""
QUERY_POOL = 512
PACKAGES = ("faiss-cpu", "torch", "usearch")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the machine can do, measured in the same run, all threads together."""

    int8_macs_per_s: float
    read_bytes_per_s: float

    def least_ms(self, rows: int, dim: int, batch: int) -> float:
        """No scan of every item's 8-bit code can take less."""
        codes = rows * dim
        return 1e3 * max(codes / self.read_bytes_per_s, codes * batch / self.int8_macs_per_s)


def measure_limits(folder: Path, threads: int) -> Limits:
    """Builds and runs limits.cc, in a process of its own."""
    program = folder / "limits"
    flags = ["-mavx512f", "-mavx512vnni", "-pthread"]
    compile_cpp(Path(__file__).with_name("limits.cc"), program, flags)
    done = subprocess.run([str(program), str(threads)], check=True, capture_output=True, text=True)
    return Limits(**json.loads(done.stdout))


def make_items(kind: str, rows: int, dim: int, seed: int = 0) -> Vectors:
    """Unit vectors [rows, dim]; "decaying": dimension i is 1 / sqrt(i) as wide."""
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((rows, dim), dtype=np.float32)
    if kind == "decaying":
        items *= np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    return items


def contenders(items: Vectors, k: int, threads: int) -> dict[str, Search]:
    """Every library's way to the rows [batch, k] of unit queries."""
    import faiss
    import torch
    from usearch.compiled import MetricKind
    from usearch.index import search

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    index = ops.ItemIndex(items)
    flat = faiss.IndexFlatIP(items.shape[1])
    flat.add(items)
    transposed = torch.from_numpy(items).T
    default = faiss.cvar.distance_compute_blas_threshold

    def ours(queries: Vectors) -> Rows:
        return ops.cosine_topk(index, queries, k, threads=threads)[0]

    def faiss_with(threshold: int) -> Search:
        def run(queries: Vectors) -> Rows:
            faiss.cvar.distance_compute_blas_threshold = threshold
            rows: Rows = flat.search(queries, k)[1]
            return rows

        return run

    def torch_topk(queries: Vectors) -> Rows:
        rows: Rows = torch.topk(torch.from_numpy(queries) @ transposed, k).indices.numpy()
        return rows

    def usearch_exact(queries: Vectors) -> Rows:
        found = search(items, queries, k, MetricKind.IP, exact=True, threads=threads)
        return np.asarray(found.keys, np.int64).reshape(len(queries), k)

    return {
        "recengine": ours,
        "faiss": faiss_with(default),
        "faiss, BLAS always": faiss_with(1),
        "faiss, BLAS from 1600": faiss_with(1600),
        "torch": torch_topk,
        "usearch": usearch_exact,
    }


def check_agreement(searches: dict[str, Search], items: Vectors, queries: Vectors) -> None:
    """All find the same items, up to scores that fp32 rounds differently.

    Raises:
        RecengineError: a contender's worst item scores less than ours by more than rounding.
    """
    expected = np.sort(np.einsum("qkd,qd->qk", items[searches["recengine"](queries)], queries))
    for name, search in searches.items():
        scores = np.sort(np.einsum("qkd,qd->qk", items[search(queries)], queries))
        if np.abs(scores - expected).max() > 1e-5:
            raise RecengineError(f"[bench] {name} finds other items than recengine")


def time_batches(
    searches: dict[str, Search], pool: Vectors, batch: int, rounds: int
) -> dict[str, float]:
    """Median milliseconds of a call, the contenders one after another in every round."""
    batches = [pool[i : i + batch] for i in range(0, len(pool) - batch + 1, batch)]
    taken: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(rounds):
        for name, search in searches.items():
            end, call = time.perf_counter() + SECONDS, 0
            while call < 2 or time.perf_counter() < end:
                start = time.perf_counter()
                search(batches[call % len(batches)])
                if call > 0:
                    taken[name].append(time.perf_counter() - start)
                call += 1
    return {name: 1e3 * float(np.median(times)) for name, times in taken.items()}


def run(kind: str, rows: int, dim: int, k: int, rounds: int, limits: Limits) -> dict[str, Any]:
    """One data set: the table's rows, as JSON values."""
    threads = ops.usable_cores()
    items = make_items(kind, rows, dim)
    pool = make_items(kind, QUERY_POOL, dim, seed=1)
    searches = contenders(items, k, threads)
    check_agreement(searches, items, pool[:8])
    points = []
    for batch in BATCHES:
        times = time_batches(searches, pool, batch, rounds)
        best = min((name for name in times if name != "recengine"), key=lambda name: times[name])
        point = {
            "batch": batch,
            "ms": times,
            "best_peer": best,
            "ratio": times[best] / times["recengine"],
            "least_ms": limits.least_ms(rows, dim, batch),
        }
        points.append(point)
        print(
            f"{kind} {rows:,} x {dim}, batch {batch}: {times['recengine']:.2f} ms, {best} "
            f"{times[best]:.2f} ms, ratio {point['ratio']:.2f}, limit {point['least_ms']:.2f} ms"
        )
    return {"kind": kind, "rows": rows, "dim": dim, "k": k, "points": points}


def table(result: dict[str, Any]) -> str:
    """Milliseconds of every contender, one line per batch, as markdown."""
    names = list(result["points"][0]["ms"])
    lines = [
        f"### {result['kind']}, {result['rows']:,} × {result['dim']}, K = {result['k']}",
        "",
        f"| batch | {' | '.join(names)} | best peer ÷ recengine | limit ms | of the limit |",
        "|---:" * (len(names) + 4) + "|",
    ]
    for point in result["points"]:
        cells = " | ".join(f"{point['ms'][name]:.2f}" for name in names)
        share = point["least_ms"] / point["ms"]["recengine"]
        lines.append(
            f"| {point['batch']} | {cells} | {point['ratio']:.2f} | {point['least_ms']:.2f} "
            f"| {share:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    threads = ops.usable_cores()
    limits = measure_limits(arguments.work, threads)
    results = [
        run(kind, arguments.rows, arguments.dim, arguments.k, arguments.rounds, limits)
        for kind in BARS
    ]
    bars = [
        Bar(f"{result['kind']}, batch {batch}: best peer over ours", bar, point["ratio"], True)
        for result in results
        for batch, bar, point in zip(BATCHES, BARS[result["kind"]], result["points"], strict=True)
    ]
    result = {
        **provenance(PACKAGES),
        "threads": threads,
        "limits": dataclasses.asdict(limits),
        "results": results,
        "bars": bars_json(bars),
    }
    text = "\n\n".join(
        [
            "# Exact top-K",
            f"Median milliseconds of a call, {threads} threads. Limit: reading every 8-bit code "
            f"once at {limits.read_bytes_per_s / 1e9:.0f} GB/s, or multiplying it by every query "
            f"at {limits.int8_macs_per_s / 1e9:.0f} G multiply-adds/s, both measured in this run.",
            *[table(measured) for measured in results],
            bars_table(bars),
            provenance_lines(result),
        ]
    )
    write_result(arguments.out / f"cosine-topk-{machine_name()}", result, text)
    for bar in bars:
        print(bar)


if __name__ == "__main__":
    main()
