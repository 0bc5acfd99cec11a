"""Results of serving benches as JSON, a table and a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recengine.serving.bench.closed_loop import Series


@dataclasses.dataclass(frozen=True)
class Bar:
    """A number that was promised beside the number that was measured.

    Attributes:
        name: what is compared.
        wanted: smallest (`at_least`) or largest value that meets the bar.
        found: the value measured.
        at_least: which of the two `wanted` is.
    """

    name: str
    wanted: float
    found: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the number measured meets the bar."""
        return self.found >= self.wanted if self.at_least else self.found <= self.wanted

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "missed"
        return f"{self.name}: {self.found:.3g}, bar {sign} {self.wanted:g}: {verdict}"


def bars_table(bars: Sequence[Bar]) -> str:
    """The bars as a markdown table; nothing where there are none."""
    if not bars:
        return ""
    lines = ["| | measured | bar | |", "|---|---:|---:|---|"]
    for bar in bars:
        sign = "≥" if bar.at_least else "≤"
        verdict = "met" if bar.met else "**missed**"
        lines.append(f"| {bar.name} | {bar.found:.3g} | {sign} {bar.wanted:g} | {verdict} |")
    return "\n".join(lines)


def serving_table(series: Series) -> str:
    """Every measured point as a markdown table; latencies in milliseconds."""
    lines = [
        "| model | concurrency | requests/s | p50 ms | p90 ms | p95 ms | p99 ms "
        "| queue ms | compute ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for label, points in series.items():
        for point in points:
            compute = point.compute_input_us + point.compute_infer_us + point.compute_output_us
            latencies = (point.p50_us, point.p90_us, point.p95_us, point.p99_us)
            cells = [f"{us / 1e3:.2f}" for us in (*latencies, point.queue_us, compute)]
            lines.append(
                f"| {label} | {point.concurrency} | {point.throughput:,.0f} | "
                + " | ".join(cells)
                + " |"
            )
    return "\n".join(lines)


def series_json(series: Series) -> dict[str, list[dict[str, float]]]:
    """Measured points as JSON values, by label."""
    return {label: [dataclasses.asdict(p) for p in points] for label, points in series.items()}


def write_result(
    path: Path,
    title: str,
    result: Mapping[str, Any],
    text: Sequence[str],
    bars: Sequence[Bar] = (),
    tables: Sequence[str] = (),
) -> None:
    """Writes `path`.json and `path`.md.

    Args:
        path: without suffix.
        title: of the page.
        result: its provenance and what was measured, as JSON values.
        text: paragraphs of the page, empty ones left out.
        bars: what was promised.
        tables: of the page, after the bars.
    """
    machine, versions = (
        ", ".join(f"{key} {value}" for key, value in result[name].items())
        for name in ("machine", "versions")
    )
    origin = f"Machine: {machine}.\nVersions: {versions}.\nCommand: `{result['command']}`."
    page = filter(None, [f"# {title}", *text, bars_table(bars), *tables, origin])
    values = {**result, "bars": [{**dataclasses.asdict(bar), "met": bar.met} for bar in bars]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n\n".join(page) + "\n")


def plot_serving(path: Path, series: Series, title: str) -> None:
    """Latency against throughput, p50 solid and p99 dashed; the numbers are concurrencies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, (label, points) in enumerate(series.items()):
        rates = [point.throughput for point in points]
        color = f"C{i}"
        p50 = [point.p50_us / 1e3 for point in points]
        p99 = [point.p99_us / 1e3 for point in points]
        axes.plot(rates, p50, "o-", color=color, label=f"{label}, p50")
        axes.plot(rates, p99, "^--", color=color, alpha=0.6, label=f"{label}, p99")
        for point, x, y in zip(points, rates, p50, strict=True):
            axes.annotate(
                str(point.concurrency), (x, y), xytext=(4, -10), textcoords="offset points", size=8
            )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="answered requests per second",
        ylabel="latency [ms]",
        title=title,
    )
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def plot_overload(path: Path, bursts: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    """Above: what came of the requests at each offered load. Below: latency of the answered."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    names = [f"{burst['load']:g}×" for burst in bursts]
    capacity = result["capacity"]
    above.bar(names, [b["good_per_s"] for b in bursts], color="C0", label="good answers")
    bottom = [b["good_per_s"] for b in bursts]
    above.bar(
        names,
        [b["late_per_s"] for b in bursts],
        bottom=bottom,
        color="C1",
        label="answered after the deadline",
    )
    above.axhline(capacity, color="black", lw=1, label=f"capacity, {capacity:.0f}/s")
    above.axhline(0.9 * capacity, color="black", lw=1, ls=":", label="90 % of it")
    above.set(ylabel="answers per second", title=f"Overload on {result['machine']['cpu']}")
    above.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    below.plot(names, [b["answered_p50_ms"] for b in bursts], "o-", label="answered, p50")
    below.plot(names, [b["answered_p99_ms"] for b in bursts], "^--", label="answered, p99")
    below.plot(names, [b["shed_p50_ms"] for b in bursts], "s-", color="C3", label="shed, p50")
    below.axhline(result["deadline_ms"], color="black", lw=1, label="deadline")
    below.set(xlabel="offered load as a multiple of capacity", ylabel="latency [ms]", yscale="log")
    below.grid(visible=True, which="both", alpha=0.25)
    below.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
