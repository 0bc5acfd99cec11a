"""One call for all formats."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from recengine.data import grouplens, recbole, tabular
from recengine.data.build import Columns, refuse_missing
from recengine.data.dataset import Dataset
from recengine.errors import InputError

Format = Literal["recbole", "u.data", "ratings.dat", "ratings.csv", "parquet", "csv"]
# What a format leaves open; the others name their columns and files themselves.
_ARGUMENTS: dict[Format, tuple[str, ...]] = {
    "recbole": ("columns",),
    "u.data": (),
    "ratings.dat": (),
    "ratings.csv": (),
    "parquet": ("columns", "users", "items"),
    "csv": ("columns", "users", "items"),
}


def read(
    path: Path | str,
    format: Format | None = None,
    *,
    columns: Columns | None = None,
    users: Path | str | None = None,
    items: Path | str | None = None,
) -> Dataset:
    """Reads a data set.

    Args:
        path: a folder (RecBole atomic files, MovieLens) or a Parquet or CSV file of interactions.
        format: how it is stored; None to look.
        columns: names of the columns of a Parquet, CSV or RecBole file.
        users: Parquet or CSV file of user features, beside such a file.
        items: Parquet or CSV file of item features.

    Raises:
        InputError: the format is unknown or does not take an argument, or a row is bad; the message
            names file and line.
    """
    path = Path(path)
    format = format or detect_format(path)
    if format not in _ARGUMENTS:
        raise InputError(f"[read] format: expected {', '.join(_ARGUMENTS)}, found {format!r}")
    for name, value in (("columns", columns), ("users", users), ("items", items)):
        if value is not None and name not in _ARGUMENTS[format]:
            raise InputError(f"[read] {name}: {format} takes none, found {value}")
    match format:
        case "recbole":
            return recbole.read(path, columns)
        case "u.data":
            return grouplens.read_u_data(path)
        case "ratings.dat":
            return grouplens.read_ratings_dat(path)
        case "ratings.csv":
            return grouplens.read_ratings_csv(path)
        case "parquet" | "csv":
            return tabular.read(
                path,
                columns or Columns(),
                Path(users) if users else None,
                Path(items) if items else None,
            )


def detect_format(path: Path | str) -> Format:
    """The format of what stands at `path`, by file names alone."""
    path = Path(path)
    refuse_missing(path)
    if path.is_file():
        if path.suffix == ".parquet":
            return "parquet"
        if path.suffix in (".csv", ".tsv"):
            return "csv"
    elif any(path.glob("*.inter")):
        return "recbole"
    elif (path / "u.data").exists():
        return "u.data"
    elif (path / "ratings.dat").exists():
        return "ratings.dat"
    elif (path / "ratings.csv").exists():
        return "ratings.csv"
    raise InputError(
        f"{path}: expected a folder with *.inter, u.data, ratings.dat or ratings.csv, "
        "or a .parquet, .csv or .tsv file"
    )
