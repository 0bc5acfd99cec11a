"""Options that say how a data set is stored, and the data set that they tell of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recengine.errors import InputError

if TYPE_CHECKING:
    from recengine.data import Columns, Dataset, Split

ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Names of columns (Parquet, CSV, RecBole): user=NAME,item=NAME,time=NAME,"
        "rating=NAME. An empty time: rows stand oldest first.",
    ),
]
StringColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--strings", help="Column of ids that are strings though they look like integers."
    ),
]
UserTable = Annotated[
    Path | None,
    typer.Option("--users", exists=True, dir_okay=False, help="User features, Parquet or CSV."),
]
ItemTable = Annotated[
    Path | None,
    typer.Option("--items", exists=True, dir_okay=False, help="Item features, Parquet or CSV."),
]

SplitName = Annotated[
    str,
    typer.Option(
        "--split",
        help="What to learn from and what to hold out: leave-last-out holds out each user's last "
        "two, time-ratio:TRAIN,VALIDATION,TEST cuts all interactions at two moments.",
    ),
]


def read(
    path: Path,
    columns: str | None,
    strings: list[str] | None,
    users: Path | None,
    items: Path | None,
) -> Dataset:
    """Reads what the options name.

    Raises:
        typer.BadParameter: `columns` is not such a list.
        InputError: as `recengine.data.read`.
    """
    from recengine.data import read as read_dataset

    names = _columns(columns, strings or []) if columns or strings else None
    return read_dataset(path, columns=names, users=users, items=items)


def splitter(name: str) -> Callable[[Dataset], Split]:
    """As `recengine.data.splitter`.

    Raises:
        typer.BadParameter: there is no such split.
    """
    from recengine.data import splitter as named

    try:
        return named(name)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--split") from None


def _columns(names: str | None, strings: list[str]) -> Columns:
    from recengine.data import Columns

    given: dict[str, Any] = {}
    for part in names.split(",") if names else []:
        role, _, name = part.partition("=")
        known = role in ("user", "item", "time", "rating") and role not in given
        if not known or not (name or part == "time="):
            raise typer.BadParameter(
                f"expected user=NAME, item=NAME, time=NAME or rating=NAME, found {part!r}",
                param_hint="--columns",
            )
        given[role] = name or None
    return Columns(**given, strings=strings)
