"""Exact top-K beside faiss, torch and usearch: the same items, queries and threads, in one run.

Before they are timed at a batch size, all answers are held against every item's score in fp64: the
best items, near ties aside. All items lie in huge pages.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.ops import huge_pages
from bench.ops.contest import OURS, parser, publish, race, spread, times_json
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
LOW_RATES = (0.001, 0.01, 0.03)  # of items that a filter lets pass
LOW_RATE_BATCHES = (1, 32, 256)
VECTORS_ISA = "avx512_vnni"  # of a CPU with tiles: the kernel that multiplies in vectors
TRAINED_REST = 0.04  # of the energy, in the second half of the dimensions
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
    Case("trained", 1_000_000, 64, (10, 10, 10, 10)),
    Case("gaussian", 1_000_000, 128, (6.4, 6.4, 5.6, 4.4)),
    Case("gaussian", 20_000, 64, (1, 1, 1, 1)),
)


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Unit vectors [rows, dim] of items, and of queries."""

    items: Vectors
    queries: Vectors

    @functools.cached_property
    def index(self) -> ops.ItemIndex:
        """Ours, packed once for all that is measured over it."""
        return ops.ItemIndex(self.items)


def make_catalog(kind: str, rows: int, dim: int, data: Path) -> Catalog:
    """Random vectors around the origin, or as a factorisation of MovieLens distributes them.

    Args:
        kind: "gaussian"; "decaying": dimension i is 1 / sqrt(i) as wide; "movielens": normal with
            the means and covariances of item and user factors; "trained": 96 % of the energy in
            half of the directions, which are no axes.
        rows: items.
        dim: of all vectors.
        data: folder of MovieLens-100K.
    """
    rng = np.random.default_rng(0)
    if kind == "movielens":
        users, items = movielens_factors(data, dim)
        return Catalog(like(items, rows, rng), like(users, QUERY_POOL, rng))
    directions = spectrum(kind, dim, rng).astype(np.float32)
    return Catalog(
        *(
            to_unit(rng.standard_normal((count, dim), dtype=np.float32) @ directions)
            for count in (rows, QUERY_POOL)
        )
    )


