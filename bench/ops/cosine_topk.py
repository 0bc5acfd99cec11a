"""Exact top-K beside faiss, torch and usearch: the same items, queries and threads, in one run.

Before they are timed at a batch size, all answers are held against every item's score in fp64: the
best items, near ties aside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.ops.contest import OURS, parser, publish, race, times_json
from bench.ops.limits import Limits, measure_limits
from recengine import ops
from recengine.data import read
from recengine.errors import RecengineError
from recengine.serving.bench.report import Bar

Vectors = npt.NDArray[np.float32]
StoredVectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]
Rows = npt.NDArray[np.int64]
Search = Callable[[Vectors], Rows]

BATCHES = (1, 8, 32, 256)
QUERY_POOL = 512
BLOCK_ROWS = 1 << 14  # scored at a time in fp64: 64 MiB for all queries
NEAR_TIE = 1e-5  # scores that fp32 may round to another order
CHECKED_WITH_FILTERS = 8  # queries
EXCLUDED = 200  # items of each query, where their cost is measured
PACKAGES = ("faiss-cpu", "torch", "usearch")


@dataclasses.dataclass(frozen=True)
class Case:
    """A catalog, and what was promised of it: best peer over ours, per batch of BATCHES."""

    kind: str
    rows: int
    dim: int
    bars: tuple[float, ...]


CASES = (
    Case("gaussian", 1_000_000, 64, (8, 8, 7, 5.5)),
    Case("decaying", 1_000_000, 64, (10, 10, 10, 10)),
    Case("movielens", 1_000_000, 64, (10, 10, 10, 10)),
    Case("gaussian", 1_000_000, 128, (6.4, 6.4, 5.6, 4.4)),
    Case("gaussian", 20_000, 64, (1, 1, 1, 1)),
)


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Unit vectors [rows, dim] of items, and of queries."""

    items: Vectors
    queries: Vectors


def make_catalog(kind: str, rows: int, dim: int, data: Path) -> Catalog:
    """Random vectors around the origin, or as a factorisation of MovieLens distributes them.

    Args:
        kind: "gaussian"; "decaying": dimension i is 1 / sqrt(i) as wide; "movielens": normal with
            the means and covariances of item and user factors.
        rows: items.
        dim: of all vectors.
        data: folder of MovieLens-100K.
    """
    rng = np.random.default_rng(0)
    if kind == "movielens":
        users, items = movielens_factors(data, dim)
        return Catalog(like(items, rows, rng), like(users, QUERY_POOL, rng))
    power = -0.5 if kind == "decaying" else 0.0
    widths = np.arange(1, dim + 1, dtype=np.float32) ** np.float32(power)
    return Catalog(
        *(
            to_unit(rng.standard_normal((count, dim), dtype=np.float32) * widths)
            for count in (rows, QUERY_POOL)
        )
    )


def movielens_factors(data: Path, dim: int) -> tuple[Vectors, Vectors]:
    """User and item factors: the strongest `dim` singular vectors of who rated what."""
    interactions = read(data).interactions
    users, user_rows = np.unique(interactions.users, return_inverse=True)
    items, item_rows = np.unique(interactions.items, return_inverse=True)
    rated = np.zeros((len(users), len(items)), np.float32)
    rated[user_rows, item_rows] = 1
    left, strengths, right = np.linalg.svd(rated, full_matrices=False)
    roots = np.sqrt(strengths[:dim])
    return left[:, :dim] * roots, right[:dim].T * roots


def like(factors: Vectors, rows: int, rng: np.random.Generator) -> Vectors:
    """Unit vectors [rows, dim], normal with the mean and covariance of the factors."""
    values, axes = np.linalg.eigh(np.cov(factors.T))
    widths = (axes * np.sqrt(np.maximum(values, 0))).astype(np.float32)
    noise = rng.standard_normal((rows, factors.shape[1]), dtype=np.float32)
    return to_unit(noise @ widths.T + factors.mean(axis=0))


def to_unit(vectors: Vectors) -> Vectors:
    """Scales every row to length 1."""
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


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
        OURS: ours,
        "faiss": faiss_with(default),
        "faiss, BLAS always": faiss_with(1),
        "faiss, BLAS from 1600": faiss_with(1600),
        "torch": torch_topk,
        "usearch": usearch_exact,
    }


