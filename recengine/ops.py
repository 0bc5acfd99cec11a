"""The core operations over NumPy arrays, over DLPack arrays on the CPU, and over a GPU's arrays.

Arrays that already have the dtype named and C order are not copied. The GIL is released while an
operation runs, and every operation may be called from many threads at once.

Arrays on a GPU are taken by DLPack or `__cuda_array_interface__`: of torch, of cupy, of any other
framework, or of `to_device`. They need the dtype named and C order. A call runs on the current
stream of the framework of its first array, and returns arrays of that framework. With `check` it
waits for the GPU and raises what it raises on the CPU; without, it only puts its work on the stream
(so that a CUDA graph can capture it), reads nothing outside its arrays, and where values are out of
range its result is undefined. Tables and the like that go wait for the calls that read them; what a
captured graph reads is for who replays it to keep.

`threads` is how many threads one call may use, None for every core that the process may use.
`isa` is one of `supported_isas()`, None for `default_isa()`. Neither changes a bit of the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from recengine import _cuda_ops, _cuda_topk, _ops
from recengine._arrays import DlpackArray, as_numpy, cast_array, expect_output
from recengine._device import CudaArray, call_device, to_device
from recengine._device_table import CacheStats, DeviceTable
from recengine._embedding_table import EmbeddingTable, RowType, fuse_rows, quantize_rows
from recengine._item_index import DeviceItemIndex, ItemIndex, LiveItemIndex
from recengine._ops import DeviceArray
from recengine._topk_check import check_against_fp64
from recengine._vocabulary import DeviceVocabulary, Vocabulary, build_slots
from recengine.errors import InputError

__all__ = [
    "CacheStats",
    "DeviceArray",
    "DeviceItemIndex",
    "DeviceTable",
    "DeviceVocabulary",
    "EmbeddingTable",
    "ItemIndex",
    "LiveItemIndex",
    "Pooling",
    "RowType",
    "TopKCertificate",
    "Vocabulary",
    "build_slots",
    "certified_topk",
    "cosine_topk",
    "cuda_built",
    "cuda_devices",
    "default_isa",
    "embedding_bag",
    "fuse_rows",
    "order",
    "quantize_rows",
    "supported_isas",
    "to_device",
    "usable_cores",
]

Pooling = Literal["sum", "mean", "none"]
_Output = TypeVar("_Output", bound=DlpackArray)


@overload
def embedding_bag(
    tables: Sequence[EmbeddingTable],
    rows: npt.ArrayLike,
    lengths: npt.ArrayLike,
    *,
    pooling: Pooling | Sequence[Pooling],
    weights: npt.ArrayLike | None = None,
    max_length: int | Sequence[int] = 0,
    out: None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> npt.NDArray[np.float32]: ...


@overload
def embedding_bag(
    tables: Sequence[EmbeddingTable],
    rows: npt.ArrayLike,
    lengths: npt.ArrayLike,
    *,
    pooling: Pooling | Sequence[Pooling],
    weights: npt.ArrayLike | None = None,
    max_length: int | Sequence[int] = 0,
    out: _Output,
    threads: int | None = None,
    isa: str | None = None,
) -> _Output: ...


@overload
def embedding_bag(
    tables: Sequence[DeviceTable],
    rows: CudaArray,
    lengths: CudaArray,
    *,
    pooling: Pooling | Sequence[Pooling],
    weights: CudaArray | None = None,
    max_length: int | Sequence[int] = 0,
    out: CudaArray | None = None,
    check: bool = True,
) -> Any: ...


def embedding_bag(
    tables: Sequence[Any],
    rows: Any,
    lengths: Any,
    *,
    pooling: Pooling | Sequence[Pooling],
    weights: Any = None,
    max_length: int | Sequence[int] = 0,
    out: Any = None,
    threads: int | None = None,
    isa: str | None = None,
    check: bool = True,
) -> Any:
    """Looks up and pools rows of many tables in one call.

    Bag (b, c) reads tables[c]; its rows follow those of the bag before it, user by user and column
    by column. Values are added in row order in fp32, the biases of fused rows apart and last. An
    empty bag gives zeros. On a GPU, the rows of a bag may be added as several sums, which are added
    last: a sum of n rows is off by at most (n + 4) 2^-24 of the sum of their magnitudes.

    Args:
        tables: one per column; the same table may stand in several. With arrays on a GPU these are
            DeviceTables there.
        rows: int64 [total], rows of the tables, all bags concatenated.
        lengths: int32 [batch, columns], rows of each bag.
        pooling: "sum", "mean" (the sum over the count, weighted or not) or "none" (the rows
            themselves one after the other, zeros behind them); one for all columns, or one each.
        weights: float32 [total], multiplied into each row.
        max_length: longest sequence of "none" columns; one for all, or one each. On a GPU also a
            hint for the others, 0 for none: a kernel treats bags of one row in another way.
        out: where the result goes: a float32 array [batch, width] in C order, of NumPy or, by
            DLPack, of another framework (with NumPy 2.1 or later), which is no memory of the other
            arguments; None for a new array. What it holds after an error is undefined.
        threads: see the module.
        isa: see the module.
        check: with arrays on a GPU: whether to wait for what is wrong with them, see the module.

    Returns:
        float32 [batch, width]: the columns side by side, each dim wide or max_length * dim for
        "none". `out` itself where it was given.

    Raises:
        InputError: a row is outside its table, or lengths are negative, do not sum to the rows or
            exceed max_length; the message names table, position and value. `out` cannot take the
            result.
    """
    columns = len(tables)
    poolings = [pooling] * columns if isinstance(pooling, str) else list(pooling)
    max_lengths = [max_length] * columns if isinstance(max_length, int) else list(max_length)
    if type(rows) is not np.ndarray:
        device = call_device(
            "[embedding_bag]", rows=rows, lengths=lengths, weights=weights, out=out
        )
        if device is not None:
            arrays = (rows, lengths, weights)
            return _cuda_ops.embedding_bag(
                device, tables, arrays, poolings, max_lengths, out, check
            )
    result = _ops.embedding_bag(
        [table._native for table in tables],
        poolings,
        max_lengths,
        cast_array("[embedding_bag] rows", rows, np.int64),
        cast_array("[embedding_bag] lengths", lengths, np.int32),
        None if weights is None else cast_array("[embedding_bag] weights", weights, np.float32),
        None if out is None else expect_output("[embedding_bag] out", out, np.float32),
        threads,
        isa,
    )
    return result if out is None else out


@dataclasses.dataclass(frozen=True)
class TopKCertificate:
    """Why the answers of a search are exact; arrays over its queries.

    An item was left out only when its estimated score plus `bound` was below a score that k items
    reach; all others were scored in fp32 as `cosine_topk` defines it.

    Attributes:
        threshold: float32 [batch], the k-th best score; -inf when there are fewer items.
        bound: float32 [batch], how far an estimate may be from the score; 0 where every item that
            was allowed was scored.
        survivors: int64 [batch], items that were not left out in the end.
        scored: int64 [batch], items whose score was computed on the way; without codes: all.
    """

    threshold: npt.NDArray[np.float32]
    bound: npt.NDArray[np.float32]
    survivors: npt.NDArray[np.int64]
    scored: npt.NDArray[np.int64]


@overload
def cosine_topk(
    index: ItemIndex | LiveItemIndex | npt.ArrayLike,
    queries: npt.ArrayLike,
    k: int,
    *,
    exclude: Sequence[npt.ArrayLike] | tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    allow: npt.ArrayLike | None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]: ...


@overload
def cosine_topk(
    index: DeviceItemIndex,
    queries: CudaArray,
    k: int,
    *,
    exclude: tuple[CudaArray, CudaArray] | None = None,
    allow: CudaArray | None = None,
    check: bool = True,
) -> tuple[Any, Any]: ...


def cosine_topk(
    index: Any,
    queries: Any,
    k: int,
    *,
    exclude: Any = None,
    allow: Any = None,
    threads: int | None = None,
    isa: str | None = None,
    check: bool = True,
) -> tuple[Any, Any]:
    """The exact k best items of each query by cosine, best first, ties by lower row.

    A large catalog is scanned as 8-bit codes: the product of two codes bounds a score from both
    sides (Cauchy-Schwarz on what the codes leave out), and only items that may be among the best
    are scored. `certified_topk` also says what that took. A GPU gives the same answer to the bit.

    Args:
        index: the items, or their vectors float [rows, dim], which are then packed in this call.
            With arrays on a GPU this is a DeviceItemIndex there.
        queries: float [batch, dim], of any length, finite.
        k: items wanted, at least 1; may exceed the number of items.
        exclude: rows that a query must not be answered with: a list of one int64 array per query,
            or the tuple (rows int64 [total], lengths int32 [batch]), which is what a GPU takes.
            Rows may repeat.
        allow: the only rows to answer with, for all queries: bool [rows], or packed uint64
            [ceil(rows / 64)] with row r at bit r % 64 of word r // 64. Rows are those of the index
            when it is searched: a LiveItemIndex may have got more by then.
        threads: see the module.
        isa: see the module.
        check: with arrays on a GPU: whether to wait for what is wrong with them, see the module.
            Without, a query that is not finite is answered with -1 and -inf.

    Returns:
        Rows int64 [batch, k] and scores float32 [batch, k]; what is missing is -1 and -inf.

    Raises:
        InputError: shapes disagree, that of `allow` included, a query is not finite or a row is
            outside the index.
    """
    device = _cuda_topk.search_device(queries, exclude, allow)
    if device is not None:
        return _cuda_topk.cosine_topk(device, index, queries, k, exclude, allow, check)
    rows, scores, _ = certified_topk(
        index, queries, k, exclude=exclude, allow=allow, threads=threads, isa=isa
    )
    return rows, scores


@overload
def certified_topk(
    index: ItemIndex | LiveItemIndex | npt.ArrayLike,
    queries: npt.ArrayLike,
    k: int,
    *,
    exclude: Sequence[npt.ArrayLike] | tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    allow: npt.ArrayLike | None = None,
    threads: int | None = None,
    isa: str | None = None,
    check: bool = False,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], TopKCertificate]: ...


@overload
def certified_topk(
    index: DeviceItemIndex,
    queries: CudaArray,
    k: int,
    *,
    exclude: tuple[CudaArray, CudaArray] | None = None,
    allow: CudaArray | None = None,
) -> tuple[Any, Any, TopKCertificate]: ...


def certified_topk(
    index: Any,
    queries: Any,
    k: int,
    *,
    exclude: Any = None,
    allow: Any = None,
    threads: int | None = None,
    isa: str | None = None,
    check: bool = False,
) -> tuple[Any, Any, TopKCertificate]:
    """`cosine_topk` and what shows that its answer is exact; takes and raises the same.

    With arrays on a GPU it waits for the answer, and the certificate comes to the CPU.

    With `check`, for debugging, every item is scored in fp64, too, and a RecengineError says what
    is not the best, up to the rounding of fp32 sums; not on a GPU. Of a LiveItemIndex the items
    that the search has seen are copied for it.
    """
    device = _cuda_topk.search_device(queries, exclude, allow)
    if device is not None:
        if check:
            raise InputError("[cosine_topk] check: expected an ItemIndex, found a DeviceItemIndex")
        rows, scores, bounds, counts = _cuda_topk.certified_topk(
            device, index, queries, k, exclude, allow
        )
        return rows, scores, TopKCertificate(*bounds.T, *counts.T)
    if isinstance(index, DeviceItemIndex):
        raise InputError("[cosine_topk] queries: expected an array on a GPU, as the index is")
    items = index if isinstance(index, (ItemIndex, LiveItemIndex)) else ItemIndex(index)
    exclude_rows, exclude_lengths = (None, None) if exclude is None else _pack_exclude(exclude)
    queries = cast_array("[cosine_topk] queries", queries, np.float32)
    bitmap = None if allow is None else _pack_allow(allow, items.rows)
    call = queries, k, exclude_rows, exclude_lengths, bitmap, threads, isa
    if not check:
        rows, scores, bounds, counts = _ops.cosine_topk(items._native, *call)
        return rows, scores, TopKCertificate(*bounds.T, *counts.T)
    (rows, scores, bounds, counts), item_rows, unit_vectors = _search_and_items(items, call)
    check_against_fp64(
        item_rows,
        unit_vectors,
        queries,
        rows,
        scores,
        _split_exclude(exclude_rows, exclude_lengths, len(rows)),
        None if bitmap is None else _unpack_allow(bitmap)[item_rows],
    )
    return rows, scores, TopKCertificate(*bounds.T, *counts.T)


@overload
def order(
    candidate_ids: npt.ArrayLike, scores: npt.ArrayLike, k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]: ...


@overload
def order(
    candidate_ids: CudaArray, scores: CudaArray, k: int, *, check: bool = True
) -> tuple[Any, Any]: ...


def order(candidate_ids: Any, scores: Any, k: int, *, check: bool = True) -> tuple[Any, Any]:
    """The k best candidates of each row, best first, ties by earlier position.

    Args:
        candidate_ids: int64 [batch, n]; id -1 is an empty slot and is dropped.
        scores: float32 [batch, n].
        k: candidates wanted, at least 1; may exceed n.
        check: with arrays on a GPU: whether to wait for what is wrong with them, see the module.

    Returns:
        Ids int64 [batch, k] and scores float32 [batch, k]; what is missing is -1 and -inf.

    Raises:
        InputError: the score of a candidate is not finite; the message names row and column.
    """
    if type(candidate_ids) is not np.ndarray:
        device = call_device("[order]", candidate_ids=candidate_ids, scores=scores)
        if device is not None:
            return _cuda_ops.order(device, candidate_ids, scores, k, check)
    return _ops.order(
        cast_array("[order] candidate_ids", candidate_ids, np.int64),
        cast_array("[order] scores", scores, np.float32),
        k,
    )


def default_isa() -> str:
    """The best instruction set of this CPU, or the one that RECENGINE_ISA names.

    Raises:
        DeviceError: RECENGINE_ISA names one that does not exist or that this CPU lacks.
    """
    return _ops.default_isa()


def cuda_built() -> bool:
    """Whether the native module was built with its CUDA parts (CMake option RECENGINE_CUDA)."""
    return _ops.cuda_built()


def cuda_devices() -> list[str]:
    """The GPUs that this process sees: name, compute capability, memory. Empty without a driver.

    Raises:
        DeviceError: the build has no CUDA parts, or the driver fails or is too old for it.
    """
    return _ops.cuda_devices()


def supported_isas() -> list[str]:
    """The instruction sets that this CPU has kernels for, weakest first."""
    return _ops.supported_isas()


def usable_cores() -> int:
    """Cores this process may use: the affinity mask, capped by the cgroup's CPU quota."""
    return _ops.usable_cores()


