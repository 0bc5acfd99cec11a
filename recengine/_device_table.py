"""Embedding rows in the memory of a GPU, or in the host's with a cache of them on the GPU."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from recengine import _ops
from recengine._arrays import cast_array
from recengine._device import CudaArray, call_device
from recengine._embedding_table import EmbeddingTable, FusedLayout, FusedType, expect_one_of
from recengine.errors import InputError


@dataclasses.dataclass(frozen=True)
class CacheStats:
    """What the cache of a `DeviceTable` does; `sampled_hits / samples` is about its hit rate.

    Attributes:
        held: rows in the GPU's memory: as many as fit, or all.
        refreshes: until now.
        samples: rows that calls have read, as many of them as the last refresh has counted.
        sampled_hits: how many of these were found in the GPU's memory.
    """

    held: int
    refreshes: int
    samples: int
    sampled_hits: int


class DeviceTable:
    """Embedding rows [rows, dim] for a GPU; their values never change, and all calls share them.

    The copy's rows begin at multiples of 16 bytes, which is what the kernels read fastest, unless
    that would add more than a third to them.

    With `cache_bytes` the copy is in pinned memory of the host, so that it may be larger than the
    GPU's: calls read it over the bus, but for the hot rows, of which the GPU holds copies. Results
    are the same to the bit. `refresh` makes the rows that are read most the ones that are held;
    `warm` begins with rows that are known to be hot. Which rows are hot is estimated as by TinyLFU
    (Einziger, Friedman, Manes, ACM TOS 13, 2017).

    Args:
        table: rows on the CPU, which are copied.
        device: the GPU.
        cache_bytes: memory of the GPU for hot rows, 32 bytes a row for finding them included; 0 for
            no such rows, None for all rows on the GPU. int8 scales and 192 KiB are there besides.

    Raises:
        DeviceError: there is no such GPU, or it or the host has too little memory.
        InputError: `cache_bytes` is negative, or is given for 2^32 rows or more.
    """

    def __init__(
        self, table: EmbeddingTable, device: int = 0, *, cache_bytes: int | None = None
    ) -> None:
        self._native = (
            _ops.DeviceTable.copy(table._native, device)
            if cache_bytes is None
            else _ops.DeviceTable.spill(table._native, device, cache_bytes)
        )

    @classmethod
    def from_array(
        cls, data: CudaArray, scales: CudaArray | None = None, *, name: str = "table"
    ) -> DeviceTable:
        """Rows that are on a GPU already, borrowed as they are.

        Args:
            data: float32, float16, bfloat16, uint16 (the bits of bfloat16) or int8 [rows, dim] in C
                order, at least 1 row. Rows that begin at multiples of 16 bytes are read fastest.
            scales: float32 [rows], for int8 only: value = scale * code.
            name: what messages call the table.

        Raises:
            InputError: an array is not on a GPU, or dtype, shape or the presence of scales is not
                as said above.
        """
        device = call_device("[device_table]", data=data, scales=scales)
        if device is None:
            raise InputError("[device_table] data: expected an array on a GPU")
        table = cls.__new__(cls)
        table._native = _ops.DeviceTable.borrow(
            name,
            device.read("[device_table] data", data),
            None if scales is None else device.read("[device_table] scales", scales),
        )
        return table

    @classmethod
    def from_fused(
        cls,
        data: CudaArray,
        dim: int,
        row_type: FusedType,
        layout: FusedLayout = "tbe",
        *,
        name: str = "table",
    ) -> DeviceTable:
        """Quantised rows that are on a GPU already, see `EmbeddingTable.from_fused`.

        Raises:
            InputError: the array is not on a GPU, or a row has too few bytes.
        """
        expect_one_of("row_type", row_type, ("int8", "int4"))
        expect_one_of("layout", layout, ("tbe", "rowwise"))
        device = call_device("[device_table]", data=data)
        if device is None:
            raise InputError("[device_table] data: expected an array on a GPU")
        table = cls.__new__(cls)
        table._native = _ops.DeviceTable.borrow_fused(
            name,
            device.read("[device_table] data", data),
            dim,
            row_type == "int4",
            layout == "rowwise",
        )
        return table

    @property
    def name(self) -> str:
        """What messages call the table."""
        return self._native.name

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._native.rows

    @property
    def dim(self) -> int:
        """Values in a row."""
        return self._native.dim

    @property
    def device(self) -> int:
        """The GPU that it is on."""
        return self._native.device

    def refresh(self) -> int:
        """Holds the rows that were read most, by a sample of what calls have read.

        To be called every second or so by whoever owns the table, from any thread, also while calls
        run or are captured; it waits for calls that run, not for what waits on their streams. What
        a captured CUDA graph replays sees it, too. Nothing happens where all rows are on the GPU.

        Returns:
            How many of the rows held others have replaced.
        """
        return self._native.refresh()

    def warm(self, rows: npt.ArrayLike) -> int:
        """Holds these rows, and forgets what was counted.

        Args:
            rows: int64 [n], hottest first; where not all fit, the first ones are held.

        Returns:
            How many of the rows held others have replaced.

        Raises:
            InputError: a row is outside the table; the message names position and value.
        """
        return self._native.warm(cast_array("[device_table] rows", rows, np.int64))

    def stats(self) -> CacheStats:
        """How many rows are on the GPU, and how often those are what calls read."""
        return CacheStats(*self._native.stats())
