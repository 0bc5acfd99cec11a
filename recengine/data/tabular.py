"""Parquet and CSV files whose columns the caller names."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import polars as pl
import polars.selectors as cs

from recengine.data.build import Columns, build, refuse_missing
from recengine.data.dataset import Dataset
from recengine.data.table import Kind, Table, read_delimited
from recengine.errors import InputError

_FEW = 0.1  # of the cells that are not empty


def read(
    path: Path, columns: Columns, users: Path | None = None, items: Path | None = None
) -> Dataset:
    """Reads one table of interactions and, if given, one of users and one of items.

    The column of the user id (item id) has the same name in both tables; all other columns of
    `users` and `items` are features. Strings and integers are categories, other numbers are
    dense, lists (in CSV: ids with `|` between) are lists of categories; lists of numbers that are
    no integers (Parquet) are vectors, one dense feature per place.
    """
    return build(
        path.stem,
        path.suffix[1:],
        _read(path, columns),
        columns,
        _features(users, columns.user) if users else None,
        _features(items, columns.item) if items else None,
    )


def _features(path: Path, key: str) -> Table:
    """A table of users or items; a warning names what a few cells make strings of."""
    table = _read(path)
    for name in table.frame.columns if table.first_line else ():
        column = table.frame[name]
        known = column != ""
        stray = known & column.cast(pl.Float64, strict=False).is_null()
        few = 0 < int(stray.sum()) <= _FEW * int(known.sum())
        if few and name != key and table.kinds[name] == "token":
            row = int(stray.arg_max() or 0)
            error = table.bad_row(row, f"a number in {name} as in most rows", column[row])
            warnings.warn(f"{error}; all of the column are taken as strings", stacklevel=2)
    return table


def _read(path: Path, columns: Columns | None = None) -> Table:
    """Of interactions only the named columns are looked at, and dates become seconds since 1970."""
    refuse_missing(path)
    if path.suffix != ".parquet":
        table = read_delimited(path, "\t" if path.suffix == ".tsv" else ",", quoted=True)
        return replace(table, kinds={n: _kind_of_text(table.frame[n]) for n in table.frame.columns})
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: not Parquet: {error}") from None
    frame = frame.with_columns(cs.array().arr.to_list())
    names = frame.columns
    if columns is not None:
        used = {columns.user, columns.item, columns.time, columns.rating}
        names = [name for name in names if name in used]
        dates = cs.date() | cs.datetime()
        frame = frame.with_columns(
            (dates & cs.by_name(columns.time or (), require_all=False)).dt.epoch("s")
        )
    return Table(path, frame, {name: _kind_of_type(path, frame[name]) for name in names})


def _kind_of_text(column: pl.Series) -> Kind:
    known = column.filter(column != "")
    if known.str.contains("|", literal=True).any():
        return "token_seq"
    if len(known) and not known.cast(pl.Float64, strict=False).null_count():
        return "float" if known.cast(pl.Int64, strict=False).null_count() else "token"
    return "token"


def _kind_of_type(path: Path, column: pl.Series) -> Kind:
    if isinstance(column.dtype, pl.List):
        return "float_seq" if column.dtype.inner.is_float() else "token_seq"
    if column.dtype.is_float():
        return "float"
    if column.dtype.is_integer() or column.dtype == pl.String:
        return "token"
    raise InputError(
        f"{path}: column {column.name!r}: expected integers, numbers, strings or lists, "
        f"found {column.dtype}"
    )
