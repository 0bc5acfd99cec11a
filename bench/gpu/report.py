"""The arguments of a bench on a GPU, and how its result is written."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.contest import Plan
from bench.gpu.machine import Limits, Machine, file_name
from bench.ops.contest import plot_ratios
from recengine.serving.bench.commands import provenance
from recengine.serving.bench.report import Bar, write_result

PACKAGES = ("torch", "faiss-gpu-cu12", "jax")
HOW = (
    "Back to back: the time between two synchronisations over the number of calls between them. "
    "Single: a call that is waited for. Medians; the contenders take turns."
)


def parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments of every bench on a GPU."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--rounds", type=int, default=Plan.rounds)
    made.add_argument("--out", type=Path, default=Path("bench/results"))
    return made


def limits_text(limits: Limits) -> str:
    """The limits in words."""
    rates = [f"copying {limits.copy_bytes_per_s / 1e9:,.0f} GB/s, read and written"]
    for name, flops in limits.matmul_flops.items():
        rates.append(f"torch's {name} product {flops / 1e12:,.0f} TFLOP/s")
    return f"Limits, measured in this run: {'; '.join(rates)}."


def absent_text(absent: Mapping[str, str], points: Iterable[Mapping[str, Any]]) -> str:
    """Which peers were not there, and which failed at some points."""
    failed = {name: why for point in points for name, why in point["failed"].items()}
    lists = [("Not compared", absent), ("Failed, where a cell is empty", failed)]
    return " ".join(
        f"{title}: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}."
        for title, reasons in lists
        if reasons
    )


def publish(
    out: Path,
    name: str,
    title: str,
    machine: Machine,
    measured: Mapping[str, Any],
    text: Sequence[str],
    ratios: Mapping[str, float],
    bars: Sequence[Bar],
) -> Path:
    """Writes <name>-<GPU>.{json,md}, and .png where there was a peer.

    Args:
        out: folder.
        name: of the files.
        title: of the page and the plot.
        machine: that it was measured on.
        measured: what was measured, as JSON values.
        text: paragraphs of the page, empty ones left out.
        ratios: the best peer's time over ours, by case.
        bars: what was promised.

    Returns:
        The path without suffix.
    """
    result = provenance(PACKAGES)
    gpu = dataclasses.asdict(machine.gpu)
    result["machine"] = {"gpu": gpu.pop("name"), **gpu, **result["machine"]}
    result |= {"limits": dataclasses.asdict(machine.limits), **measured}
    path = out / f"{name}-{file_name(machine.gpu)}"
    write_result(path, title, result, text, bars)
    if ratios:
        plot_ratios(path.with_suffix(".png"), ratios, title)
    return path
