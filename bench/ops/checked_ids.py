"""What it costs that every id is checked: the kernel beside a copy of it without the check."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.compiler import compile_cpp
from recengine import ops
from recengine.errors import RecengineError
from recengine.serving.bench.report import Bar

SOURCES = Path("csrc")
LOOP = Path("ops/embedding_bag_loop.h")
CHECKS = (
    "        outside |= (num_rows - 1 - static_cast<uint64_t>(id)) | static_cast<uint64_t>(id);\n",
    "        if (static_cast<uint64_t>(id) >= num_rows) return -1;\n",
    "  const auto num_rows = static_cast<uint64_t>(table.rows);\n",
)
"""In both ways of the loop, and what they need."""
MOST_COST = 0.03
HOW = (
    "What it costs that every id is checked: the kernel beside a copy without the check, on one "
    "thread. Both run in every round, and a cost is that of a round."
)

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
KERNELS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "amx_int8": ("avx512", "avx512_paced", _AVX512),
    "avx512_vnni": ("avx512", "avx512", _AVX512),
    "avx512": ("avx512", "avx512", _AVX512),
    "avx2": ("avx2", "avx2", _AVX2),
    "portable": ("portable", "portable", ()),
}
"""Of an instruction set: the source of its kernel, the kernel, and what it is compiled with."""


class Cost(NamedTuple):
    """What the check adds to a call.

    Attributes:
        checked_us: a call, the median of all rounds.
        unchecked_us: the same without the check.
        low: share of a round's time that the check adds, 25 % quantile of the rounds.
        median: 50 %.
        high: 75 %.
    """

    checked_us: float
    unchecked_us: float
    low: float
    median: float
    high: float


def measure(folder: Path) -> dict[str, Cost]:
    """Builds both kernels as the product is built and runs them in turns, by case.

    Raises:
        RecengineError: the check is not where this bench takes it out.
    """
    stem, kernel, flags = KERNELS[ops.default_isa()]
    unchecked = folder / "unchecked"
    (unchecked / LOOP).parent.mkdir(parents=True, exist_ok=True)
    text = (SOURCES / LOOP).read_text()
    for line in CHECKS:
        if text.count(line) != 1:
            raise RecengineError(f"[bench] {SOURCES / LOOP}: expected once: {line.strip()}")
        text = text.replace(line, "")
    (unchecked / LOOP).write_text(text)
    quiet = "-Wno-maybe-uninitialized"  # of GCC's own headers of intrinsics
    common = ["-O3", quiet, "-ffp-contract=off", f"-I{SOURCES / 'include'}", f"-I{SOURCES}"]
    source = SOURCES / f"ops/embedding_bag_{stem}.cc"
    name = f"embedding_bag_{kernel}"
    others = {f"embedding_bag_{other}" for of, other, _ in KERNELS.values() if of == stem} - {name}
    renamed = [f"-D{other}=unchecked_{other}" for other in others]  # in the same source
    checked_object = compile_cpp(source, folder / "checked.o", ["-c", *common, *flags])
    unchecked_object = compile_cpp(
        source,
        folder / "unchecked.o",
        ["-c", f"-I{unchecked}", *common, *flags, f"-D{name}=unchecked_kernel", *renamed],
    )
    program = compile_cpp(
        Path(__file__).with_suffix(".cc"),
        folder / "checked_ids",
        [
            *common,
            f"-DCHECKED_KERNEL={name}",
            str(SOURCES / "ops/table.cc"),
            str(checked_object),
            str(unchecked_object),
        ],
    )
    done = subprocess.run([str(program)], check=True, capture_output=True, text=True)
    return {case: find_cost(rounds) for case, rounds in json.loads(done.stdout).items()}


def find_cost(rounds: Sequence[Sequence[float]]) -> Cost:
    """Of the time of a call with and without the check in every round."""
    checked, unchecked = np.array(rounds).T
    shares = np.percentile(checked / unchecked - 1, [25, 50, 75])
    return Cost(*map(float, (np.median(checked), np.median(unchecked), *shares)))


def to_json(found: Mapping[str, Cost]) -> dict[str, Any]:
    """Every case's cost as JSON values."""
    return {case: cost._asdict() for case, cost in found.items()}


def find_bars(found: Mapping[str, Cost]) -> list[Bar]:
    """Of the median of the rounds."""
    return [
        Bar(f"{case}: cost of checking ids", MOST_COST, cost.median, False)
        for case, cost in found.items()
    ]


def table(found: Mapping[str, Cost]) -> str:
    """One line a case, as markdown."""
    lines = [
        "| 8 tables of 64 dimensions | checked µs | unchecked µs | cost | 25–75 % |",
        "|---|---:|---:|---:|---:|",
    ]
    for case, cost in found.items():
        lines.append(
            f"| {case} | {cost.checked_us:.1f} | {cost.unchecked_us:.1f} | {cost.median:+.1%} "
            f"| {cost.low:+.1%} to {cost.high:+.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measure(Path("build/bench"))))