def spectrum(kind: str, dim: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Directions [dim, dim] of a catalog's vectors, each as long as vectors are wide there."""
    if kind == "trained":
        turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        return np.asarray(TRAINED_REST ** (np.arange(dim)[:, None] / dim) * turn)
    power = -0.5 if kind == "decaying" else 0.0
    return np.diag(np.arange(1, dim + 1, dtype=np.float64) ** power)


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


@dataclasses.dataclass(frozen=True)
class Contest:
    """The contenders over one catalog.

    Attributes:
        searches: every library's way to the rows [batch, k] of unit queries.
        memory: the items as each has them.
    """

    searches: dict[str, Search]
    memory: dict[str, huge_pages.Memory]


def contenders(catalog: Catalog, k: int, threads: int) -> Contest:
    """Every library over the same items; faiss and recengine have their own copies."""
    import faiss
    import torch
    from usearch.compiled import MetricKind
    from usearch.index import search

    faiss.omp_set_num_threads(threads)
    torch.set_num_threads(threads)
    items, index = catalog.items, catalog.index
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

    searches = {
        OURS: ours,
        "faiss": faiss_with(default),
        "faiss, BLAS always": faiss_with(1),
        "faiss, BLAS from 1600": faiss_with(1600),
        "torch": torch_topk,
        "usearch": usearch_exact,
    }
    memory: dict[str, huge_pages.Memory] = {
        OURS: [index.unit_vectors, *(index.stored_codes() or {}).values()],
        "faiss": [faiss.rev_swig_ptr(flat.get_xb(), items.size)],
        "torch": [items],
        "usearch": [items],
    }
    return Contest(searches, memory)


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
    contest = contenders(catalog, k, ops.usable_cores())
    searches = contest.searches
    best = best_scores(items, pool, k)
    points = []
    for batch in BATCHES:
        batches = [pool[i : i + batch] for i in range(0, len(pool) - batch + 1, batch)]
        took = {}
        for name, search in searches.items():
            checked = batches if name == OURS else batches[:1]
            start = time.perf_counter()
            found = np.concatenate([search(queries) for queries in checked])
            took[name] = (time.perf_counter() - start) / len(checked)
            asked = slice(len(found))
            check_rows(f"{name}, batch {batch}", items, pool[asked], found, best[asked])
        calls = {
            name: lambda i, search=search, batches=batches: search(batches[i])
            for name, search in searches.items()
        }
        point = {
            "batch": batch,
            **times_json(race(calls, len(batches), rounds, seconds, took)),
            "least_ms": limits.scan_ms(rows, dim, batch),
        }
        points.append(point)
        ms, peer = point["ms"], point["best_peer"]
        print(
            f"{kind} {rows:,} x {dim}, batch {batch}: {ms[OURS]:.2f} ms, {peer} "
            f"{ms[peer]:.2f} ms, ratio {point['ratio']:.2f}, limit {point['least_ms']:.2f} ms",
            flush=True,
        )
    return {
        "kind": kind,
        "rows": rows,
        "dim": dim,
        "k": k,
        "partial_scans": catalog.index.partial_scans,
        "split_codes": catalog.index.split_codes,
        "huge_pages": huge_pages.shares(contest.memory),
        "points": points,
    }


def vectors_ms(catalog: Catalog, k: int, rounds: int, seconds: float) -> float:
    """Of a search for 256 queries by the kernel that multiplies in vectors, not in tiles."""
    batches = [catalog.queries[:256], catalog.queries[256:]]

    def search(i: int) -> object:
        return ops.cosine_topk(catalog.index, batches[i], k, isa=VECTORS_ISA)

    return race({OURS: search}, len(batches), rounds, seconds)[OURS].median


def filter_costs(
    catalog: Catalog, k: int, rounds: int, seconds: float
) -> list[dict[str, float | int]]:
    """What excluded items and an allow list add to a search, beside one without."""
    rng = np.random.default_rng(0)
    index = catalog.index
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


def low_rates(catalog: Catalog, k: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Searches of the few items that a filter lets pass, beside peers and one of all items."""
    import faiss
    import torch

    items, pool, index = catalog.items, catalog.queries, catalog.index
    rows = len(items)
    rng = np.random.default_rng(0)
    flat = faiss.IndexFlatIP(items.shape[1])
    flat.add(items)
    all_items = torch.from_numpy(items)
    few = pool[:CHECKED_WITH_FILTERS]
    points = []
    for rate in LOW_RATES:
        allowed = np.sort(rng.choice(rows, max(k, round(rate * rows)), replace=False))
        bits = np.zeros(-(-rows // 64) * 64, bool)
        bits[allowed] = True
        bitmap = np.packbits(bits, bitorder="little")
        words = bitmap.view(np.uint64)
        selectors: Any = faiss  # its Python takes arrays; its stubs do not say so
        by_bitmap = selectors.SearchParameters(sel=selectors.IDSelectorBitmap(bitmap))
        by_rows = selectors.SearchParameters(sel=selectors.IDSelectorArray(allowed))
        few_rows = torch.from_numpy(allowed)

        def ours(queries: Vectors, words: npt.NDArray[np.uint64] = words) -> Rows:
            return ops.cosine_topk(index, queries, k, allow=words)[0]

        def faiss_with(parameters: Any) -> Search:
            return lambda queries: np.asarray(flat.search(queries, k, params=parameters)[1])

        def torch_gather(queries: Vectors, rows: Any = few_rows) -> Rows:
            scores = torch.from_numpy(queries) @ all_items[rows].T
            return np.asarray(rows[torch.topk(scores, k).indices])

        searches: dict[str, Search] = {
            OURS: ours,
            "faiss, IDSelectorBitmap": faiss_with(by_bitmap),
            "faiss, IDSelectorArray": faiss_with(by_rows),
            "torch, gathered rows": torch_gather,
        }
        best = best_scores(items[allowed], few, k)
        for name, search in searches.items():
            found = search(few)
            if not np.isin(found, allowed).all():
                raise RecengineError(f"[bench] {name}: a row is found that is not allowed")
            check_rows(f"{name}, {rate:.1%} allowed", items, few, found, best)
        searches["plain"] = lambda queries: ops.cosine_topk(index, queries, k)[0]
        for batch in LOW_RATE_BATCHES:
            batches = [pool[i : i + batch] for i in range(0, len(pool) - batch + 1, batch)]
            calls = {
                name: lambda i, search=search, batches=batches: search(batches[i])
                for name, search in searches.items()
            }
            times = race(calls, len(batches), rounds, seconds)
            plain = times.pop("plain").median
            points.append({"rate": rate, "batch": batch, **times_json(times), "plain_ms": plain})
    return points


def low_rate_table(points: list[dict[str, Any]]) -> str:
    """Milliseconds of searches with filters, one line per rate and batch, as markdown."""
    peers = [name for name in points[0]["ms"] if name != OURS] if points else []
    lines = [
        f"| allowed | batch | all items, {OURS} | {OURS} | 25–75 % | {' | '.join(peers)} "
        f"| best peer ÷ {OURS} |",
        "|---:" * (6 + len(peers)) + "|",
    ]
    for point in points:
        of_peers = " | ".join(f"{point['ms'][peer]:.2f}" for peer in peers)
        lines.append(
            f"| {point['rate']:.1%} | {point['batch']} | {point['plain_ms']:.2f} "
            f"| {point['ms'][OURS]:.2f} | {spread(point)} | {of_peers} | {point['ratio']:.2f} |"
        )
    return "\n".join(lines)


def low_rate_ratios(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The best peer's time over ours, by case."""
    return {
        f"{point['rate']:.1%} allowed, batch {point['batch']}": point["ratio"] for point in points
    }


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
    peers = [name for name in result["points"][0]["ms"] if name != OURS]
    scans = " or ".join(map(str, result["partial_scans"]))
    lines = [
        f"### {result['kind']}, {result['rows']:,} × {result['dim']}, K = {result['k']}",
        "",
        f"Scans of {scans} dimensions were chosen at build."
        if scans
        else "No partial scans were chosen at build"
        + (", but to keep the codes' high bits apart." if result.get("split_codes") else "."),
        "",
        f"| batch | {OURS} | 25–75 % | {' | '.join(peers)} | best peer ÷ recengine | limit ms "
        "| of the limit |",
        "|---:" * (len(peers) + 6) + "|",
    ]
    for point in result["points"]:
        cells = " | ".join(f"{point['ms'][name]:.2f}" for name in peers)
        share = point["least_ms"] / point["ms"][OURS]
        lines.append(
            f"| {point['batch']} | {point['ms'][OURS]:.2f} | {spread(point)} | {cells} "
            f"| {point['ratio']:.2f} | {point['least_ms']:.2f} | {share:.0%} |"
        )
    return "\n".join(lines)


def limit_bars(first: dict[str, Any], limits: Limits, in_vectors_ms: float) -> list[Bar]:
    """Shares of the machine's own limits at batch 1 and 256."""
    rows, dim = first["rows"], first["dim"]
    read = limits.read_ms(rows, dim) / first["points"][0]["ms"][OURS]
    multiplied = limits.multiply_ms(rows, dim, 256, tiles=False) / in_vectors_ms
    how = f" in {VECTORS_ISA}" if limits.tile_macs_per_s > 0 else ""
    return [
        Bar(f"{label(first)}, batch 1: share of the read bandwidth", 0.7, read, True),
        Bar(f"{label(first)}, batch 256{how}: share of the vectors' rate", 0.85, multiplied, True),
    ]


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--k", type=int, default=100)
    arguments_parser.add_argument("--data", type=Path, default=Path("data/ml-100k"))
    arguments = arguments_parser.parse_args()
    huge_pages.for_every_malloc()
    shrink, rounds, seconds = (10, 1, 0.1) if arguments.quick else (1, arguments.rounds, 0.5)
    threads = ops.usable_cores()
    sizes = sorted({case.rows // shrink * case.dim for case in CASES})
    limits = measure_limits(arguments.work, threads, sizes=sizes, quick=arguments.quick)
    results: list[dict[str, Any]] = []
    costs: list[dict[str, float | int]] = []
    filtered: list[dict[str, Any]] = []
    in_vectors_ms = 0.0
    for case in CASES:
        catalog = make_catalog(case.kind, case.rows // shrink, case.dim, arguments.data)
        results.append(run(case.kind, catalog, arguments.k, rounds, seconds, limits))
        if case is CASES[0]:
            costs = filter_costs(catalog, arguments.k, rounds, seconds)
            filtered = low_rates(catalog, arguments.k, rounds, seconds)
            in_vectors_ms = (
                vectors_ms(catalog, arguments.k, rounds, seconds)
                if limits.tile_macs_per_s > 0
                else results[0]["points"][-1]["ms"][OURS]
            )
    first = results[0]
    pages = {label(result): result["huge_pages"] for result in results}
    bars = [
        Bar(f"{label(result)}, batch {batch}: best peer over ours", bar, point["ratio"], True)
        for case, result in zip(CASES, results, strict=True)
        for batch, bar, point in zip(BATCHES, case.bars, result["points"], strict=True)
    ]
    bars += limit_bars(first, limits, in_vectors_ms)
    bars += [
        Bar(f"batch {cost['batch']}: cost of {EXCLUDED} excluded", 0.1, cost["exclude"], False)
        for cost in costs
    ]
    bars += huge_pages.find_bars(pages)
    per_s = limits.tile_macs_per_s / 1e9
    tiles = f" or {per_s:.0f} in AMX's tiles" if per_s > 0 else ""
    publish(
        arguments,
        "cosine-topk",
        "Exact top-K",
        limits,
        PACKAGES,
        {
            "results": results,
            "filters": costs,
            "low_rates": filtered,
            "vectors_ms_at_256": in_vectors_ms,
        },
        [
            f"Median milliseconds of a call, {threads} threads. Limit: reading every 8-bit code "
            "once, at the rate of as many bytes in order ("
            + ", ".join(
                f"{int(size) / 1e6:.3g} MB: {rate / 1e9:.0f} GB/s"
                for size, rate in limits.read_bytes_per_s.items()
            )
            + "), or multiplying it by every query "
            f"at {limits.int8_macs_per_s / 1e9:.0f} G multiply-adds/s in vectors{tiles}, all "
            "measured in this run. Where the build chose partial scans, a search may read fewer "
            "dimensions than the limit counts. "
            "Movielens: normal vectors with the means and covariances of a factorisation. Trained: "
            f"{1 - TRAINED_REST:.0%} of the energy in half of the directions.",
            *[table(result) for result in results],
            tile_share(first, limits, in_vectors_ms),
            f"### What filters add, {label(first)}",
            filter_table(costs),
            "Filters that let few items pass, milliseconds:",
            low_rate_table(filtered),
            huge_pages.HOW,
            huge_pages.table(pages),
        ],
        find_ratios(results) | low_rate_ratios(filtered),
        bars,
    )


def tile_share(first: dict[str, Any], limits: Limits, in_vectors_ms: float) -> str:
    """A sentence about batch 256 in tiles and in vectors; empty where the CPU has no tiles."""
    if limits.tile_macs_per_s == 0:
        return ""
    ms = first["points"][-1]["ms"][OURS]
    share = limits.multiply_ms(first["rows"], first["dim"], 256) / ms
    return (
        f"{label(first)}, batch 256: {ms:.2f} ms in tiles, {share:.0%} of their rate; "
        f"{in_vectors_ms:.2f} ms in vectors ({VECTORS_ISA}), which the bar below is about."
    )


if __name__ == "__main__":
    main()
