"""Embedding bags beside torch and FBGEMM: the same rows, ids and threads, in one run.

Before the contenders are timed their sums are compared with fp64. FBGEMM reads the same bytes as
recengine: its fused int8 and int4 rows are taken as they are. All rows lie in huge pages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.ops import checked_ids, huge_pages
from bench.ops.contest import OURS, Contender, parser, publish, race, spread, times_json
from bench.ops.limits import Limits, measure_limits
from recengine import ops
from recengine.errors import RecengineError
from recengine.serving.bench.report import Bar

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

PACKAGES = ("torch", "fbgemm-gpu-cpu")
FBGEMM = "FBGEMM"
FBGEMM_SPLIT = "FBGEMM, tables on two threads"
TORCH = "torch"
TORCH_HALF = "torch, 16-bit sums"  # of 16-bit rows: not what is asked, so no peer
ZIPF = 1.05
LINE_BYTES = 64
CHECKED_USERS = 64
IDS_IN_POOL = 1 << 22
HALF_EPS = {"fp16": 2.0**-10, "bf16": 2.0**-7}  # of torch's sums of such rows
OF_RANDOM_LINES = 0.75  # of the rate at which they can be read


@dataclasses.dataclass(frozen=True)
class Tables:
    """Tables [count] of [rows, dim] in one row type."""

    count: int
    rows: int
    dim: int
    row_type: ops.RowType

    @property
    def row_bytes(self) -> int:
        """As FBGEMM stores a row: int8 and int4 with fp16 scale and bias inline."""
        code_bits = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}[self.row_type]
        return self.dim * code_bits // 8 + (4 if code_bits < 16 else 0)

    @property
    def lines(self) -> int:
        """Cache lines that a row touches."""
        return -(-self.row_bytes // LINE_BYTES)

    def __str__(self) -> str:
        return f"{self.count} × {self.rows:,} × {self.dim} {self.row_type}"


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: `batch` users, `length` ids of every table for each.

    Attributes:
        bar: best peer over ours, at least.
        of_limit: the limit over ours, at least.
    """

    tables: Tables
    batch: int
    length: int
    bar: float | None = None
    of_limit: float | None = None


def cases() -> list[Case]:
    """All that is measured, tables of one kind next to each other."""
    bars = {
        ("fp32", 1): 8.0,
        ("fp32", 64): 2.5,
        ("fp32", 1024): 2.0,
        ("int8", 1): 8.0,
        ("int8", 64): 2.5,
        ("int8", 1024): 2.5,
        ("int8", 4096): 3.0,
    }
    shapes = [(1, 1), (64, 20), (1024, 20), (4096, 1)]
    of_limit = {("fp32", 1024): OF_RANDOM_LINES, ("int8", 1024): OF_RANDOM_LINES}
    row_types: tuple[ops.RowType, ...] = ("fp32", "fp16", "bf16", "int8", "int4")
    mission = [
        Case(
            Tables(8, 1_000_000, 64, row_type),
            batch,
            length,
            bars.get((row_type, batch)),
            of_limit.get((row_type, batch)),
        )
        for row_type in row_types
        for batch, length in shapes
    ]
    dlrm = [Case(Tables(26, 1_000_000, 64, "int8"), batch, 1) for batch in (64, 4096)]
    return [*mission, Case(Tables(32, 100_000, 128, "int4"), 512, 20, 1.5), *dlrm]


def make_rows(tables: Tables, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    """The stored rows of every table, from a cache line on; NumPy asks for huge pages."""
    made: list[npt.NDArray[Any]] = []
    for _ in range(tables.count):
        memory = np.empty(tables.rows * tables.row_bytes + LINE_BYTES, np.uint8)
        start = -memory.ctypes.data % LINE_BYTES
        rows = memory[start : start + tables.rows * tables.row_bytes].reshape(tables.rows, -1)
        if tables.row_type in ("fp32", "fp16", "bf16"):
            values = rng.standard_normal((tables.rows, tables.dim), dtype=np.float32)
            if tables.row_type == "bf16":
                made.append(rows.view(np.uint16))
                made[-1][:] = values.view(np.uint32) >> 16
            else:
                made.append(rows.view(np.float32 if tables.row_type == "fp32" else np.float16))
                made[-1][:] = values
        else:
            rows[:] = rng.integers(0, 256, rows.shape, np.uint8)
            head = rng.uniform(0.01, 0.02, (tables.rows, 2)).astype(np.float16)
            rows[:, :4] = head.view(np.uint8)
            made.append(rows)
    return made


def make_ids(case: Case, zipf: bool, count: int, rng: np.random.Generator) -> list[Rows]:
    """Ids [batch, tables, length], `count` times; Zipf ranks are spread over the rows."""
    shape = (count, case.batch, case.tables.count, case.length)
    rows = case.tables.rows
    if not zipf:
        return list(rng.integers(0, rows, shape))
    weights = np.arange(1, rows + 1, dtype=np.float64) ** -ZIPF
    ranks = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(shape))
    return list(rng.permutation(rows)[np.minimum(ranks, rows - 1)])


