"""Tables of cells become one typed data set."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recengine.data import table as cells
from recengine.data.dataset import Dataset, FeatureTable, Float32s, Int64s, Interactions, Ragged
from recengine.data.table import Table
from recengine.errors import InputError


@dataclass(frozen=True)
class Columns:
    """Names of the columns of an interaction table.

    Attributes:
        user: ids of users; the column has the same name in a table of users.
        item: ids of items; likewise.
        time: numbers, of which whole seconds are kept, or dates (Parquet), which become seconds
            since 1970; equal times keep the order of the file. None when there is none: rows then
            stand oldest first.
        rating: numbers; None to read none.
        strings: which of the columns `user` and `item` hold strings, even if these look like
            integers.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = "timestamp"
    rating: str | None = None
    strings: Collection[str] = ()


def build(
    name: str,
    format: str,
    interactions: Table,
    columns: Columns,
    users: Table | None = None,
    items: Table | None = None,
) -> Dataset:
    """Types the cells and sorts the interactions by time.

    A user or item that only the interactions name gets a row without features. Ids that are floats
    are taken as integers where all are whole numbers, and refused otherwise. A column of
    features in which most cells are distinct (a title, a zip code) is text for display.

    Args:
        name: of the data set.
        format: how it was stored, for the record.
        interactions: one row per interaction.
        columns: names of its columns; user and item have the same name in `users` and `items`.
        users: one row per user.
        items: one row per item.

    Raises:
        InputError: naming file and line of the first bad row.
    """
    for column in columns.strings:
        if column not in (columns.user, columns.item):
            raise InputError(
                f"[columns] strings: expected names among {columns.user!r} and {columns.item!r}, "
                f"found {column!r}"
            )
    for key in (columns.user, columns.item):
        interactions = cells.whole_ids(interactions, key, strings=key in columns.strings)
    if users is not None:
        users = cells.whole_ids(users, columns.user, strings=columns.user in columns.strings)
    if items is not None:
        items = cells.whole_ids(items, columns.item, strings=columns.item in columns.strings)
    tables = [table for table in (interactions, users, items) if table is not None]
    user_tables, item_tables = ([t for t in tables if t is not other] for other in (items, users))
    hashed_users = _hashed(user_tables, columns.user, columns)
    hashed_items = _hashed(item_tables, columns.item, columns)
    user_ids = cells.ids(interactions, columns.user, hashed=hashed_users)
    item_ids = cells.ids(interactions, columns.item, hashed=hashed_items)
    times = _times(interactions, columns.time)
    ratings = cells.numbers(interactions, columns.rating, required=True) if columns.rating else None
    order = np.argsort(times, kind="stable")
    paths = [table.path for table in tables]
    return Dataset(
        name=name,
        interactions=Interactions(
            user_ids[order],
            item_ids[order],
            times[order],
            None if ratings is None else ratings[order],
        ),
        users=_features(users, interactions, columns.user, user_ids, hashed_users),
        items=_features(items, interactions, columns.item, item_ids, hashed_items),
        hashed_users=hashed_users,
        hashed_items=hashed_items,
        source={"format": format, "path": str(paths[0]), "sha256": _sha256(paths)},
    )


def _times(interactions: Table, column: str | None) -> Int64s:
    if column is None:
        return np.arange(len(interactions.frame))
    try:
        interactions.column(column)
    except InputError as error:
        raise InputError(
            f"{error}; time=NAME names another, time= says that rows stand oldest first"
        ) from None
    return cells.integers(interactions, column, cut=True)


def _hashed(tables: Sequence[Table], key: str, columns: Columns) -> bool:
    return key in columns.strings or cells.are_strings(tables, key)


def _features(
    table: Table | None, interactions: Table, key: str, taken: Int64s, hashed: bool
) -> FeatureTable:
    if table is None:
        ids, keys = _distinct(taken, [interactions], key, hashed)
        return FeatureTable(ids, keys=keys)
    table = cells.spread_vectors(table)
    own = cells.ids(table, key, hashed=hashed)
    _refuse_duplicates(table, key, own)
    ids, keys = _distinct(np.concatenate([own, taken]), [table, interactions], key, hashed)
    rows = np.searchsorted(ids, own)
    sparse: dict[str, Ragged] = {}
    dense: dict[str, Float32s] = {}
    text: dict[str, list[str]] = {}
    hashed_features = set()
    for name, kind in table.kinds.items():
        if kind == "float":
            dense[name] = np.full(len(ids), np.nan, np.float32)
            dense[name][rows] = cells.numbers(table, name)
            continue
        if name == key:
            continue
        strings = not cells.is_integer(table, name)
        if strings or kind == "text":
            text[name] = _scatter_text(cells.strings(table, name), rows, len(ids))
        if kind == "text" or cells.is_title(table, name):
            continue
        sparse[name] = _scatter(cells.id_lists(table, name, hashed=strings), rows, len(ids))
        if strings:
            hashed_features.add(name)
    return FeatureTable(ids, sparse, dense, text, frozenset(hashed_features), keys)


def _distinct(
    ids: Int64s, tables: Sequence[Table], key: str, hashed: bool
) -> tuple[Int64s, list[str]]:
    """The distinct ids and, of those that are hashes, the strings; `ids` are those of all rows."""
    if not hashed:
        return np.unique(ids), []
    distinct, first = np.unique(ids, return_index=True)
    return distinct, cells.keys(tables, key, first)


def _scatter(lists: Ragged, rows: Int64s, size: int) -> Ragged:
    """List i goes to row rows[i]; other rows are empty."""
    order = np.argsort(rows)
    lengths = np.zeros(size, np.int64)
    lengths[rows] = lists.lengths
    values = [lists[i] for i in order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Ragged(np.concatenate([*values, np.empty(0, np.int64)]), offsets)


def _scatter_text(values: Sequence[str], rows: Int64s, size: int) -> list[str]:
    scattered = [""] * size
    for value, row in zip(values, rows, strict=True):
        scattered[row] = value
    return scattered


def _refuse_duplicates(table: Table, key: str, own: Int64s) -> None:
    _, first, counts = np.unique(own, return_index=True, return_counts=True)
    if (counts > 1).any():
        value = own[first[counts.argmax()]]
        again = int(np.flatnonzero(own == value)[1])
        raise table.bad_row(again, f"each {key} once", table.column(key)[again])


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def refuse_missing(path: Path) -> None:
    """Raises InputError when `path` does not exist."""
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
