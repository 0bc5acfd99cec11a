"""Exact top-K on a GPU beside torch, faiss and jax: the same items and queries, in one run.

Before the contenders are timed their answers are compared: ours with the CPU's, to the bit; those
of contenders that score in fp32 with ours, near ties aside. How many of our items the others find
is written down.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.gpu.contest import Contender, Plan, race, times_json, without_failing
from bench.gpu.frameworks import Frameworks, find_frameworks, to_host
from bench.gpu.machine import Limits, Machine, measure_machine
from bench.gpu.report import HOW, absent_text, limits_text, parser, publish
from bench.ops.contest import OURS
from bench.ops.cosine_topk import Rows, Vectors, find_ratios, label, to_unit
from recengine import ops
from recengine.errors import RecengineError
from recengine.serving.bench.report import Bar

BATCHES = (1, 8, 32, 128, 256, 1024)
QUERY_POOL = 2048
MOST_BATCHES = 64  # of the pool
CHECKED = 8  # queries, beside the CPU
CHUNK_ITEMS = 1 << 20
MOST_SCORE_BYTES = 16e9  # that a contender may keep at once
CODE_ALIGNMENT = 32  # bytes, of an item's 8-bit code

MISSION = (10_000_000, 128)  # that the bars are for
READ_SHARE = 0.8  # of the copy's rate, up to batch 128
MATMUL_SHARE = 0.6  # of the bf16 product's rate, at batch 1024
TORCH_RATIOS = {1: 2.0, 32: 4.0, 256: 6.0}  # beside the fastest torch with fp32 scores


@dataclasses.dataclass(frozen=True)
class Searcher:
    """One way to search.

    Attributes:
        prepare: what queries [batch, dim] become before the clock runs.
        search: the call that is timed.
        rows: the rows [batch, k] of its answer, on the host.
        wait: for its answer.
        exact: whether items and scores are fp32, so that it must find the same items.
        score_bytes: that it keeps at once for every query.
    """

    prepare: Callable[[Vectors], Any]
    search: Callable[[Any], Any]
    rows: Callable[[Any], Rows]
    wait: Callable[[Any], object]
    exact: bool = True
    score_bytes: int = 0

    def contender(self, batches: Sequence[Vectors]) -> Contender:
        """The search over a pool of queries."""
        prepared = [self.prepare(batch) for batch in batches]
        return Contender(lambda i: self.search(prepared[i]), self.wait)


def torch_searchers(
    frameworks: Frameworks, items: Vectors, k: int, wait: Callable[[Any], object]
) -> dict[str, Searcher]:
    """torch.topk of a product: of all scores, and chunk by chunk; by type of items and scores."""
    torch = frameworks.torch
    assert torch is not None
    torch.set_float32_matmul_precision("highest")  # no TF32
    full = frameworks.to_gpu(items)
    half = full.to(torch.bfloat16)

    def to_type(dtype: Any, queries: Vectors) -> Any:
        return frameworks.to_gpu(queries).to(dtype)

    def product(queries: Any, chunk: Any) -> Any:
        return queries @ chunk.T

    def mixed_product(queries: Any, chunk: Any) -> Any:
        return torch.mm(queries, chunk.T, out_dtype=torch.float32)

    kinds = {
        "torch, fp32": (full, product, 4),
        "torch, bf16 items, fp32 scores": (half, mixed_product, 4),
        "torch, bf16": (half, product, 2),
    }
    found = {}
    for name, (vectors, scores, score_bytes) in kinds.items():
        for suffix, size in (("", len(items)), (", chunked", CHUNK_ITEMS)):
            if suffix and size >= len(items):
                continue
            found[name + suffix] = Searcher(
                prepare=functools.partial(to_type, vectors.dtype),
                search=chunked_topk(torch, vectors.split(size), scores, k),
                rows=lambda answer: to_host(answer[1]),
                wait=wait,
                exact=vectors is full,
                score_bytes=score_bytes * size,
            )
    return found


def chunked_topk(
    torch: Any, chunks: Sequence[Any], product: Callable[[Any, Any], Any], k: int
) -> Callable[[Any], tuple[Any, Any]]:
    """The search for the best scores of every chunk, and of those the best."""

    def search(queries: Any) -> tuple[Any, Any]:
        with torch.inference_mode():
            scores, rows, first = [], [], 0
            for chunk in chunks:
                best = torch.topk(product(queries, chunk), min(k, len(chunk)))
                scores.append(best.values)
                rows.append(best.indices + first)
                first += len(chunk)
            if len(chunks) == 1:
                return scores[0], rows[0]
            last = torch.topk(torch.cat(scores, dim=1), k)
            return last.values, torch.cat(rows, dim=1).gather(1, last.indices)

    return search


def faiss_searcher(faiss: Any, items: Vectors, k: int) -> Searcher:
    """A flat index of inner products; queries and answers are on the host."""
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), items.shape[1])
    index.add(items)
    return Searcher(
        prepare=lambda queries: queries,
        search=lambda queries: index.search(queries, k),
        rows=lambda answer: np.asarray(answer[1]),
        wait=lambda answer: None,
    )


def jax_searcher(jax: Any, items: Vectors, k: int) -> Searcher:
    """jax.lax.top_k of a product in fp32, compiled."""
    vectors = jax.device_put(items)

    def search(queries: Any, vectors: Any) -> Any:
        product = jax.numpy.dot(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.top_k(product, k)

    compiled = jax.jit(search)
    return Searcher(
        prepare=jax.device_put,
        search=lambda queries: compiled(queries, vectors),
        rows=lambda answer: np.asarray(answer[1]),
        wait=jax.block_until_ready,
        score_bytes=4 * len(items),
    )


def find_searchers(
    machine: Machine, frameworks: Frameworks, index: ops.DeviceItemIndex, items: Vectors, k: int
) -> dict[str, Searcher]:
    """Ours and those of the frameworks that are there."""

    def wait(answer: Any) -> None:
        machine.synchronize()

    found = {
        OURS: Searcher(
            prepare=frameworks.to_gpu,
            search=lambda queries: ops.cosine_topk(index, queries, k, check=False),
            rows=lambda answer: to_host(answer[0]),
            wait=wait,
        )
    }
    if frameworks.torch is not None:
        found |= torch_searchers(frameworks, items, k, wait)
    if frameworks.faiss is not None:
        found["faiss"] = faiss_searcher(frameworks.faiss, items, k)
    if frameworks.jax is not None:
        found["jax"] = jax_searcher(frameworks.jax, items, k)
    return found


def check_ours(
    frameworks: Frameworks,
    cpu_index: ops.ItemIndex,
    index: ops.DeviceItemIndex,
    queries: Vectors,
    k: int,
) -> Rows:
    """Our rows [batch, k], once they are the CPU's, with and without a check of the arrays.

    Raises:
        RecengineError: a row or a bit of a score differs.
    """
    on_gpu = frameworks.to_gpu(queries)
    checked = [to_host(found) for found in ops.cosine_topk(index, on_gpu, k)]
    unchecked = [to_host(found) for found in ops.cosine_topk(index, on_gpu, k, check=False)]
    expected: tuple[Any, Any] = ops.cosine_topk(cpu_index, queries[:CHECKED], k)
    for on_cpu, wanted, found in zip(expected, checked, unchecked, strict=True):
        if not np.array_equal(wanted[:CHECKED], on_cpu):
            raise RecengineError("[bench] recengine's answers are not those of the CPU")
        if not np.array_equal(found, wanted):
            raise RecengineError("[bench] recengine's answers are others without a check")
    return checked[0]


def share_found(
    name: str, found: Rows, ours: Rows, exact: Callable[[Rows], Vectors] | None
) -> float:
    """How many of our items [batch, k] a contender found.

    Args:
        name: of the contender.
        found: its items.
        ours: our items.
        exact: the scores of items, of a contender that must find items as good as ours.

    Raises:
        RecengineError: it does not, up to scores that fp32 rounds differently.
    """
    if exact is not None and np.abs(np.sort(exact(found)) - np.sort(exact(ours))).max() > 1e-5:
        raise RecengineError(f"[bench] {name} finds other items than recengine")
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(ours, found, strict=True)]))


def measure(
    searchers: Mapping[str, Searcher],
    items: Vectors,
    batches: Sequence[Vectors],
    ours: Rows,
    plan: Plan,
) -> dict[str, Any]:
    """One batch size: a line of the table, as JSON values; `ours` answers the first batch."""
    batch = len(batches[0])

    def scores(rows: Rows) -> Vectors:
        found: Vectors = np.einsum("qkd,qd->qk", items[rows[:CHECKED]], batches[0][:CHECKED])
        return found

    fitting = {n: s for n, s in searchers.items() if s.score_bytes * batch <= MOST_SCORE_BYTES}
    contenders, failed = without_failing({n: s.contender(batches) for n, s in fitting.items()})
    failed |= dict.fromkeys(searchers.keys() - fitting.keys(), "its scores do not fit")
    shares = {}
    for name, contender in contenders.items():
        searcher = searchers[name]
        exact = scores if searcher.exact else None
        shares[name] = share_found(name, searcher.rows(contender.run(0)), ours, exact)
    return {
        "batch": batch,
        **times_json(race(contenders, len(batches), plan)),
        "failed": failed,
        "share_found": shares,
    }


def limit_shares(
    limits: Limits, rows: int, dim: int, batch: int, ms: float
) -> dict[str, float | None]:
    """A call's rate of reading codes beside the copy's; its products' beside torch's of bf16."""
    code_bytes = rows * -(-dim // CODE_ALIGNMENT) * CODE_ALIGNMENT
    bf16 = limits.matmul_flops.get("bf16")
    flops = 2 * rows * dim * batch / (ms / 1e3)
    return {
        "copy_share": limits.copy_share(code_bytes, ms),
        "matmul_share": None if bf16 is None else flops / bf16,
    }


def run(
    machine: Machine,
    frameworks: Frameworks,
    sizes: Sequence[tuple[int, int]],
    plan: Plan,
    k: int = 100,
    batch_sizes: Sequence[int] = BATCHES,
) -> Iterator[list[dict[str, Any]]]:
    """Catalogs of random unit vectors, by rows and dimensions; all until now, after each batch."""
    results: list[dict[str, Any]] = []
    for rows, dim in sizes:
        rng = np.random.default_rng(0)
        items, pool = (
            to_unit(rng.standard_normal((count, dim), dtype=np.float32))
            for count in (rows, QUERY_POOL)
        )
        cpu_index = ops.ItemIndex(items)
        index = ops.DeviceItemIndex(cpu_index)
        searchers = find_searchers(machine, frameworks, index, items, k)
        points: list[dict[str, Any]] = []
        results.append({"kind": "gaussian", "rows": rows, "dim": dim, "k": k, "points": points})
        for batch in batch_sizes:
            starts = range(0, QUERY_POOL - batch + 1, batch)[:MOST_BATCHES]
            batches = [pool[start : start + batch] for start in starts]
            ours = check_ours(frameworks, cpu_index, index, batches[0], k)
            point = measure(searchers, items, batches, ours, plan)
            point |= limit_shares(machine.limits, rows, dim, batch, point["ms"][OURS])
            points.append(point)
            print(f"{rows:,} x {dim}, batch {batch}: {point['ms'][OURS]:.3f} ms", flush=True)
            yield results


def find_bars(results: Sequence[dict[str, Any]]) -> list[Bar]:
    """What was promised of the mission's catalog."""
    return [
        bar
        for result in results
        if (result["rows"], result["dim"]) == MISSION
        for point in result["points"]
        for bar in _point_bars(f"{label(result)}, batch {point['batch']}", point)
    ]