def our_tables(tables: Tables, stored: Sequence[npt.NDArray[Any]]) -> list[ops.EmbeddingTable]:
    """The stored rows as they are."""
    if tables.row_type == "int8" or tables.row_type == "int4":
        return [ops.EmbeddingTable.from_fused(rows, tables.dim, tables.row_type) for rows in stored]
    return [ops.EmbeddingTable(rows) for rows in stored]


def fbgemm_module(tables: Tables, stored: Sequence[npt.NDArray[Any]]) -> Any:
    """FBGEMM's table-batched embedding for inference, with a copy of the stored rows."""
    import torch
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    kind = {
        "fp32": SparseType.FP32,
        "fp16": SparseType.FP16,
        "int8": SparseType.INT8,
        "int4": SparseType.INT4,
    }[tables.row_type]
    module = IntNBitTableBatchedEmbeddingBagsCodegen(
        [
            (str(i), tables.rows, tables.dim, kind, EmbeddingLocation.HOST)
            for i in range(len(stored))
        ],
        device="cpu",
        pooling_mode=PoolingMode.SUM,
        output_dtype=SparseType.FP32,
    )
    module.initialize_weights()
    weights = module.split_embedding_weights(split_scale_shifts=False)
    for (target, _), rows in zip(weights, stored, strict=True):
        target.copy_(torch.from_numpy(rows.view(np.uint8)))
    return module


class Contest:
    """The contenders over one set of tables."""

    def __init__(self, tables: Tables, threads: int, rng: np.random.Generator) -> None:
        import torch

        torch.set_num_threads(threads)
        self.tables = tables
        self.threads = threads
        self.stored = make_rows(tables, rng)
        self.ours = our_tables(tables, self.stored)
        half = tables.count // 2
        self.modules = (  # all tables, and both halves
            [
                fbgemm_module(tables, part)
                for part in (self.stored, self.stored[:half], self.stored[half:])
            ]
            if tables.row_type != "bf16"  # FBGEMM's for inference has no such rows on a CPU
            else []
        )
        self.weights: list[Any] = []
        if tables.row_type in ("fp32", "fp16", "bf16"):
            self.weights = [torch.from_numpy(rows) for rows in self.stored]
        if tables.row_type == "bf16":
            self.weights = [weight.view(torch.bfloat16) for weight in self.weights]
        self.pool = ThreadPoolExecutor(1)

    def memory(self) -> dict[str, huge_pages.Memory]:
        """Every contender's rows."""
        found: dict[str, huge_pages.Memory] = {OURS: self.stored}
        if self.modules:
            whole, *halves = (module.weights_host.numpy() for module in self.modules)
            found |= {FBGEMM: [whole], FBGEMM_SPLIT: halves}
        return found | ({TORCH: self.stored} if self.weights else {})

    def contenders(self, ids: Sequence[Rows]) -> dict[str, Contender]:
        """Each with its inputs laid out as it wants them, before the clock runs."""
        import torch

        batch, count, length = ids[0].shape
        lengths = np.full((batch, count), length, np.int32)
        flat = [np.ascontiguousarray(i).reshape(-1) for i in ids]
        by_table = [np.ascontiguousarray(i.transpose(1, 0, 2)) for i in ids]
        stacked = [torch.from_numpy(i.reshape(-1).astype(np.int32)) for i in by_table]
        offsets = torch.arange(0, batch * count * length + 1, length, dtype=torch.int32)
        half = count // 2 * batch
        middle = half * length
        split = [(i[:middle].clone(), i[middle:].clone()) for i in stacked]
        first, second = offsets[: half + 1], (offsets[half:] - offsets[half]).contiguous()

        def ours(i: int) -> Floats:
            return ops.embedding_bag(
                self.ours, flat[i], lengths, pooling="sum", threads=self.threads
            )

        def fbgemm(module: Any, ids: Any, offsets: Any) -> Any:
            with torch.inference_mode():  # of the thread that calls
                return module(ids, offsets)

        def fbgemm_on_two_threads(i: int) -> Any:
            _, one, two = self.modules
            other = self.pool.submit(fbgemm, one, split[i][0], first)
            result = fbgemm(two, split[i][1], second)
            return other.result(), result

        found: dict[str, Contender] = {OURS: ours}
        if self.modules:
            found[FBGEMM] = lambda i: fbgemm(self.modules[0], stacked[i], offsets)
            found[FBGEMM_SPLIT] = fbgemm_on_two_threads
        if self.weights:
            starts = torch.arange(0, batch * length, length)
            columns = [[torch.from_numpy(table.reshape(-1)) for table in i] for i in by_table]

            def torch_bags(i: int) -> Any:
                with torch.inference_mode():
                    return [
                        torch.nn.functional.embedding_bag(table_ids, weight, starts, mode="sum")
                        for table_ids, weight in zip(columns[i], self.weights, strict=True)
                    ]

            def torch_fp32(i: int) -> Any:
                with torch.inference_mode():
                    return [sums.float() for sums in torch_bags(i)]

            halves = self.tables.row_type in HALF_EPS
            found |= {TORCH: torch_fp32, TORCH_HALF: torch_bags} if halves else {TORCH: torch_bags}
        return found