def best_scores(vectors: StoredVectors, queries: Vectors, k: int) -> npt.NDArray[np.float64]:
    """The k best scores [batch, k] of all rows in fp64, best first."""
    wide = queries.astype(np.float64)
    best: npt.NDArray[np.float64] = np.full((len(queries), k), -np.inf)
    for begin in range(0, len(vectors), BLOCK_ROWS):
        scores = wide @ vectors[begin : begin + BLOCK_ROWS].astype(np.float64).T
        best = np.partition(np.hstack([best, scores]), -k, axis=1)[:, -k:]
    return np.sort(best)[:, ::-1]


def check_rows(
    name: str,
    vectors: StoredVectors,
    queries: Vectors,
    rows: Rows,
    best: npt.NDArray[np.float64],
) -> None:
    """The rows [batch, k] that were found are those of `best_scores`, near ties aside.

    Raises:
        RecengineError: a row is there twice, or scores less in fp64 than the best by more than
            fp32 rounds.
    """
    if any(len(np.unique(found)) < len(found) for found in rows):
        raise RecengineError(f"[bench] {name}: a row is found twice")
    exact = np.einsum("qkd,qd->qk", vectors[rows].astype(np.float64), queries.astype(np.float64))
    off = np.abs(np.sort(exact)[:, ::-1] - best).max()
    if not off <= NEAR_TIE:
        raise RecengineError(f"[bench] {name}: not the best rows in fp64; a score is {off:.2g} off")


def run(
    kind: str, catalog: Catalog, k: int, rounds: int, seconds: float, limits: Limits
) -> dict[str, Any]:
    """One data set: the table's rows, as JSON values."""
    items, pool = catalog.items, catalog.queries
    rows, dim = items.shape
    searches = contenders(items, k, ops.usable_cores())
    best = best_scores(items, pool, k)
    points = []
    for batch in BATCHES:
        batches = [pool[i : i + batch] for i in range(0, len(pool) - batch + 1, batch)]
        for name, search in searches.items():
            checked = batches if name == OURS else batches[:1]
            found = np.concatenate([search(queries) for queries in checked])
            asked = slice(len(found))
            check_rows(f"{name}, batch {batch}", items, pool[asked], found, best[asked])
        calls = {
            name: lambda i, search=search, batches=batches: search(batches[i])
            for name, search in searches.items()
        }
        point = {
            "batch": batch,
            **times_json(race(calls, len(batches), rounds, seconds)),
            "least_ms": limits.scan_ms(rows, dim, batch),
        }
        points.append(point)
        ms, peer = point["ms"], point["best_peer"]
        print(
            f"{kind} {rows:,} x {dim}, batch {batch}: {ms[OURS]:.2f} ms, {peer} "
            f"{ms[peer]:.2f} ms, ratio {point['ratio']:.2f}, limit {point['least_ms']:.2f} ms"
        )
    return {"kind": kind, "rows": rows, "dim": dim, "k": k, "points": points}


def filter_costs(
    catalog: Catalog, k: int, rounds: int, seconds: float
) -> list[dict[str, float | int]]:
    """What excluded items and an allow list add to a search, beside one without."""
    rng = np.random.default_rng(0)
    index = ops.ItemIndex(catalog.items)
    most = rng.random(index.rows) < 0.9
    costs: list[dict[str, float | int]] = []
    for batch in BATCHES:
        excluded = list(rng.integers(0, index.rows, (batch, EXCLUDED)))
        starts = range(0, QUERY_POOL - batch + 1, batch)
        batches = [catalog.queries[start : start + batch] for start in starts]

        def timed(batches: list[Vectors] = batches, **filters: Any) -> Callable[[int], object]:
            return lambda i: ops.cosine_topk(index, batches[i], k, **filters)

        asked = slice(CHECKED_WITH_FILTERS)
        few = batches[0][asked]
        ops.certified_topk(index, few, k, exclude=excluded[asked], check=True)
        ops.certified_topk(index, few, k, allow=most, check=True)
        calls = {"plain": timed(), "exclude": timed(exclude=excluded), "allow": timed(allow=most)}
        times = race(calls, len(batches), rounds, seconds)
        plain = times["plain"].median
        costs.append(
            {
                "batch": batch,
                "exclude": times["exclude"].median / plain - 1,
                "allow": times["allow"].median / plain - 1,
            }
        )
    return costs


