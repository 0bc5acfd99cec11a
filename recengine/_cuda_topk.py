"""The exact top-K on arrays of a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recengine import _ops
from recengine._device import Device, call_device
from recengine._item_index import DeviceItemIndex
from recengine._ops import DeviceArray
from recengine.errors import InputError


def search_device(queries: Any, exclude: Any, allow: Any) -> Device | None:
    """Where a search runs; None for the CPU."""
    if type(queries) is np.ndarray:
        return None
    rows, lengths = exclude if isinstance(exclude, tuple) and len(exclude) == 2 else (None, None)
    return call_device(
        "[cosine_topk]", queries=queries, exclude_rows=rows, exclude_lengths=lengths, allow=allow
    )


def cosine_topk(
    device: Device, index: object, queries: Any, k: int, exclude: Any, allow: Any, check: bool
) -> tuple[Any, Any]:
    """Rows and scores."""
    view = device.read("[cosine_topk] queries", queries)
    return _search(device, index, view, k, exclude, allow, None, check)


def certified_topk(
    device: Device, index: object, queries: Any, k: int, exclude: Any, allow: Any
) -> tuple[Any, Any, npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Rows, scores; on the CPU threshold and bound [batch, 2], survivors and scored [batch, 2]."""
    view = device.read("[cosine_topk] queries", queries)
    batch = view.shape[0] if view.shape else 0
    certificates = DeviceArray.empty([batch, 3], "<i8", device.index, device.stream)
    rows, scores = _search(device, index, view, k, exclude, allow, certificates, True)
    values = certificates.numpy()
    bounds = np.ascontiguousarray(values[:, 0]).view(np.float32).reshape(batch, 2)
    return rows, scores, bounds, values[:, 1:]


def _search(
    device: Device,
    index: object,
    queries: DeviceArray,
    k: int,
    exclude: Any,
    allow: Any,
    certificates: DeviceArray | None,
    check: bool,
) -> tuple[Any, Any]:
    if not isinstance(index, DeviceItemIndex):
        raise InputError(
            "[cosine_topk] index: expected a DeviceItemIndex with arrays on a GPU, found "
            f"{type(index).__name__}"
        )
    if k < 1:
        raise InputError(f"[cosine_topk] k: expected at least 1, found {k}")
    exclude_rows, exclude_lengths = _read_exclude(device, exclude)
    shape = (queries.shape[0] if queries.shape else 0, k)
    rows, scores = device.empty(shape, np.int64), device.empty(shape, np.float32)
    _ops.cosine_topk_cuda(
        index._native,
        queries,
        exclude_rows,
        exclude_lengths,
        _read_bitmap(device, index.rows, allow),
        device.read("[cosine_topk] rows", rows),
        device.read("[cosine_topk] scores", scores),
        certificates,
        device.index,
        device.stream,
        check,
    )
    return rows, scores


def _read_exclude(device: Device, exclude: Any) -> tuple[DeviceArray | None, DeviceArray | None]:
    if exclude is None:
        return None, None
    if not isinstance(exclude, tuple) or len(exclude) != 2:
        raise InputError(
            "[cosine_topk] exclude: expected the tuple (rows, lengths) with arrays on a GPU"
        )
    return (
        device.read("[cosine_topk] exclude_rows", exclude[0]),
        device.read("[cosine_topk] exclude_lengths", exclude[1]),
    )


def _read_bitmap(device: Device, rows: int, allow: Any) -> DeviceArray | None:
    """The words that allow rows; of a mask they are made first."""
    if allow is None:
        return None
    array = device.read("[cosine_topk] allow", allow)
    if array.dtype != "|b1":
        return array
    if array.shape != (rows,):
        raise InputError(f"[cosine_topk] allow: expected shape ({rows},), found {array.shape}")
    words = DeviceArray.empty([(rows + 63) // 64], "<u8", device.index, device.stream)
    _ops.pack_bitmap_cuda(array, words, device.index, device.stream)
    return words