def check(
    tables: Tables,
    stored: Sequence[npt.NDArray[Any]],
    answers: Mapping[str, Callable[[], npt.NDArray[Any]]],
    ids: Rows,
    eps: Mapping[str, float] | None = None,
) -> None:
    """Every contender's sums [batch, width] against fp64, for users all over the batch.

    Args:
        tables: of all contenders.
        stored: their rows.
        answers: the sums, by contender.
        ids: [batch, tables, length].
        eps: of contenders whose sums were coarser than the type that they are in here.

    Raises:
        RecengineError: a sum is off by more than rounding to the output's type allows.
    """
    places = np.unique(np.linspace(0, len(ids) - 1, CHECKED_USERS, dtype=np.int64))
    users = ids[places]
    columns = [
        our_tables(tables, [rows[table_ids.reshape(-1)]])[0]
        .to_array()
        .astype(np.float64)
        .reshape(len(users), ids.shape[2], -1)
        .sum(axis=1)
        for rows, table_ids in zip(stored, users.transpose(1, 0, 2), strict=True)
    ]
    expected = np.concatenate(columns, axis=1)
    for name, answer in answers.items():
        sums = answer()[places]
        error = np.abs(sums - expected).max()
        step = (eps or {}).get(name, np.finfo(sums.dtype).eps)
        if error > 32 * step * np.abs(expected).max():
            raise RecengineError(f"[bench] {name} is off by {error:.2g} from fp64")


def as_sums(found: Any) -> npt.NDArray[Any]:
    """What a contender on the CPU returned: one array, or columns of them; bf16 as fp32."""
    import torch

    if isinstance(found, (list, tuple)):
        found = torch.cat(list(found), dim=1)
    if isinstance(found, torch.Tensor) and found.dtype == torch.bfloat16:
        found = found.float()
    return np.asarray(found)


