"""Writes the tables of README.md that come from bench/results/, between their markers.

`python -m bench.readme` after a bench; a test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.ops import cosine_topk as topk
from bench.ops.contest import peers_ahead
from bench.ops.embedding_bag import find_ratios, label

README = Path("README.md")
RESULTS = Path("bench/results")


def cosine_topk(result: dict[str, Any]) -> str:
    """Ours, the limit and the best peer, a line for every kind of items and batch."""
    lines = [
        "| items, batch | recengine ms | limit ms | best peer ms | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for measured in result["results"]:
        for point in measured["points"]:
            peer = point["best_peer"]
            lines.append(
                f"| {topk.label(measured)}, {point['batch']} | {point['ms']['recengine']:.2f} "
                f"| {point['least_ms']:.2f} | {point['ms'][peer]:.2f} ({peer}) "
                f"| {point['ratio']:.1f} |"
            )
    filtered = topk.low_rate_ratios(result.get("low_rates", []))
    lines += ["", peers_ahead(topk.find_ratios(result["results"]) | filtered)]
    return "\n".join(lines)


def embedding_bag(result: dict[str, Any]) -> str:
    """The same for every set of tables, with uniform ids; below, of Zipf ids what peers win."""
    lines = [
        "| tables, batch × ids | recengine µs | limit µs | best peer µs | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in result["points"]:
        if point["ids"] != "uniform":
            continue
        peer = point["best_peer"]
        lines.append(
            f"| {label(point).removesuffix(', uniform')} | {1e3 * point['ms']['recengine']:.1f} "
            f"| {1e3 * point['least_ms']:.1f} | {1e3 * point['ms'][peer]:.1f} ({peer}) "
            f"| {point['ratio']:.1f} |"
        )
    lines += ["", peers_ahead(find_ratios(result["points"]), " with uniform and Zipf ids")]
    return "\n".join(lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "cosine-topk-amd-epyc-avx512-vnni-2core": cosine_topk,
    "embedding-bag-amd-epyc-avx512-vnni-2core": embedding_bag,
}
"""By the result that the table is made from, which is its marker, too."""


def rewrite(text: str, results: Path = RESULTS) -> str:
    """The README with its tables as the results say."""
    for name, table in TABLES.items():
        content = table(json.loads((results / f"{name}.json").read_text()))
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, count = marked.subn(lambda found, c=content: found[1] + c + found[2], text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{README}: expected one table marked {name}, found {count}")
    return text


def main() -> None:
    README.write_text(rewrite(README.read_text()))


if __name__ == "__main__":
    main()
