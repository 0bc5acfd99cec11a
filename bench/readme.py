"""Writes the parts of README.md and bench/README.md that come from bench/results/.

`python -m bench.readme` after a bench; a test compares. Each part stands between its marker,
`<!-- name -->`, and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ops import cosine_topk as topk
from bench.ops.contest import peers_ahead
from bench.ops.embedding_bag import find_ratios, label

RESULTS = Path("bench/results")
SHOWN = "intel-xeon-amx-int8-2core"
"""The machine whose numbers the README shows: the one that was measured last."""

Result = dict[str, Any]


def table(head: str, rows: Sequence[str]) -> str:
    """Markdown, of a head and rows as `a | b | c`."""
    rule = " | ".join("---" for _ in head.split(" | "))
    return "\n".join(f"| {line} |" for line in (head, rule, *rows))


def describe_bar(bar: Mapping[str, Any]) -> str:
    """What was measured, and the bar."""
    sign = "≥" if bar["at_least"] else "≤"
    return f"{bar['name']} {bar['found']:.3g} (bar {sign} {bar['wanted']:g})"


def describe_bars(result: Result) -> str:
    """How many bars are met, and those that are missed."""
    missed = [describe_bar(bar) for bar in result["bars"] if not bar["met"]]
    met = f"Bars met: {len(result['bars']) - len(missed)} of {len(result['bars'])}"
    return f"{met}; missed: {'; '.join(missed)}." if missed else f"{met}."


def side_by_side(result: Result, ours: str, theirs: str) -> str:
    """Throughput and latency at every concurrency beside the peer's."""

    def numbers(point: Mapping[str, Any]) -> str:
        p50, p99 = point["p50_us"] / 1e3, point["p99_us"] / 1e3
        return f"{point['throughput']:,.0f}, {p50:.3g} ms, {p99:.3g} ms"

    series = result["series"]
    rows = [
        f"{own['concurrency']} | {numbers(own)} | {numbers(other)}"
        for own, other in zip(series[ours], series[theirs], strict=True)
    ]
    head = "concurrency | recengine requests/s, p50, p99 | peer requests/s, p50, p99"
    return table(head, rows)


def serving(result: Result) -> str:
    """`recommend` beside the peer's; what two models that copy their input do."""
    at_16 = {
        name: point["throughput"]
        for name, points in result["series"].items()
        for point in points
        if point["concurrency"] == 16
    }
    floor = at_16["two identities"] / at_16["peer recommend"]
    copied = (
        f"Two models that only copy their input reach {floor:.1f} times the peer's throughput "
        "at 16, as an ensemble here: that is the room there is."
    )
    shown = side_by_side(result, "recommend", "peer recommend")
    return f"{shown}\n\n{copied} {describe_bars(result)}"


def coalescing(result: Result) -> str:
    """`retrieval` of a large catalog beside the peer's."""
    half = result["half_of_saturation"]
    ours, theirs = (half[name]["p99_us"] / 1e3 for name in ("retrieval", "peer retrieval"))
    at_half = f"At half of what each can do, p99 is {ours:.0f} ms beside {theirs:.0f}."
    shown = side_by_side(result, "retrieval", "peer retrieval")
    return f"{shown}\n\n{at_half} {describe_bars(result)}"


def overload(result: Result) -> str:
    """Good answers and refusals at every load."""
    rows = []
    for burst in result["bursts"]:
        refused = f"{burst['shed_p50_ms']:.1f}, {burst['shed_p99_ms']:.1f}" if burst["shed"] else ""
        rows.append(
            f"{burst['load']:g} × | {burst['offered_per_s']:.0f} | {burst['good_per_s']:.0f} "
            f"| {burst['of_capacity']:.0%} | {burst['answered_p99_ms']:.0f} | {refused}"
        )
    head = "load | offered/s | good/s | of capacity | p99 ms | refusals p50, p99 ms"
    return f"{table(head, rows)}\n\n{describe_bars(result)}"


def cosine_topk(result: Result) -> str:
    """Ours, the limit and the best peer, a line for every kind of items and batch."""
    rows = []
    for measured in result["results"]:
        for point in measured["points"]:
            peer = point["best_peer"]
            rows.append(
                f"{topk.label(measured)}, {point['batch']} | {point['ms']['recengine']:.2f} "
                f"| {point['least_ms']:.2f} | {point['ms'][peer]:.2f} ({peer}) "
                f"| {point['ratio']:.2f}"
            )
    filtered = topk.low_rate_ratios(result.get("low_rates", []))
    ahead = peers_ahead(topk.find_ratios(result["results"]) | filtered)
    shown = table("items, batch | recengine ms | limit ms | best peer ms | ratio", rows)
    return f"{shown}\n\n{few_allowed(result)}{ahead} {describe_bars(result)}"


