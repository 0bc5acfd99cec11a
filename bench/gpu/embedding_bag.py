"""Embedding bags on a GPU beside torch: the same rows and ids, in one run.

Before the contenders are timed their sums are compared with fp64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpu.contest import Contender, Plan, race, times_json, without_failing
from bench.gpu.frameworks import Frameworks, find_frameworks, to_host
from bench.gpu.machine import Limits, Machine, measure_machine
from bench.gpu.report import HOW, absent_text, limits_text, parser, publish
from bench.ops.contest import OURS
from bench.ops.embedding_bag import (
    IDS_IN_POOL,
    ZIPF,
    Case,
    Rows,
    Tables,
    check,
    find_ratios,
    label,
    make_ids,
    make_rows,
    our_tables,
)
from recengine import ops
from recengine.serving.bench.report import Bar

CALLS = "torch, a call a table"
STACKED = "torch, tables stacked"
SHAPES = ((1, 1), (64, 20), (1024, 20), (4096, 1), (65536, 1))
DLRM_SHAPES = ((1, 1), (64, 20), (4096, 1))
SMALL = ((1, 1), (64, 20))
LARGE = ((1024, 20), (65536, 1))
COPY_SHARES = {512: 0.8, 128: 0.65}  # of the copy's rate, by bytes of a row
SMALL_RATIO = 8.0


def cases(rows: int) -> list[Case]:
    """All that is measured, tables of one kind next to each other."""
    row_types: tuple[ops.RowType, ...] = ("fp32", "fp16", "int8", "int4")
    kinds = [Tables(8, rows, dim, row_type) for dim in (32, 64, 128) for row_type in row_types]
    dlrm = [Tables(26, rows, 64, row_type) for row_type in ("fp32", "int8")]
    return [Case(tables, *shape) for tables in kinds for shape in SHAPES] + [
        Case(tables, *shape) for tables in dlrm for shape in DLRM_SHAPES
    ]


class Contest:
    """The contenders over one set of tables."""

    def __init__(
        self, tables: Tables, machine: Machine, frameworks: Frameworks, rng: np.random.Generator
    ) -> None:
        self.tables = tables
        self.frameworks = frameworks
        self.wait: Callable[[Any], None] = lambda _: machine.synchronize()
        self.stored = make_rows(tables, rng)
        self.weights: list[Any] = []
        if tables.row_type in ("int8", "int4"):
            self.ours = [ops.DeviceTable(table) for table in our_tables(tables, self.stored)]
        else:
            self.weights = [frameworks.to_gpu(rows) for rows in self.stored]
            self.ours = [ops.DeviceTable.from_array(weight) for weight in self.weights]

    def contenders(self, ids: Sequence[Rows]) -> dict[str, Contender]:
        """Each with its inputs laid out as it wants them, before the clock runs."""
        flat = [self.frameworks.to_gpu(np.ascontiguousarray(i).reshape(-1)) for i in ids]
        batch, count, length = ids[0].shape
        lengths = self.frameworks.to_gpu(np.full((batch, count), length, np.int32))
        found = {OURS: Contender(lambda i: self.run(flat[i], lengths, length, False), self.wait)}
        if self.frameworks.torch is not None and self.weights:
            found |= torch_bags(self.frameworks, self.weights, ids, self.wait)
        return found

    def run(self, flat: Any, lengths: Any, length: int, check: bool) -> Any:
        """Our call."""
        return ops.embedding_bag(
            self.ours, flat, lengths, pooling="sum", max_length=length, check=check
        )

    def checked(self, ids: Rows) -> npt.NDArray[Any]:
        """The answer of our call that looks for what is wrong with its arrays."""
        batch, count, length = ids.shape
        flat = self.frameworks.to_gpu(np.ascontiguousarray(ids).reshape(-1))
        lengths = self.frameworks.to_gpu(np.full((batch, count), length, np.int32))
        return to_host(self.run(flat, lengths, length, True))


def torch_bags(
    frameworks: Frameworks,
    weights: Sequence[Any],
    ids: Sequence[Rows],
    wait: Callable[[Any], object],
) -> dict[str, Contender]:
    """A call a table, and one call over all tables as one, whose ids are shifted."""
    torch, to_gpu = frameworks.torch, frameworks.to_gpu
    assert torch is not None
    batch, count, length = ids[0].shape
    stacked_weight = torch.cat(list(weights))
    shifts = len(weights[0]) * np.arange(count)[:, None]
    columns = [[to_gpu(column) for column in i.transpose(1, 0, 2).reshape(count, -1)] for i in ids]
    shifted = [to_gpu((i + shifts).reshape(-1)) for i in ids]
    starts = to_gpu(np.arange(0, batch * length, length))
    all_starts = to_gpu(np.arange(0, batch * count * length, length))
    bag = torch.nn.functional.embedding_bag

    def calls(i: int) -> Any:
        with torch.inference_mode():
            return [
                bag(column, weight, starts, mode="sum")
                for column, weight in zip(columns[i], weights, strict=True)
            ]

    def stacked(i: int) -> Any:
        with torch.inference_mode():
            return bag(shifted[i], stacked_weight, all_starts, mode="sum").view(batch, -1)

    return {CALLS: Contender(calls, wait), STACKED: Contender(stacked, wait)}


def measure(contest: Contest, case: Case, zipf: bool, plan: Plan, limits: Limits) -> dict[str, Any]:
    """One line of the table, as JSON values."""
    tables = case.tables
    rows = case.batch * tables.count * case.length
    pool = max(8, min(64, IDS_IN_POOL // rows))
    ids = make_ids(case, zipf, pool, np.random.default_rng(1))
    contenders, failed = without_failing(contest.contenders(ids))
    answers = {name: lambda c=c: as_sums(c.run(0)) for name, c in contenders.items()}
    checked = {"recengine, checked": lambda: contest.checked(ids[0])}
    check(tables, contest.stored, checked | answers, ids[0])
    times = times_json(race(contenders, pool, plan))
    ours = times["ms"][OURS]
    moved = moved_bytes(case)
    point = {
        "tables": str(tables),
        "row_bytes": tables.row_bytes,
        "batch": case.batch,
        "length": case.length,
        "ids": f"Zipf {ZIPF}" if zipf else "uniform",
        **times,
        "failed": failed,
        "compared": list(answers),
        "moved_bytes": moved,
        "copy_share": limits.copy_share(moved, ours),
    }
    print(f"{label(point)}: {1e3 * ours:.1f} us, {point['copy_share']:.0%} of the copy", flush=True)
    return point


def moved_bytes(case: Case) -> int:
    """What a call must read and write at least: rows, ids, lengths and sums."""
    bags = case.batch * case.tables.count
    ids = bags * case.length
    return ids * (case.tables.row_bytes + 8) + bags * 4 * (1 + case.tables.dim)


def as_sums(found: Any) -> npt.NDArray[Any]:
    """On the host, columns of several calls side by side."""
    columns = found if isinstance(found, list) else [found]
    return np.hstack([to_host(column) for column in columns])


def find_bars(points: Sequence[dict[str, Any]]) -> list[Bar]:
    """What was promised of uniform ids: large batches beside a copy, small ones beside torch."""
    bars = []
    for point in points:
        shape = point["batch"], point["length"]
        if point["ids"] != "uniform":
            continue
        if shape in LARGE and point["row_bytes"] in COPY_SHARES:
            wanted = COPY_SHARES[point["row_bytes"]]
            name = f"{label(point)}: share of the copy's rate"
            bars.append(Bar(name, wanted, point["copy_share"], True))
        if shape in SMALL and CALLS in point["ms"]:
            ratio = point["ms"][CALLS] / point["ms"][OURS]
            bars.append(Bar(f"{label(point)}: {CALLS} over ours", SMALL_RATIO, ratio, True))
    return bars


def table(points: Sequence[dict[str, Any]]) -> str:
    """Microseconds of every contender, one line per case, as markdown."""
    names = list(dict.fromkeys(name for point in points for name in point["ms"]))
    heads = [head for name in names for head in (name, f"{name}, single")]
    lines = [
        f"| tables | batch × ids | ids | {' | '.join(heads)} | best peer ÷ recengine | GB/s "
        "| of the copy |",
        "|---|---|---|" + "---:|" * (len(heads) + 3),
    ]
    for point in points:
        cells = [
            f"{1e3 * point[kind][name]:.1f}" if name in point[kind] else ""
            for name in names
            for kind in ("ms", "single_ms")
        ]
        ratio = "" if point["ratio"] is None else f"{point['ratio']:.2f}"
        rate = point["moved_bytes"] / point["ms"][OURS] / 1e6
        lines.append(
            f"| {point['tables']} | {point['batch']} × {point['length']} | {point['ids']} "
            f"| {' | '.join(cells)} | {ratio} | {rate:,.0f} | {point['copy_share']:.0%} |"
        )
    return "\n".join(lines)


def run(
    machine: Machine, frameworks: Frameworks, wanted: Sequence[Case], plan: Plan
) -> Iterator[list[dict[str, Any]]]:
    """Every case, uniform and Zipf ids; all points until now, after each kind of table."""
    rng = np.random.default_rng(0)
    points: list[dict[str, Any]] = []
    for tables, group in itertools.groupby(wanted, lambda case: case.tables):
        contest = Contest(tables, machine, frameworks, rng)
        points += [
            measure(contest, case, zipf, plan, machine.limits)
            for case in group
            for zipf in (False, True)
        ]
        del contest  # its tables go before the next ones come
        yield points


def write(
    out: Path, machine: Machine, frameworks: Frameworks, points: Sequence[dict[str, Any]]
) -> Path:
    """The result's files; the path without suffix."""
    absent = {name: why for name, why in frameworks.absent.items() if name == "torch"}
    return publish(
        out,
        "gpu-embedding-bag",
        "Embedding bags on a GPU",
        machine,
        {"absent": absent, "points": points},
        [
            f"Microseconds of a call from Python, sum pooling, fp32 sums. {HOW} recengine is told "
            "the longest bag and does not check its arrays. GB/s: of what a call must move at "
            "least, which is the rows, ids and lengths read and the sums written. Zipf: hot rows "
            "stay in caches, so the copy's rate does not bind. Sums were compared with fp64.",
            f"{limits_text(machine.limits)} {absent_text(absent, points)}",
            table(points),
        ],
        find_ratios(points),
        find_bars(points),
    )


def main() -> None:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--rows", type=int, default=1_000_000, help="of a table")
    arguments = arguments_parser.parse_args()
    frameworks = find_frameworks()
    machine = measure_machine(frameworks.torch)
    for points in run(machine, frameworks, cases(arguments.rows), Plan(arguments.rounds)):
        path = write(arguments.out, machine, frameworks, points)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