def measure(
    contest: Contest, case: Case, zipf: bool, rounds: int, seconds: float, limits: Limits
) -> dict[str, Any]:
    """One line of the table, as JSON values."""
    rng = np.random.default_rng(1)
    rows = case.batch * case.tables.count * case.length
    ids = make_ids(case, zipf, max(8, min(64, IDS_IN_POOL // rows)), rng)
    contenders = contest.contenders(ids)
    answers = {name: lambda run=run: as_sums(run(0)) for name, run in contenders.items()}
    step = HALF_EPS.get(case.tables.row_type)
    eps = None if step is None else {TORCH: step, TORCH_HALF: step}
    check(case.tables, contest.stored, answers, ids[0], eps)
    taken = race(contenders, len(ids), rounds, seconds)
    half = taken.pop(TORCH_HALF, None)
    times = times_json(taken)
    ms, best = times["ms"], times["best_peer"]
    least = limits.lookup_ms(rows, case.tables.lines)
    point = {
        "tables": str(case.tables),
        "batch": case.batch,
        "length": case.length,
        "ids": f"Zipf {ZIPF}" if zipf else "uniform",
        **times,
        "torch_16_bit_ms": None if half is None else half.median,
        "least_ms": least,
        "bar": None if zipf else case.bar,
        "bar_of_limit": None if zipf else case.of_limit,
    }
    print(
        f"{label(point)}: {1e3 * ms[OURS]:.1f} us, {best} {1e3 * ms[best]:.1f} us, "
        f"ratio {point['ratio']:.2f}, limit {1e3 * least:.1f} us",
        flush=True,
    )
    return point


def label(point: dict[str, Any]) -> str:
    """What was measured, in one line."""
    return f"{point['tables']}, {point['batch']} × {point['length']}, {point['ids']}"


def find_ratios(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The best peer's time over ours, by case, where there was a peer."""
    return {label(point): point["ratio"] for point in points if point["ratio"] is not None}


def table(points: Sequence[dict[str, Any]]) -> str:
    """Microseconds of every contender, one line per case, as markdown."""
    peers = list(dict.fromkeys(name for point in points for name in point["ms"] if name != OURS))
    names = [OURS, *peers]
    lines = [
        f"| tables | batch × ids | ids | {OURS} | 25–75 % | {' | '.join(peers)} "
        f"| best peer ÷ recengine | limit | of the limit | {TORCH_HALF} |",
        "|---|---|---|" + "---:|" * (len(names) + 5),
    ]
    for point in points:
        times = [f"{1e3 * point['ms'][name]:.1f}" if name in point["ms"] else "" for name in names]
        times.insert(1, spread(point, 1e3, 1))
        half = point["torch_16_bit_ms"]
        lines.append(
            f"| {point['tables']} | {point['batch']} × {point['length']} | {point['ids']} "
            f"| {' | '.join(times)} | {point['ratio']:.2f} | {1e3 * point['least_ms']:.1f} "
            f"| {of_limit(point):.0%} | {'' if half is None else f'{1e3 * half:.1f}'} |"
        )
    return "\n".join(lines)


def of_limit(point: dict[str, Any]) -> float:
    """The rate of the lines of all rows over that of random lines."""
    return float(point["least_ms"] / point["ms"][OURS])


def find_bars(points: Sequence[dict[str, Any]]) -> list[Bar]:
    """Of the contests."""
    return [
        Bar(f"{label(point)}: best peer over ours", point["bar"], point["ratio"], True)
        for point in points
        if point["bar"] is not None
    ] + [
        Bar(
            f"{label(point)}: share of the random-line rate",
            point["bar_of_limit"],
            of_limit(point),
            True,
        )
        for point in points
        if point["bar_of_limit"] is not None
    ]


def main() -> None:
    arguments = parser(__doc__).parse_args()
    huge_pages.for_every_malloc()
    threads = ops.usable_cores()
    rounds, seconds = (1, 0.05) if arguments.quick else (arguments.rounds, 0.4)
    limits = measure_limits(arguments.work, threads, quick=arguments.quick)
    rng = np.random.default_rng(0)
    points: list[dict[str, Any]] = []
    pages: dict[str, dict[str, float]] = {}
    contest: Contest | None = None
    for case in cases():
        if arguments.quick:
            smaller = dataclasses.replace(case.tables, rows=case.tables.rows // 10)
            case = dataclasses.replace(case, tables=smaller)
        if contest is None or contest.tables != case.tables:
            contest = None  # its tables go before the next ones come
            contest = Contest(case.tables, threads, rng)
            pages[str(case.tables)] = huge_pages.shares(contest.memory())
        points += [measure(contest, case, zipf, rounds, seconds, limits) for zipf in (False, True)]
    contest = None
    checks = {} if arguments.quick else checked_ids.measure(arguments.work)
    bars = [
        *find_bars(points),
        *huge_pages.find_bars(pages),
        *checked_ids.find_bars(checks),
    ]
    rates = limits.random_lines_per_s
    publish(
        arguments,
        "embedding-bag",
        "Embedding bags",
        limits,
        PACKAGES,
        {"points": points, "huge_pages": pages, "checked_ids": checked_ids.to_json(checks)},
        [
            f"Median microseconds of a call from Python, sum pooling, fp32 output, {threads} "
            "threads. torch's sums of fp16 and bf16 rows are rounded to the rows' type, and made "
            "fp32 in the time of its call; the last column, which is not compared, is the time "
            "without that. FBGEMM has no bf16 rows here. Limit: the cache lines of all rows at the "
            "rate at which this machine read random rows of that many lines in this run: "
            + ", ".join(f"{rate / 1e6:.0f} M lines/s at {n}" for n, rate in rates.items())
            + ". It counts neither ids nor outputs. Zipf: hot rows stay in caches, so the limit "
            "does not bind.",
            table(points),
            huge_pages.HOW,
            huge_pages.table(pages),
            checked_ids.HOW,
            checked_ids.table(checks),
        ],
        find_ratios(points),
        bars,
    )


if __name__ == "__main__":
    main()
