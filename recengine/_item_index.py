"""Item vectors packed for exact search: immutable, changing, or in the memory of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from recengine import _ops
from recengine._arrays import as_numpy, cast_array
from recengine.errors import InputError

_CODE_ARRAYS: dict[str, type[np.generic]] = {
    "codes": np.uint8,
    "bounds": np.float32,
    "axes": np.float32,
    "scans": np.float32,
}
_CodeArrays = tuple[
    npt.NDArray[np.uint8],
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
    npt.NDArray[np.float32],
]


def _as_arrays(codes: Mapping[str, npt.ArrayLike] | None) -> _CodeArrays | None:
    if codes is None:
        return None
    if set(codes) != set(_CODE_ARRAYS):
        raise InputError(
            f"[item_index] codes: expected {sorted(_CODE_ARRAYS)}, found {sorted(codes)}"
        )
    blocks, bounds, axes, scans = (
        cast_array(f"[item_index] {name}", codes[name], dtype)
        for name, dtype in _CODE_ARRAYS.items()
    )
    return blocks, bounds, axes, scans


class ItemIndex:
    """Item vectors packed for exact search: immutable, shared by all queries.

    From 2^19 values on the index also holds an 8-bit code of each, at most dim + 8 bytes an item in
    all, which is what a search reads; of the float32 vectors it then reads some hundred rows.
    Vectors that are long along few principal axes, as trained ones are, are rotated for the codes,
    so that a search need not read all dimensions; the index measures whether that pays.

    Codes that are read from memory may be split: a search for one query or two then reads the high
    four bits of all, and the low ones of the few items that these leave.

    Args:
        vectors: float [rows, dim], normalised here; a row of zeros stays so and scores 0.
        split_codes: whether codes are split; if not said, from 32 MiB of them on, where all
            dimensions are read and a sample shows that few items are left. A cache that holds all
            gives whole codes faster to more queries.

    Raises:
        InputError: a value is not finite; the message names the row.
    """

    def __init__(self, vectors: npt.ArrayLike, *, split_codes: bool | None = None) -> None:
        array = cast_array("[item_index] vectors", vectors, np.float32)
        self._native = _ops.ItemIndex.build(array, split_codes)

    @classmethod
    def from_unit_vectors(
        cls,
        unit_vectors: npt.ArrayLike,
        codes: Mapping[str, npt.ArrayLike] | None = None,
        *,
        split_codes: bool | None = None,
    ) -> ItemIndex:
        """An index over vectors that are of unit length already; they are not copied.

        They must stay as they are while the index lives: its codes are of them. Rows of a catalog
        that does not fit in memory may be a `numpy.memmap`; a search reads few of them.

        Args:
            unit_vectors: float32 [rows, dim], or float16, which stand for their values in float32:
                scores are made of these, and queries stay float32.
            codes: what `stored_codes` gave for these vectors, so that nothing is packed; "codes" is
                not copied and may be a `numpy.memmap`.
            split_codes: as above, where codes are made here.

        Raises:
            InputError: the rank is not 2, a value is not finite where codes are made here, or
                `codes` are not of these vectors: of 64 blocks of 64 items they are made again and
                compared. Or both `codes` and `split_codes` are given.
        """
        name = "[item_index] unit_vectors"
        array = as_numpy(name, unit_vectors)
        if array.dtype == np.float16:
            array = np.require(array, requirements=["C", "A"]).view(np.uint16)
        else:
            array = cast_array(name, array, np.float32)
        if codes is not None and split_codes is not None:
            raise InputError("[item_index] split_codes: expected none beside codes, which have it")
        index = cls.__new__(cls)
        index._native = _ops.ItemIndex.from_unit_vectors(array, _as_arrays(codes), split_codes)
        return index

    def stored_codes(self) -> dict[str, npt.NDArray[Any]] | None:
        """The codes as arrays to store and to give to `from_unit_vectors`, on any machine.

        Returns:
            "codes" uint8, a read-only view, dim bytes an item or four more, and "bounds", "axes"
            and "scans", float32, all of rank 1; None for a small catalog, which has no codes.
        """
        arrays = self._native.stored_codes()
        return None if arrays is None else dict(zip(_CODE_ARRAYS, arrays, strict=True))

    @property
    def rows(self) -> int:
        """Number of items."""
        return self._native.rows

    @property
    def dim(self) -> int:
        """Values in a vector."""
        return self._native.dim

    @property
    def partial_scans(self) -> list[int]:
        """How many dimensions a search may read instead of all; empty where it does not pay.

        The bound of what is not read is that of Cauchy and Schwarz; answers are the same.
        """
        return self._native.partial_scans

    @property
    def split_codes(self) -> bool:
        """Whether the high four bits of all codes are kept apart from the low ones."""
        return self._native.split_codes

    @property
    def unit_vectors(self) -> npt.NDArray[np.float32] | npt.NDArray[np.float16]:
        """A read-only view [rows, dim]."""
        vectors = self._native.unit_vectors
        return vectors.view(np.float16) if vectors.dtype == np.uint16 else vectors


class LiveItemIndex:
    """Item vectors that are searched exactly while items are appended, replaced and removed.

    A row keeps its number for ever. A search sees every write that had returned when it began, and
    waits for none. What was written since the last merge stands beside the packed items: float32
    vectors that every search reads whole. A merge packs all live items anew, in the background once
    more than max(4096, packed / 64) wait or max(4096, packed / 8) of these are removed; it needs
    memory for a second copy of all. After it a removed row takes 1.5 bits.

    Args:
        vectors: float [rows, dim], the first items, normalised here; may have no rows.

    Raises:
        InputError: a value is not finite; the message names the row.
    """

    def __init__(self, vectors: npt.ArrayLike) -> None:
        self._native = _ops.LiveItemIndex(cast_array("[item_index] vectors", vectors, np.float32))

    def append(self, vectors: npt.ArrayLike) -> int:
        """Adds items.

        Args:
            vectors: float [count, dim], normalised here.

        Returns:
            The row of the first of them; the others follow it.

        Raises:
            InputError: the shape is wrong or a value is not finite; nothing has changed.
        """
        return self._native.append(cast_array("[live_item_index] vectors", vectors, np.float32))

    def replace(self, rows: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        """Gives items new vectors.

        Args:
            rows: int64 [count], distinct, none of them removed.
            vectors: float [count, dim], normalised here.

        Raises:
            InputError: a row is outside, was removed or is given twice, shapes disagree, or a value
                is not finite; the message names position and value, and nothing has changed.
        """
        self._native.replace(
            cast_array("[live_item_index] rows", rows, np.int64),
            cast_array("[live_item_index] vectors", vectors, np.float32),
        )

    def remove(self, rows: npt.ArrayLike) -> None:
        """Takes items out of all answers; their rows are not given again.

        Args:
            rows: int64 [count], distinct, none of them removed.

        Raises:
            InputError: a row is outside, was removed or is given twice; the message names position
                and value, and nothing has changed.
        """
        self._native.remove(cast_array("[live_item_index] rows", rows, np.int64))

    def merge(self) -> None:
        """Packs all that was written before the call, and returns when that is done.

        Raises:
            MemoryError: a second copy does not fit in memory, now or when a merge last began by
                itself; searches and writes go on as before.
        """
        self._native.merge()

    @property
    def rows(self) -> int:
        """Rows given so far, removed ones included."""
        return self._native.rows

    @property
    def size(self) -> int:
        """Number of items: rows that were not removed."""
        return self._native.size

    @property
    def dim(self) -> int:
        """Values in a vector."""
        return self._native.dim

    @property
    def packed(self) -> int:
        """Items as the last merge packed them, those included that were removed since."""
        return self._native.packed

    @property
    def pending(self) -> int:
        """Vectors that wait for a merge, those included that were replaced or removed since."""
        return self._native.pending


class DeviceItemIndex:
    """The items of an index in the memory of a GPU; immutable, shared by all calls.

    It holds the float32 vectors and, of a catalog of 2^19 values or more, 8-bit codes of them,
    which is what a search reads: 4 dim + dim bytes an item, the latter rounded up to 32.

    Args:
        index: the items on the CPU, or their vectors float [rows, dim]; they are copied.
        device: the GPU.

    Raises:
        DeviceError: there is no such GPU, or it has too little memory.
        InputError: a vector is not finite; the message names its row.
    """

    def __init__(self, index: ItemIndex | npt.ArrayLike, device: int = 0) -> None:
        items = index if isinstance(index, ItemIndex) else ItemIndex(index, split_codes=False)
        self._native = _ops.DeviceItemIndex.copy(items._native, device)

    @property
    def rows(self) -> int:
        """Number of items."""
        return self._native.rows

    @property
    def dim(self) -> int:
        """Values in a vector."""
        return self._native.dim

    @property
    def device(self) -> int:
        """The GPU that it is on."""
        return self._native.device
