"""What the machine can do at most, measured in the same run as what is compared with it."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.compiler import compile_cpp
from recengine import ops
from recengine.errors import RecengineError

RUNS = 3
SECONDS = 0.5  # of each measurement
QUICK_SECONDS = 0.1
VECTORS = {
    "amx_int8": ("-mavx512f", "-mavx512vnni", "-mamx-tile", "-mamx-int8"),
    "avx512_vnni": ("-mavx512f", "-mavx512vnni"),
    "avx512": ("-mavx2",),  # whose 8-bit products are those of avx2
    "avx2": ("-mavx2",),
}
"""What limits.cc is built with, by instruction set."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of all threads together, measured by limits.cc.

    Attributes:
        int8_macs_per_s: 8-bit multiply-adds on vector registers.
        tile_macs_per_s: the same on AMX's tiles; 0 where the CPU has none.
        read_bytes_per_s: bytes read in order, by how many there are: fewer lie in caches.
        random_lines_per_s: lines of 64 bytes read at random from 2 MB pages, by how many
            neighbours are read at once.
        random_lines_small_pages_per_s: the same from 4 KB pages.
    """

    int8_macs_per_s: float
    tile_macs_per_s: float
    read_bytes_per_s: dict[str, float]
    random_lines_per_s: dict[str, float]
    random_lines_small_pages_per_s: dict[str, float]

    def scan_ms(self, rows: int, dim: int, batch: int) -> float:
        """No scan of every item's 8-bit code can take less."""
        return max(self.read_ms(rows, dim), self.multiply_ms(rows, dim, batch))

    def read_ms(self, rows: int, dim: int) -> float:
        """Reading every item's 8-bit code once, at the rate of about as many bytes."""

        def off(size: str) -> float:
            return abs(math.log(int(size) / (rows * dim)))

        return 1e3 * rows * dim / self.read_bytes_per_s[min(self.read_bytes_per_s, key=off)]

    def multiply_ms(self, rows: int, dim: int, batch: int, *, tiles: bool = True) -> float:
        """Multiplying every item's 8-bit code by every query's, in tiles where there are any."""
        macs = max(self.int8_macs_per_s, self.tile_macs_per_s if tiles else 0)
        return 1e3 * rows * dim * batch / macs

    def lookup_ms(self, rows: int, lines: int) -> float:
        """Reading `lines` neighbouring lines of each of so many random rows."""
        known = sorted(self.random_lines_per_s, key=int)
        nearest = min(known, key=lambda count: abs(int(count) - lines))
        return 1e3 * rows * lines / self.random_lines_per_s[nearest]


def measure_limits(
    folder: Path, threads: int, *, sizes: Sequence[int] = (), quick: bool = False
) -> Limits:
    """Builds limits.cc and runs it some times, in processes of its own: the best is the limit.

    Args:
        folder: for the program.
        threads: of the measurements.
        sizes: in bytes, for which reading in order is measured.
        quick: whether to run it once, and briefly.

    Raises:
        RecengineError: the CPU has no AVX2.
    """
    program = folder / "limits"
    isa = ops.default_isa()
    if isa not in VECTORS:
        raise RecengineError(f"[bench] limits: expected a CPU with AVX2, found kernels of {isa}")
    vectors = VECTORS[isa]
    compile_cpp(Path(__file__).with_name("limits.cc"), program, [*vectors, "-pthread"])
    runs, seconds = (1, QUICK_SECONDS) if quick else (RUNS, SECONDS)
    command = [str(program), str(threads), str(seconds), *map(str, sizes)]
    found = [_run(command) for _ in range(runs)]
    return Limits(**{name: _best([run[name] for run in found]) for name in found[0]})


def _run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def _best(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: max(value[name] for value in values) for name in values[0]}
    return max(values)