def few_allowed(result: Result) -> str:
    """How far ahead we are where a bitmap allows few items."""
    rates = result.get("low_rates", [])
    if not rates:
        return ""
    ratios = [point["ratio"] for point in rates]
    shares = ", ".join(f"{share:g}" for share in sorted({100 * p["rate"] for p in rates}))
    return (
        f"Where {shares} % of a million items are allowed: {min(ratios):.1f} to "
        f"{max(ratios):.1f} times the best of faiss by a bitmap or a list of rows and torch by "
        "gathered rows. "
    )


def embedding_bag(result: Result) -> str:
    """The same for every set of tables, with uniform ids; below, of Zipf ids what peers win."""
    rows = []
    for point in result["points"]:
        if point["ids"] != "uniform":
            continue
        peer = point["best_peer"]
        rows.append(
            f"{label(point).removesuffix(', uniform')} | {1e3 * point['ms']['recengine']:.1f} "
            f"| {1e3 * point['least_ms']:.1f} | {1e3 * point['ms'][peer]:.1f} ({peer}) "
            f"| {point['ratio']:.2f}"
        )
    ahead = peers_ahead(find_ratios(result["points"]), " with uniform and Zipf ids")
    shown = table("tables, batch × ids | recengine µs | limit µs | best peer µs | ratio", rows)
    return f"{shown}\n\n{ahead} {describe_bars(result)}"


def scale(result: Result) -> str:
    """Files, memory, restart and latency of the mission's size."""
    series = {point["concurrency"]: point for point in result["series"]["recommend"]}
    rows = [
        f"files | {sum(result['files_gb'].values()):.1f} GB",
        f"memory of the server's own | {result['memory_gb']['own']:.2f} GB",
        f"start of the process to ready | {result['seconds']['restart']:.1f} s",
        f"recommend, concurrency 1 | p50 {series[1]['p50_us'] / 1e3:.0f} ms, "
        f"p99 {series[1]['p99_us'] / 1e3:.0f} ms",
        f"recommend, concurrency 16 | {series[16]['throughput']:.0f}/s, "
        f"p50 {series[16]['p50_us'] / 1e3:.0f} ms, p99 {series[16]['p99_us'] / 1e3:.0f} ms",
    ]
    return f"{table('100 million users, 10 million items | ', rows)}\n\n{describe_bars(result)}"


def large_catalog(result: Result) -> str:
    """Searches of catalogs whose rows stay on disk."""
    rows = [
        f"{measured['rows']:,} × {measured['dim']}, {point['batch']} | {point['ms']:.1f} "
        f"| {point['least_ms']:.1f} | {point['queries_per_s']:,.0f}"
        for measured in result["results"]
        for point in measured["points"]
    ]
    shown = table("items, batch | ms | limit ms | queries/s", rows)
    return f"{shown}\n\n{describe_bars(result)}"


def all_bars(results: Path) -> str:
    """How many bars are met in every result, and which are missed."""

    def rows() -> Iterator[str]:
        for path in sorted(results.glob("*.json")):
            bars = json.loads(path.read_text())["bars"]
            missed = "; ".join(describe_bar(bar) for bar in bars if not bar["met"])
            met = sum(bar["met"] for bar in bars)
            yield f"`{path.stem}` | {met} of {len(bars)} | {missed}"

    return table("result | bars met | missed", list(rows()))


TABLES: dict[str, Callable[[Result], str]] = {
    "serving": serving,
    "overload": overload,
    "overload-catalog": overload,
    "overload-threads": overload,
    "cosine-topk": cosine_topk,
    "embedding-bag": embedding_bag,
    "coalescing": coalescing,
    "scale": scale,
    "large-catalog": large_catalog,
}
"""Of README.md, by the bench whose result on the machine shown they are made from."""


def parts(results: Path) -> dict[Path, dict[str, str]]:
    """What stands between the markers, by page and marker."""
    shown = {
        name: make(json.loads((results / f"{name}-{SHOWN}.json").read_text()))
        for name, make in TABLES.items()
    }
    return {Path("README.md"): shown, Path("bench/README.md"): {"bars": all_bars(results)}}


def rewrite(page: Path, text: str, contents: Mapping[str, str]) -> str:
    """The page with its parts as the results say."""
    for name, content in contents.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = marked.subn(lambda found, c=content: f"{found[1]}{c}\n{found[2]}", text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{page}: expected one part marked {name}, found {count}")
    return text


def main() -> None:
    for page, contents in parts(RESULTS).items():
        page.write_text(rewrite(page, page.read_text(), contents))


if __name__ == "__main__":
    main()