def _point_bars(name: str, point: dict[str, Any]) -> list[Bar]:
    batch, bars = point["batch"], []
    if batch <= 128:
        bars.append(Bar(f"{name}: share of the copy's rate", READ_SHARE, point["copy_share"], True))
    if batch == 1024 and point["matmul_share"] is not None:
        found = point["matmul_share"]
        bars.append(Bar(f"{name}: share of the bf16 product's rate", MATMUL_SHARE, found, True))
    peers = [ms for peer, ms in point["ms"].items() if peer.startswith("torch") and "fp32" in peer]
    if batch in TORCH_RATIOS and peers:
        ratio = min(peers) / point["ms"][OURS]
        bars.append(
            Bar(f"{name}: torch with fp32 scores over ours", TORCH_RATIOS[batch], ratio, True)
        )
    return bars


def table(result: dict[str, Any]) -> str:
    """Milliseconds of every contender, one line per batch, as markdown."""
    names = list(dict.fromkeys(name for point in result["points"] for name in point["ms"]))
    heads = [*names, "recengine, single", "best peer ÷ recengine", "of the copy"]
    heads.append("of the bf16 product")
    lines = [
        f"### {result['kind']}, {result['rows']:,} × {result['dim']}, K = {result['k']}",
        "",
        f"| batch | {' | '.join(heads)} |",
        "|---:" * (len(heads) + 1) + "|",
    ]
    for point in result["points"]:
        cells = [_cell(point["ms"].get(name), ".3f") for name in names]
        cells += [f"{point['single_ms'][OURS]:.3f}", _cell(point["ratio"], ".2f")]
        cells += [f"{point['copy_share']:.0%}", _cell(point["matmul_share"], ".0%")]
        lines.append(f"| {point['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def found_text(points: Sequence[dict[str, Any]]) -> str:
    """How many of our items the others find at worst; bf16 scores round."""
    worst: dict[str, float] = {}
    for point in points:
        for name, share in point["share_found"].items():
            worst[name] = min(share, worst.get(name, 1.0))
    shares = [f"{name} {share:.2%}" for name, share in worst.items() if name != OURS]
    return f"Of our items the others find at least: {', '.join(shares)}." if shares else ""


def write(
    out: Path, machine: Machine, frameworks: Frameworks, results: Sequence[dict[str, Any]]
) -> Path:
    """The result's files; the path without suffix."""
    points = [point for result in results for point in result["points"]]
    return publish(
        out,
        "gpu-cosine-topk",
        "Exact top-K on a GPU",
        machine,
        {"absent": frameworks.absent, "results": results},
        [
            f"Milliseconds of a call from Python. {HOW} recengine does not check its arrays. Its "
            "answers were those of the CPU, to the bit. Of the copy: every 8-bit code read once, "
            "beside what a copy reads and writes; codes that fit in the GPU's cache can be read "
            "faster. Of the bf16 product: two operations for every value of item and query.",
            f"{limits_text(machine.limits)} {absent_text(frameworks.absent, points)}",
            found_text(points),
            *[table(result) for result in results],
        ],
        find_ratios(results),
        find_bars(results),
    )


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--rows", type=int, default=MISSION[0], help="of the larger one")
    arguments = arguments_parser.parse_args()
    frameworks = find_frameworks()
    machine = measure_machine(frameworks.torch)
    sizes = [(1_000_000, 64), (arguments.rows, MISSION[1])]
    for results in run(machine, frameworks, sizes, Plan(arguments.rounds)):
        path = write(arguments.out, machine, frameworks, results)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
