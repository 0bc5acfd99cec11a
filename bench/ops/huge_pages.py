"""Memory in huge pages for every library of a process, and how much of it lies there."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bench.ops.contest import OURS
from recengine.serving.bench.report import Bar

Memory = Sequence[npt.NDArray[Any]]
Shares = Mapping[str, Mapping[str, float]]
"""Of every contender's rows, by what they are rows of."""

TUNABLE = "glibc.malloc.hugetlb=1"
LEAST_BYTES = 64 << 20  # of less, a page at an end is too large a share
HOW = (
    "How much of every contender's rows lies in 2 MB pages, by /proc/self/smaps; malloc asks for "
    f"them, too (GLIBC_TUNABLES={TUNABLE}). Rows of less than {LEAST_BYTES >> 20} MiB are left out."
)
MOST_BEHIND = 0.05  # of a peer's rows, where more of ours lie in huge pages
_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) .*?^Rss: +(\d+) kB.*?^AnonHugePages: +(\d+) kB", re.M | re.S
)


def for_every_malloc() -> None:
    """Starts this program anew where its malloc does not ask for huge pages.

    NumPy and recengine ask for them; torch, FBGEMM and faiss take what malloc gives.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE not in tunables.split(":"):
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [tunables, TUNABLE]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def share(arrays: Memory) -> float:
    """Of the arrays' bytes, as much as of the mappings that they lie in."""
    mappings = list(_mappings())
    huge = sum(
        max(0, min(end, array.ctypes.data + array.nbytes) - max(begin, array.ctypes.data)) * part
        for array in arrays
        for begin, end, part in mappings
    )
    return huge / sum(array.nbytes for array in arrays)


def _mappings() -> Iterator[tuple[int, int, float]]:
    """Begin and end of every mapping of this process, and its share in huge pages."""
    for begin, end, resident, huge in _MAPPING.findall(Path("/proc/self/smaps").read_text()):
        yield int(begin, 16), int(end, 16), int(huge) / max(1, int(resident))


def shares(memory: Mapping[str, Memory]) -> dict[str, float]:
    """Of every contender's rows; nothing where these are few."""
    if min(sum(array.nbytes for array in arrays) for arrays in memory.values()) < LEAST_BYTES:
        return {}
    return {name: share(arrays) for name, arrays in memory.items()}


def table(found: Shares) -> str:
    """How much of every contender's rows lies in huge pages, as markdown."""
    names = list(dict.fromkeys(name for by_name in found.values() for name in by_name))
    lines = [f"| in huge pages | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for rows, by_name in found.items():
        if not by_name:
            continue
        cells = (f"{by_name[name]:.0%}" if name in by_name else "" for name in names)
        lines.append(f"| {rows} | {' | '.join(cells)} |")
    return "\n".join(lines)


def find_bars(found: Shares) -> list[Bar]:
    """That no peer's rows have less of huge pages than ours, where there are shares."""
    behind = [part - by_name[OURS] for by_name in found.values() for part in by_name.values()]
    name = "rows in huge pages: a peer's share less ours, the least"
    return [Bar(name, -MOST_BEHIND, min(behind), True)] if behind else []
