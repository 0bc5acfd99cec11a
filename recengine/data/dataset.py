"""A typed data set: who took what and when, and what is known of users and items."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recengine.errors import InputError

Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class Ragged:
    """Lists of int64 of different lengths: list i is values[offsets[i] : offsets[i + 1]]."""

    values: Int64s
    offsets: Int64s

    @staticmethod
    def of(lists: Sequence[Sequence[int] | Int64s]) -> Ragged:
        """Packs Python lists or arrays."""
        lengths = [len(values) for values in lists]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        arrays = [np.asarray(values, np.int64) for values in lists]
        return Ragged(np.concatenate(arrays) if arrays else np.empty(0, np.int64), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Int64s:
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def __iter__(self) -> Iterator[Int64s]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> Int64s:
        """Length of each list, [n]."""
        lengths: Int64s = np.diff(self.offsets)
        return lengths

    def padded(self, width: int, padding: int) -> Int64s:
        """The last `width` values of each list, right-aligned: [n, width]."""
        positions = self.offsets[1:, None] + np.arange(-width, 0)
        inside = positions >= self.offsets[:-1, None]
        values: Int64s = np.append(self.values, padding)[
            np.where(inside, positions, len(self.values))
        ]
        return values


@dataclass(frozen=True)
class Interactions:
    """Who took what, oldest first; equal times keep the order of the file."""

    users: Int64s
    items: Int64s
    times: Int64s
    ratings: Float32s | None = None

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class FeatureTable:
    """What is known of the users, or of the items: row i is about `ids[i]`.

    Attributes:
        ids: int64 [n], ascending.
        sparse: lists of ids by feature name; an unknown value is an empty list.
        dense: fp32 [n] by feature name; an unknown value is NaN.
        text: strings for display by column name.
        hashed: sparse features whose ids are `recengine.keys.hash_key` of strings.
        keys: the strings [n] where `ids` are hashes themselves, else none.
    """

    ids: Int64s
    sparse: dict[str, Ragged] = field(default_factory=dict)
    dense: dict[str, Float32s] = field(default_factory=dict)
    text: dict[str, list[str]] = field(default_factory=dict)
    hashed: frozenset[str] = frozenset()
    keys: list[str] = field(default_factory=list)

    def find(self, ids: Int64s) -> Int64s:
        """Row of each id.

        Raises:
            InputError: naming the first id that has no row.
        """
        rows = np.searchsorted(self.ids, ids)
        found = rows < len(self.ids)
        found[found] = self.ids[rows[found]] == ids[found]
        if not found.all():
            raise InputError(f"[dataset] id {ids[~found][0]} is not in the table")
        return rows


@dataclass(frozen=True)
class Dataset:
    """Interactions with features of users and items; every id of an interaction has a row there.

    Attributes:
        hashed_users: user ids are `recengine.keys.hash_key` of strings.
        hashed_items: item ids are.
        source: where it came from: format, path, sha256.
    """

    name: str
    interactions: Interactions
    users: FeatureTable
    items: FeatureTable
    hashed_users: bool = False
    hashed_items: bool = False
    source: dict[str, str] = field(default_factory=dict)
