"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from recengine.bundle import FidelityRow
    from recengine.cli.catalog import Catalog

console = Console()
if not console.is_terminal:
    console.width = 120  # a log or a pipe has no width of its own


def recommendations(
    catalog: Catalog, user: str, answer: Sequence[tuple[int, float]], history: Sequence[int]
) -> None:
    """The answer for one user, and beside it what the user took last, newest first."""
    best = Table("#", "title", "genres", "score", title=f"for user {user}")
    for place, (item, score) in enumerate(answer, 1):
        best.add_row(str(place), catalog.title(item), catalog.genres(item), f"{score:.3f}")
    past = Table("title", "genres", title="recent history", style="dim")
    for item in history[::-1][: max(len(answer), 1)]:
        past.add_row(catalog.title(item), catalog.genres(item))
    side_by_side = Table.grid(padding=(0, 2))
    side_by_side.add_row(best, past)
    console.print(side_by_side)


def quality(name: str, split: str | None, rows: Iterable[tuple[str, Mapping[str, float]]]) -> None:
    """One row per method: its name and its metrics; `split` is None where nobody recorded it."""
    from recengine.training.config import MOST_KNN_ITEMS

    listed = list(rows)
    columns = listed[0][1] if listed else ()
    table = Table("method", *columns, title=f"{name}: {_held_out(split)}, whole catalog")
    for method, metrics in listed:
        table.add_row(method, *(f"{value:.4f}" for value in metrics.values()))
    console.print(table)
    methods = {method for method, _ in listed}
    if "popularity" in methods and "item-kNN" not in methods:
        console.print(f"item-kNN is left out of catalogs above {MOST_KNN_ITEMS:,} items")


def fidelity(split: str | None, rows: Iterable[FidelityRow]) -> None:
    """How far answers for the held-out users of this split are from eager PyTorch."""
    title = f"answers beside eager PyTorch, {_held_out(split)}"
    table = Table("stage", "path", "users", "k", title=title)
    for name in ("score error", "identical top-k", "recall", "eager", "NDCG", "eager"):
        table.add_column(name, justify="right")
    for row in rows:
        metrics = (row.recall, row.recall_eager, row.ndcg, row.ndcg_eager)
        table.add_row(
            row.stage,
            row.path,
            str(row.users),
            str(row.k),
            f"{row.score_error:.2g}",
            f"{row.identical_top_k:.2%}",
            *(f"{value:.4f}" for value in metrics),
        )
    console.print(table)


def _held_out(split: str | None) -> str:
    return f"held-out users of {split}" if split else "held-out users"