def filter_table(costs: list[dict[str, float | int]]) -> str:
    """What filters add, one line per batch, as markdown."""
    lines = [
        f"| batch | {EXCLUDED} items excluded for each query | 90 % of the items allowed |",
        "|---:|---:|---:|",
    ]
    for cost in costs:
        lines.append(f"| {cost['batch']} | {cost['exclude']:+.0%} | {cost['allow']:+.0%} |")
    return "\n".join(lines)


def label(measured: dict[str, Any]) -> str:
    """A catalog in words: "gaussian 1M x 64"."""
    rows = measured["rows"]
    size = f"{rows // 1_000_000}M" if rows >= 1_000_000 else f"{rows // 1000}k"
    return f"{measured['kind']} {size} × {measured['dim']}"


def find_ratios(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The best peer's time over ours, by catalog and batch, where there was a peer."""
    return {
        f"{label(result)}, batch {point['batch']}": point["ratio"]
        for result in results
        for point in result["points"]
        if point["ratio"] is not None
    }


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
        share = point["least_ms"] / point["ms"][OURS]
        lines.append(
            f"| {point['batch']} | {cells} | {point['ratio']:.2f} | {point['least_ms']:.2f} "
            f"| {share:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--k", type=int, default=100)
    arguments_parser.add_argument("--data", type=Path, default=Path("data/ml-100k"))
    arguments = arguments_parser.parse_args()
    shrink = 10 if arguments.quick else 1
    seconds = 0.2 if arguments.quick else 0.7
    if arguments.quick:
        arguments.rounds = 1
    threads = ops.usable_cores()
    limits = measure_limits(arguments.work, threads)
    results = []
    costs: list[dict[str, float | int]] = []
    for case in CASES:
        catalog = make_catalog(case.kind, case.rows // shrink, case.dim, arguments.data)
        measured = run(case.kind, catalog, arguments.k, arguments.rounds, seconds, limits)
        results.append(measured)
        costs = costs or filter_costs(catalog, arguments.k, arguments.rounds, seconds)
    bars = [
        Bar(f"{label(result)}, batch {batch}: best peer over ours", bar, point["ratio"], True)
        for case, result in zip(CASES, results, strict=True)
        for batch, bar, point in zip(BATCHES, case.bars, result["points"], strict=True)
    ]
    first = results[0]
    ours = {point["batch"]: point["ms"][OURS] for point in first["points"]}
    read = limits.read_ms(first["rows"], first["dim"]) / ours[1]
    multiplied = limits.multiply_ms(first["rows"], first["dim"], 256, tiles=False) / ours[256]
    per_s = limits.tile_macs_per_s / 1e9
    tiles = f" or {per_s:.0f} in AMX's tiles" if per_s > 0 else ""
    bars += [
        Bar(f"{label(first)}, batch 1: share of the read bandwidth", 0.7, read, True),
        Bar(f"{label(first)}, batch 256: share of the vectors' rate", 0.85, multiplied, True),
    ]
    bars += [
        Bar(f"batch {cost['batch']}: cost of {EXCLUDED} excluded", 0.1, cost["exclude"], False)
        for cost in costs
    ]
    publish(
        arguments,
        "cosine-topk",
        "Exact top-K",
        limits,
        PACKAGES,
        {"results": results, "filters": costs},
        [
            f"Median milliseconds of a call, {threads} threads. Limit: reading every 8-bit code "
            f"once at {limits.read_bytes_per_s / 1e9:.0f} GB/s, or multiplying it by every query "
            f"at {limits.int8_macs_per_s / 1e9:.0f} G multiply-adds/s in vectors{tiles}, all "
            "measured in this run. "
            "Where the items' spectrum decays, recengine reads fewer dimensions and can be faster. "
            "Movielens: normal vectors with the means and covariances of a factorisation.",
            *[table(measured) for measured in results],
            f"### What filters add, {label(results[0])}",
            filter_table(costs),
        ],
        find_ratios(results),
        bars,
    )


if __name__ == "__main__":
    main()