def _search_and_items(items: ItemIndex | LiveItemIndex, call: tuple[Any, ...]) -> Any:
    """What the search found, and the rows and unit vectors of the items that it has seen."""
    if isinstance(items, LiveItemIndex):
        return _ops.cosine_topk_and_items(items._native, *call)
    return _ops.cosine_topk(items._native, *call), np.arange(items.rows), items.unit_vectors


def _pack_exclude(
    exclude: Sequence[npt.ArrayLike] | tuple[npt.ArrayLike, npt.ArrayLike],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    name = "[cosine_topk] exclude"
    if isinstance(exclude, tuple):
        if len(exclude) != 2:
            raise InputError(f"{name}: expected the tuple (rows, lengths), found {len(exclude)}")
        return cast_array(name, exclude[0], np.int64), cast_array(name, exclude[1], np.int32)
    lists = [cast_array(name, rows, np.int64) for rows in exclude]
    lengths = np.array([rows.size for rows in lists], np.int32)
    return np.concatenate([np.empty(0, np.int64), *lists]), lengths


def _split_exclude(
    rows: npt.NDArray[np.int64] | None, lengths: npt.NDArray[np.int32] | None, batch: int
) -> list[npt.NDArray[np.int64]]:
    if rows is None or lengths is None or lengths.size == 0:
        return [np.empty(0, np.int64)] * batch
    return np.split(rows, np.cumsum(lengths)[:-1])


def _unpack_allow(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little").astype(bool)


def _pack_allow(allow: npt.ArrayLike, rows: int) -> npt.NDArray[np.uint64]:
    name = "[cosine_topk] allow"
    array = as_numpy(name, allow)
    if array.dtype != np.bool_:
        return cast_array(name, array, np.uint64)
    if array.shape != (rows,):
        raise InputError(f"{name}: expected shape ({rows},), found {array.shape}")
    bits = np.zeros((rows + 63) // 64 * 8, np.uint8)
    packed = np.packbits(array, bitorder="little")
    bits[: packed.size] = packed
    return bits.view("<u8").astype(np.uint64, copy=False)
