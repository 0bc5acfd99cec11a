"""What it costs that every id is checked: the kernel beside a copy of it without the check."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from bench.compiler import compile_cpp
from recengine import ops
from recengine.errors import RecengineError

SOURCES = Path("csrc")
LOOP = Path("ops/embedding_bag_loop.h")
CHECKS = (
    "        outside |= (num_rows - 1 - static_cast<uint64_t>(id)) | static_cast<uint64_t>(id);\n",
    "        if (static_cast<uint64_t>(id) >= num_rows) return -1;\n",
    "  const auto num_rows = static_cast<uint64_t>(table.rows);\n",
)
"""In both ways of the loop, and what they need."""
MOST_COST = 0.03

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


def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """Builds both kernels as the product is built and runs them in turns.

    Returns:
        Microseconds of a call with and without the check, by case.

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
    common = ["-O3", "-ffp-contract=off", f"-I{SOURCES / 'include'}", f"-I{SOURCES}"]
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
    return {case: (checked, plain) for case, (checked, plain) in json.loads(done.stdout).items()}


def costs(found: dict[str, tuple[float, float]]) -> dict[str, float]:
    """The share of its time that the check adds to a call, by case."""
    return {case: checked / plain - 1 for case, (checked, plain) in found.items()}


def table(found: dict[str, tuple[float, float]]) -> str:
    """One line a case, as markdown."""
    lines = [
        "| 8 tables of 64 dimensions | checked µs | unchecked µs | cost |",
        "|---|---:|---:|---:|",
    ]
    for case, (checked, plain) in found.items():
        cost = costs(found)[case]
        lines.append(f"| {case} | {checked:.1f} | {plain:.1f} | {cost:+.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(measure(Path("build/bench"))))
