"""The sparse half: vocabularies, embedding rows, item vectors, each checked and laid out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recengine import ops
from recengine.bundle import Bag, Fallback, Index, RowType, Table, Tensor, Vocabulary
from recengine.data.dataset import Int64s
from recengine.errors import InputError
from recengine.keys import NO_ITEM

Array = NDArray[Any]
Arrays = dict[str, Array]

_FALLBACK_PER_CANDIDATE = 10


class TensorFile:
    """Collects the tensors of one safetensors file of a bundle."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tensors: Arrays = {}

    def add(self, tensor: str, array: Array) -> Tensor:
        """Takes a tensor and tells where it will be."""
        self.tensors[tensor] = array
        return Tensor(file=self.name, tensor=tensor)


def add_vocabulary(file: TensorFile, name: str, keys: Int64s) -> Vocabulary:
    """A dense range of ids needs no file; other keys are laid out for hashing.

    Raises:
        InputError: two keys are the same id (strings may collide when hashed), or one is -1.
    """
    unique, counts = np.unique(keys, return_counts=True)
    if (counts > 1).any():
        raise InputError(
            f"[export] vocabulary {name!r}: expected distinct ids, "
            f"found {unique[counts > 1][0]} {counts.max()} times"
        )
    if (keys == NO_ITEM).any():
        raise InputError(
            f"[export] vocabulary {name!r}: id {NO_ITEM} means that there is none, "
            f"found it at position {int(np.argmax(keys == NO_ITEM))}"
        )
    first, last = (int(keys[0]), int(keys[-1])) if len(keys) else (0, -1)
    if last - first == len(keys) - 1 and (np.diff(keys) == 1).all():
        return Vocabulary(kind="range", count=len(keys), first=first)
    slot_keys, slot_rows = ops.build_slots(keys)
    return Vocabulary(
        kind="hashed",
        count=len(keys),
        keys=file.add(f"{name}.keys", slot_keys),
        rows=file.add(f"{name}.rows", slot_rows),
    )


def add_table(file: TensorFile, name: str, values: Array, row_type: RowType) -> Table:
    """Embedding rows [rows, dim] stored as `row_type`, as `ops.EmbeddingTable.from_array` does.

    Raises:
        InputError: a row is not finite, or is not once stored as `row_type`.
    """
    check_finite(name, values)
    array = np.ascontiguousarray(values, np.float32)
    table = ops.EmbeddingTable.from_array(array, row_type, name=name)
    scales = None if table.scales is None else file.add(f"{name}.scales", table.scales)
    data = file.add(name, table.data)
    return Table(rows=table.rows, dim=table.dim, row_type=row_type, data=data, scales=scales)


def add_tables(
    file: TensorFile, model: str, bags: Iterable[Bag], weights: Arrays, row_type: RowType
) -> tuple[list[Bag], dict[str, Table]]:
    """The tables that a model's bags read; both are renamed to `model`.table.

    Tables that only items use are left out: their rows are in the item vectors.
    """
    renamed = [bag.model_copy(update={"table": f"{model}.{bag.table}"}) for bag in bags]
    used = dict.fromkeys(bag.table for bag in bags)
    tables = {
        f"{model}.{name}": add_table(file, f"{model}.{name}", weights[name], row_type)
        for name in used
    }
    return renamed, tables


def add_index(file: TensorFile, vectors: Array, keys: Int64s) -> Index:
    """Item vectors scaled to unit length in fp64, as the engine's own index would."""
    check_finite("item vectors", vectors)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    rows, dim = vectors.shape
    return Index(
        rows=rows,
        dim=dim,
        vectors=file.add("vectors", unit.astype(np.float32)),
        keys=file.add("keys", keys),
    )


def add_fallback(file: TensorFile, popularity: Int64s, max_candidates: int) -> Fallback:
    """The most popular items, enough of them to fill an answer after what it excludes.

    Scores are log(1 + count), scaled so that the most popular item has 1.
    """
    best = np.argsort(-popularity, kind="stable")[: _FALLBACK_PER_CANDIDATE * max_candidates]
    scores = np.log1p(popularity[best].astype(np.float64))
    scores /= max(scores.max(initial=0), 1)
    return Fallback(
        rows=file.add("fallback_rows", best.astype(np.int64)),
        scores=file.add("fallback_scores", scores.astype(np.float32)),
    )


def check_finite(name: str, values: Array) -> None:
    """Refuses NaN and infinity, which no kernel or graph downstream would notice.

    Raises:
        InputError: naming the first row that has one.
    """
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        column = int(np.argmax(~np.isfinite(values[row])))
        raise InputError(
            f"[export] {name}: row {row}, column {column}: expected a finite value, "
            f"found {values[row, column]}"
        )
