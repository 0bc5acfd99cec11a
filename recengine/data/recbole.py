"""RecBole atomic files: tab-separated, with headers such as `user_id:token`."""

from __future__ import annotations

from pathlib import Path

from recengine.data.build import Columns, build
from recengine.data.dataset import Dataset
from recengine.data.table import Kind, Table, read_delimited
from recengine.errors import InputError

_KINDS: dict[str, Kind] = {"token": "token", "token_seq": "token_seq", "float": "float"}


def read(directory: Path) -> Dataset:
    """Reads `<name>.inter` and, where they are, `<name>.user` and `<name>.item`.

    The interactions have `user_id`, `item_id` and `timestamp`; a `rating` is kept.
    """
    files = sorted(directory.glob("*.inter"))
    if len(files) != 1:
        raise InputError(f"{directory}: expected one .inter file, found {len(files)}")
    path = files[0]
    interactions = _read(path)
    rating = "rating" if "rating" in interactions.kinds else None
    users, items = (path.with_suffix(suffix) for suffix in (".user", ".item"))
    return build(
        path.stem,
        "recbole",
        interactions,
        Columns(rating=rating),
        _read(users) if users.exists() else None,
        _read(items) if items.exists() else None,
    )


def _read(path: Path) -> Table:
    raw = read_delimited(path, "\t", list_separator=" ")
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
