"""What `recengine.ops` does with arrays on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recengine import _ops
from recengine._device import Device
from recengine._device_table import DeviceTable
from recengine._embedding_table import EmbeddingTable
from recengine.errors import InputError


def embedding_bag(
    device: Device,
    tables: Sequence[EmbeddingTable | DeviceTable],
    arrays: tuple[Any, Any, Any],
    poolings: Sequence[str],
    max_lengths: Sequence[int],
    out: Any,
    check: bool,
) -> Any:
    """`arrays` are rows, lengths and weights."""
    natives = []
    for table in tables:
        if not isinstance(table, DeviceTable):
            raise InputError(
                f"[embedding_bag] tables: expected DeviceTables with arrays on a GPU, found "
                f"{type(table).__name__}"
            )
        natives.append(table._native)
    rows, lengths, weights = (
        None if array is None else device.read(f"[embedding_bag] {name}", array)
        for name, array in zip(("rows", "lengths", "weights"), arrays, strict=True)
    )
    assert rows is not None
    assert lengths is not None
    if out is None:
        width = _ops.bag_width(natives, poolings, max_lengths)
        out = device.empty((lengths.shape[0] if lengths.shape else 0, width), np.float32)
    result = device.read("[embedding_bag] out", out)
    _ops.embedding_bag_cuda(
        natives,
        poolings,
        max_lengths,
        rows,
        lengths,
        weights,
        result,
        device.index,
        device.stream,
        check,
    )
    return out


def order(device: Device, candidate_ids: Any, scores: Any, k: int, check: bool) -> tuple[Any, Any]:
    """The best ids and their scores."""
    if k < 1:
        raise InputError(f"[order] k: expected at least 1, found {k}")
    ids = device.read("[order] candidate_ids", candidate_ids)
    values = device.read("[order] scores", scores)
    shape = (ids.shape[0] if ids.shape else 0, k)
    best_ids, best_scores = device.empty(shape, np.int64), device.empty(shape, np.float32)
    _ops.order_cuda(
        ids,
        values,
        device.read("[order] best_ids", best_ids),
        device.read("[order] best_scores", best_scores),
        device.index,
        device.stream,
        check,
    )
    return best_ids, best_scores


def lookup(device: Device, vocabulary: _ops.DeviceVocabulary, ids: Any) -> Any:
    """The table row of every id, in the shape of `ids`."""
    if device.index != vocabulary.device:
        raise InputError(
            f"[vocabulary] ids: expected an array on cuda:{vocabulary.device}, found one on "
            f"cuda:{device.index}"
        )
    wanted = device.read("[vocabulary] ids", ids)
    rows = device.empty(wanted.shape, np.int64)
    vocabulary.lookup(wanted, device.read("[vocabulary] rows", rows), device.stream)
    return rows
