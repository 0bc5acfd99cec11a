"""Text files as columns of strings, and columns as ids, numbers and lists, checked cell by cell."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from recengine.data.dataset import Float32s, Int64s, Ragged
from recengine.errors import InputError
from recengine.keys import NO_ITEM, hash_key

Kind = Literal["int", "token", "token_seq", "float", "float_seq", "text"]

_NEARLY_ALL = 0.99
# Below, each integer is a float of its own.
_EXACT: dict[type[pl.DataType], int] = {
    pl.Float16: 1 << 11,
    pl.Float32: 1 << 24,
    pl.Float64: 1 << 53,
}
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Table:
    """Columns of one file before they are typed.

    Attributes:
        path: the file, for messages.
        frame: the cells. Text files give strings; Parquet gives its own types.
        kinds: what each column is: `int` holds integers only, `token` an id (an integer or a
            string), `token_seq` a list of those, `float` a number, `float_seq` a list of those,
            `text` is for display.
        first_line: line number of the first row; None when rows have no lines (Parquet).
        separator: what stands between the values of a `token_seq` or `float_seq` cell.
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
        InputError: the file is missing or empty, two columns have one name, or a line has another
            number of cells.
    """
    lines = _read_lines(path)
    if lines.is_empty():
        expected = "rows" if columns else "a line of column names"
        raise InputError(f"{path}:1: expected {expected}, found an empty file")
    first_line = 1
    if columns is None:
        columns = _split_line(lines[0], separator, quoted)
        refuse_repeated_names(path, columns)
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


def refuse_repeated_names(path: Path, names: Sequence[str]) -> None:
    """Raises InputError when two columns of the first line have one name."""
    if len(set(names)) < len(names):
        again = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"{path}:1: expected each column once, found {again!r} again")


def spread_vectors(table: Table) -> Table:
    """Each `float_seq` column as `float` columns: `name_0`, `name_1` and so on.

    A column whose lists differ in length has no such columns: it is left out, with a warning.
    """
    for name in [name for name, kind in table.kinds.items() if kind == "float_seq"]:
        column = table.column(name)
        filled = column if column.dtype == pl.List else column.str.strip_chars().replace("", None)
        lists = _tokens(table, filled)
        kinds = {other: kind for other, kind in table.kinds.items() if other != name}
        lengths = lists.list.len().fill_null(0).to_numpy()
        known = np.flatnonzero(lengths)
        width = int(lengths[known[0]]) if len(known) else 0
        other_length = known[lengths[known] != width]
        if len(other_length):
            row = int(other_length[0])
            error = table.bad_row(row, f"{width} numbers in {name} as before", column[row])
            warnings.warn(f"{error}; the column is left out", stacklevel=2)
            width = 0
        spread = [lists.list.get(i, null_on_oob=True).alias(f"{name}_{i}") for i in range(width)]
        for part in spread:
            if part.name in kinds:
                raise InputError(
                    f"{table.path}: column {name!r}: its values would be named {part.name!r}, "
                    "but there is such a column; rename one"
                )
            kinds[part.name] = "float"
        table = replace(table, frame=table.frame.with_columns(spread), kinds=kinds)
    return table


def whole_ids(table: Table, name: str, *, strings: bool) -> Table:
    """The column `name` as ids, where it holds floats: pandas makes those of integers about nulls.

    Args:
        table: any.
        name: of the column of user or item ids.
        strings: text is to stay as it is; else `7.0` is 7 where all cells are such.

    Raises:
        InputError: there is no such column, or an id is no whole number or too large to be exact.
    """
    column, kind = table.column(name), table.kinds[name]
    if column.dtype.is_float():
        exact = _EXACT[type(column.dtype)]
        whole = _empty(column) | ((column.abs() < exact) & (column == column.round()))
        _refuse_null(table, name, whole.replace(False, None), f"a whole number below {exact}")
        column = column.cast(pl.Int64)
    elif column.dtype == pl.String and not strings:
        if (_empty(column) | column.str.contains(r"^-?\d+\.0$")).all():
            column = column.str.strip_suffix(".0")
        elif kind == "float":
            whole = _empty(column) | column.str.contains(r"^-?\d+$")
            expected = f"an integer (strings: name {name!r} in `strings`)"
            _refuse_null(table, name, whole.replace(False, None), expected)
    kinds: dict[str, Kind] = {**table.kinds, name: "token" if kind == "float" else kind}
    return replace(table, frame=table.frame.with_columns(column), kinds=kinds)


def integers(table: Table, name: str, *, cut: bool = False) -> Int64s:
    """A column of int64; `881250949.0` is one too.

    Args:
        table: any.
        name: of the column.
        cut: of numbers with a fraction, the whole part is taken; else they are refused.

    Raises:
        InputError: naming the first row that holds none, or one that its float does not hold
            exactly.
    """
    column = table.column(name)
    if column.dtype.is_integer():
        numbers = column.cast(pl.Int64, strict=False)
    else:
        floats = column.cast(pl.Float64, strict=False)
        fits = floats.abs() < _EXACT.get(type(column.dtype), _EXACT[pl.Float64])
        if not cut:
            fits &= floats == floats.floor()
        numbers = floats.set(~fits, None).floor().cast(pl.Int64, strict=False)
        if column.dtype == pl.String:
            numbers = column.cast(pl.Int64, strict=False).fill_null(numbers)
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
    return not _strings(table, name, _flat(table, name)[0]).any()


def are_strings(tables: Sequence[Table], name: str) -> bool:
    """Whether users or items have strings as ids, which are hashed: in one table, so in all.

    Raises:
        InputError: nearly all are integers: one stray cell must not turn all ids into hashes.
    """
    total, wrong, first = 0, 0, None
    for table in tables:
        flat, rows = _flat(table, name)
        strings = _strings(table, name, flat)
        total += len(flat)
        wrong += int(strings.sum())
        if first is None and strings.any():
            place = int(strings.arg_max() or 0)
            first = table, int(rows[place]), flat[place]
    if first and wrong <= (1 - _NEARLY_ALL) * total:
        table, row, found = first
        expected = f"an integer in {name} as in {total - wrong} of {total} ids"
        raise table.bad_row(row, f"{expected} (strings: name {name!r} in `strings`)", found)
    return first is not None


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


def keys(tables: Sequence[Table], name: str, rows: Int64s) -> list[str]:
    """The cells of an id column in these rows of the tables, one table after the other."""
    columns = [table.column(name).cast(pl.String) for table in tables]
    return pl.concat(columns).gather(rows).to_list()


def id_lists(table: Table, name: str, *, hashed: bool) -> Ragged:
    """A column of feature ids as lists; an empty cell is an empty list."""
    flat, rows = _flat(table, name)
    values = (
        _hash(table, name, flat)
        if hashed
        else flat.cast(pl.Int64, strict=False).to_numpy().astype(np.int64)
    )
    lengths = np.bincount(rows, minlength=len(table.frame))
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
        lines = pl.read_lines(path)["line"]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pl.exceptions.ComputeError:
        # Not splitlines(): in Latin-1, 0x85 is a character that ends no line.
        text = path.read_bytes().decode("latin-1").removesuffix("\n")
        return pl.Series(text.split("\n"), dtype=pl.String).str.strip_suffix("\r")
    if len(lines) and lines[0].startswith(_BYTE_ORDER_MARK):
        lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
    return lines


def _split_line(line: str, separator: str, quoted: bool) -> list[str]:
    if quoted and '"' in line:
        return next(csv.reader([line], delimiter=separator))
    return line.split(separator)


def _is_list(table: Table, name: str) -> bool:
    return table.kinds[name] == "token_seq" or table.column(name).dtype == pl.List


def _flat(table: Table, name: str) -> tuple[pl.Series, Int64s]:
    """The ids of all cells one after the other, empty ones left out, and the row of each."""
    flat = table.column(name)
    rows = np.arange(len(flat))
    if _is_list(table, name):
        lists = _tokens(table, flat)
        rows = np.repeat(rows, lists.list.len().fill_null(0).to_numpy())
        flat = lists.explode(empty_as_null=False, keep_nulls=False)
    known = ~_empty(flat)
    return flat.filter(known), rows[known.to_numpy()]


def _strings(table: Table, name: str, flat: pl.Series) -> pl.Series:
    """Which of these ids are strings: bool [n]."""
    # What is no integer in a column of integers is refused when it is read.
    if table.kinds[name] == "int" or flat.dtype.is_integer():
        return pl.zeros(len(flat), pl.Boolean, eager=True)
    return flat.cast(pl.Int64, strict=False).is_null()


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
