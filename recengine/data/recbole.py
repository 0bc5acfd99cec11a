"""RecBole atomic files: tab-separated, with headers such as `user_id:token`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from recengine.data.build import Columns, build
from recengine.data.dataset import Dataset
from recengine.data.table import Kind, Table, read_delimited, refuse_repeated_names
from recengine.errors import InputError

_KINDS: dict[str, Kind] = {
    "token": "token",
    "token_seq": "token_seq",
    "float": "float",
    "float_seq": "float_seq",
}


def read(directory: Path, columns: Columns | None = None) -> Dataset:
    """Reads `<name>.inter` and, where they are, `<name>.user` and `<name>.item`.

    Args:
        directory: where they are.
        columns: names without their types; by default `user_id`, `item_id`, `timestamp` and, where
            it is, `rating`.
    """
    files = sorted(directory.glob("*.inter"))
    if len(files) != 1:
        raise InputError(
            f"{directory}: expected one .inter file, found {', '.join(f.name for f in files)}; "
            "of a data set in parts, put the rows into one file: splits are made when training"
        )
    path = files[0]
    interactions = _read(path)
    columns = columns or Columns()
    if columns.rating is None and "rating" in interactions.kinds:
        columns = dataclasses.replace(columns, rating="rating")
    users, items = (path.with_suffix(suffix) for suffix in (".user", ".item"))
    return build(
        path.stem,
        "recbole",
        interactions,
        columns,
        _read(users) if users.exists() else None,
        _read(items) if items.exists() else None,
    )


def _read(path: Path) -> Table:
    raw = read_delimited(path, "\t", list_separator=" ")
    refuse_repeated_names(path, [header.partition(":")[0] for header in raw.frame.columns])
    kinds: dict[str, Kind] = {}
    for header in raw.frame.columns:
        name, _, kind = header.partition(":")
        if kind not in _KINDS:
            raise InputError(
                f"{path}:1: expected name:type with a type of {', '.join(_KINDS)}, found {header!r}"
            )
        kinds[name] = _KINDS[kind]
    frame = raw.frame.rename(dict(zip(raw.frame.columns, kinds, strict=True)))
    return Table(path, frame, kinds, raw.first_line, raw.separator)
