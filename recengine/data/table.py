"""Text files as columns of strings, and columns as ids, numbers and lists, checked cell by cell."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from recengine.data.dataset import Float32s, Int64s, Ragged
from recengine.errors import InputError
from recengine.keys import NO_ITEM, hash_key

Kind = Literal["int", "token", "token_seq", "float", "text"]


@dataclass(frozen=True)
class Table:
    """Columns of one file before they are typed.

    Attributes:
        path: the file, for messages.
        frame: the cells. Text files give strings; Parquet gives its own types.
        kinds: what each column is: `int` holds integers only, `token` an id (an integer or a
            string), `token_seq` a list of those, `float` a number, `text` is for display.
        first_line: line number of the first row; None when rows have no lines (Parquet).
        separator: what stands between the ids of a `token_seq` cell.
        known: the kinds are those of a known format; else a title may call itself a `token_seq`.
    """

    path: Path
    frame: pl.DataFrame
    kinds: dict[str, Kind]
    first_line: int | None = None
    separator: str = " "
    known: bool = False

    def column(self, name: str) -> pl.Series:
        """One column.

        Raises:
            InputError: there is none of this name.
        """
        if name not in self.frame.columns:
            raise InputError(
                f"{self.path}: expected a column {name!r}, found {', '.join(self.frame.columns)}"
            )
        return self.frame[name]

    def bad_row(self, row: int, expected: str, found: object) -> InputError:
        """The error of one row, by file and line."""
        where = f"row {row + 1}" if self.first_line is None else f"{row + self.first_line}"
        separator = ": " if self.first_line is None else ":"
        return InputError(f"{self.path}{separator}{where}: expected {expected}, found {found!r}")


def read_delimited(
    path: Path,
    separator: str,
    columns: Sequence[str] | None = None,
    kinds: dict[str, Kind] | None = None,
    *,
    quoted: bool = False,
    list_separator: str = "|",
) -> Table:
    """Reads a text file of one row per line; UTF-8, or Latin-1 as in the old MovieLens files.

    Args:
        path: the file.
        separator: between cells, one or more characters.
        columns: their names; None when the first line holds them.
        kinds: kind by column name where the format tells; `token` where not given.
        quoted: cells may stand in double quotes. A cell never spans lines.
        list_separator: between the ids of a `token_seq` cell.

    Raises:
        InputError: the file is missing or empty, or a line has another number of cells.
    """
    lines = _read_lines(path)
    first_line = 1
    if columns is None:
        if lines.is_empty():
            raise InputError(f"{path}:1: expected a line of column names, found an empty file")
        columns = _split_line(lines[0], separator, quoted)
        lines, first_line = lines[1:], 2
    cells = lines.str.split(separator)
    if quoted and lines.str.contains('"', literal=True).any():
        cells = pl.Series(
            [_split_line(line, separator, quoted) for line in lines], dtype=pl.List(pl.String)
        )
    table = Table(path, pl.DataFrame(), {}, first_line, list_separator, kinds is not None)
    wrong = cells.list.len() != len(columns)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise table.bad_row(row, f"{len(columns)} cells", lines[row])
    frame = pl.DataFrame({name: cells.list.get(i) for i, name in enumerate(columns)})
    given = kinds or {}
    return replace(table, frame=frame, kinds={name: given.get(name, "token") for name in columns})


def integers(table: Table, name: str) -> Int64s:
    """A column of int64, e.g. times; `881250949.0` is one too."""
    column = table.column(name)
    numbers = column.cast(pl.Int64, strict=False)
    if numbers.null_count() and not column.dtype.is_integer():
        floats = column.cast(pl.Float64, strict=False)
        numbers = numbers.fill_null(floats.cast(pl.Int64, strict=False))
    _refuse_null(table, name, numbers, "an integer")
    return numbers.to_numpy().astype(np.int64)


def numbers(table: Table, name: str, *, required: bool = False) -> Float32s:
    """A column of finite fp32; an empty cell is NaN unless it is `required`."""
    column = table.column(name)
    values = column.cast(pl.Float32, strict=False)
    empty = pl.Series(np.zeros(len(column), bool)) if required else _empty(column)
    _refuse_null(
        table,
        name,
        values.is_finite().replace(False, None).fill_null(empty.replace(False, None)),
        "a number",
    )
    return values.fill_null(float("nan")).to_numpy().astype(np.float32)


def is_integer(table: Table, name: str) -> bool:
    """Whether the ids of this column are integers already and need no hashing."""
    column = table.column(name)
    if table.kinds[name] == "int" or column.dtype.is_integer():
        return True
    flat = _tokens(table, column).explode(empty_as_null=False) if _is_list(table, name) else column
    flat = flat.filter(~_empty(flat))
    return bool(flat.cast(pl.Int64, strict=False).null_count() == 0)


def ids(table: Table, name: str, *, hashed: bool) -> Int64s:
    """A column of entity ids: every cell has one, and none is -1, which means "no item"."""
    column = table.column(name)
    if hashed:
        empty = _empty(column)
        if empty.any():
            row = int(empty.arg_max() or 0)
            raise table.bad_row(row, f"a {name}", column[row])
        return _hash(table, name, column)
    values = integers(table, name)
    if (values == NO_ITEM).any():
        raise table.bad_row(int((values == NO_ITEM).argmax()), f"a {name} that is not -1", NO_ITEM)
    return values


def id_lists(table: Table, name: str, *, hashed: bool) -> Ragged:
    """A column of feature ids as lists; an empty cell is an empty list."""
    column = table.column(name)
    rows, flat = np.arange(len(column)), column
    if _is_list(table, name):
        lists = _tokens(table, column)
        rows = np.repeat(rows, lists.list.len().fill_null(0).to_numpy())
        flat = lists.explode(empty_as_null=False, keep_nulls=False)
    known = (~_empty(flat)).to_numpy()
    flat, rows = flat.filter(pl.Series(known)), rows[known]
    values = (
        _hash(table, name, flat)
        if hashed
        else flat.cast(pl.Int64, strict=False).to_numpy().astype(np.int64)
    )
    lengths = np.bincount(rows, minlength=len(column))
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def is_title(table: Table, name: str) -> bool:
    """Whether a column says nothing that rows share: most cells, and their ids, are distinct."""
    if table.known:
        return False
    column = table.column(name)
    cells = column.filter(~_empty(column))
    if cells.n_unique() * 2 <= len(cells):
        return False
    ids = _tokens(table, cells).explode() if _is_list(table, name) else cells
    return ids.n_unique() * 10 > len(ids)


def strings(table: Table, name: str) -> list[str]:
    """A column as text for display."""
    column = table.column(name)
    if column.dtype == pl.List:
        column = column.cast(pl.List(pl.String)).list.join(table.separator)
    return column.cast(pl.String).fill_null("").to_list()


def _read_lines(path: Path) -> pl.Series:
    try:
        return pl.read_lines(path)["line"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pl.exceptions.NoDataError:
        return pl.Series([], dtype=pl.String)
    except pl.exceptions.ComputeError:
        return pl.Series(path.read_text(encoding="latin-1").splitlines(), dtype=pl.String)


def _split_line(line: str, separator: str, quoted: bool) -> list[str]:
    if quoted and '"' in line:
        return next(csv.reader([line], delimiter=separator))
    return line.split(separator)


def _is_list(table: Table, name: str) -> bool:
    return table.kinds[name] == "token_seq" or table.column(name).dtype == pl.List


def _tokens(table: Table, column: pl.Series) -> pl.Series:
    return column if column.dtype == pl.List else column.str.split(table.separator)


def _empty(column: pl.Series) -> pl.Series:
    return column.is_null() | (column == "") if column.dtype == pl.String else column.is_null()


def _hash(table: Table, name: str, column: pl.Series) -> Int64s:
    text = column.cast(pl.String)
    distinct = text.unique()
    keys = np.array([hash_key(value) for value in distinct], np.int64)
    if len(np.unique(keys)) != len(keys):
        raise InputError(f"{table.path}: column {name!r}: two strings share one hash")
    return text.replace_strict(distinct, pl.Series(keys), return_dtype=pl.Int64).to_numpy()


def _refuse_null(table: Table, name: str, values: pl.Series, expected: str) -> None:
    if values.null_count():
        row = int(values.is_null().arg_max() or 0)
        raise table.bad_row(row, f"{expected} in {name}", table.column(name)[row])
