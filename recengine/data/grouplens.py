"""The folder formats of grouplens.org: `u.data`, `ratings.dat` and `ratings.csv`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl

from recengine.data.build import Columns, build
from recengine.data.dataset import Dataset
from recengine.data.table import Kind, Table, read_delimited

_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
_KINDS: dict[str, Kind] = {
    "user_id": "int",
    "item_id": "int",
    "rating": "float",
    "timestamp": "int",
    "title": "text",
    "genres": "token_seq",
    "zip_code": "text",
}
_GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
]  # fmt: skip
_NO_GENRES = "(no genres listed)"


def read_u_data(directory: Path) -> Dataset:
    """MovieLens-100K: `u.data`, `u.user`, `u.item`."""
    users = ["user_id", "age", "gender", "occupation", "zip_code"]
    items = ["item_id", "title", "date", "video_date", "url", *_GENRES]
    return build(
        directory.name,
        "u.data",
        read_delimited(directory / "u.data", "\t", _COLUMNS, _KINDS),
        Columns(rating="rating"),
        _optional(directory / "u.user", "|", users),
        _with_genres(_optional(directory / "u.item", "|", items)),
    )


def read_ratings_dat(directory: Path) -> Dataset:
    """MovieLens-1M and 10M: `ratings.dat`, `movies.dat` and, in 1M, `users.dat`."""
    return build(
        directory.name,
        "ratings.dat",
        read_delimited(directory / "ratings.dat", "::", _COLUMNS, _KINDS),
        Columns(rating="rating"),
        _optional(
            directory / "users.dat", "::", ["user_id", "gender", "age", "occupation", "zip_code"]
        ),
        _with_year(_optional(directory / "movies.dat", "::", ["item_id", "title", "genres"])),
    )


def read_ratings_csv(directory: Path) -> Dataset:
    """MovieLens-20M and later, and the `latest` sets: `ratings.csv` and `movies.csv`."""
    names = {"userId": "user_id", "movieId": "item_id"}
    kinds: dict[str, Kind] = {**_KINDS, "userId": "int", "movieId": "int"}
    ratings = read_delimited(directory / "ratings.csv", ",", kinds=kinds, quoted=True)
    movies = directory / "movies.csv"
    items = read_delimited(movies, ",", kinds=kinds, quoted=True) if movies.exists() else None
    return build(
        directory.name,
        "ratings.csv",
        _rename(ratings, names),
        Columns(rating="rating"),
        None,
        _with_year(_rename(items, names) if items else None),
    )


def _optional(path: Path, separator: str, columns: list[str]) -> Table | None:
    return read_delimited(path, separator, columns, _KINDS) if path.exists() else None


def _rename(table: Table, names: dict[str, str]) -> Table:
    kinds = {names.get(name, name): kind for name, kind in table.kinds.items()}
    return replace(table, frame=table.frame.rename(names, strict=False), kinds=kinds)


def _with_genres(items: Table | None) -> Table | None:
    """The 19 genre flags of u.item as one list, its release date as a year."""
    if items is None:
        return None
    for genre in _GENRES:
        wrong = ~items.frame[genre].is_in(["0", "1"])
        if wrong.any():
            row = int(wrong.arg_max() or 0)
            raise items.bad_row(row, f"0 or 1 for {genre}", items.frame[genre][row])
    names = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
    frame = items.frame.select(
        "item_id",
        "title",
        pl.col("date").str.extract(r"(\d{4})$").alias("release_year"),
        pl.concat_str(names, separator="|", ignore_nulls=True).alias("genres"),
    )
    return replace(items, frame=frame, kinds={n: _KINDS.get(n, "token") for n in frame.columns})


def _with_year(items: Table | None) -> Table | None:
    """The year that stands behind the title, as in `Toy Story (1995)`."""
    if items is None:
        return None
    frame = items.frame.with_columns(
        pl.col("title").str.extract(r"\((\d{4})\)\s*$").alias("release_year"),
        pl.col("genres").replace(_NO_GENRES, ""),
    )
    return replace(items, frame=frame, kinds={**items.kinds, "release_year": "token"})
