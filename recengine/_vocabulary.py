"""Vocabularies: raw ids to table rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recengine import _cuda_ops, _ops
from recengine._arrays import cast_array
from recengine._device import CudaArray, call_device
from recengine.errors import InputError


class Vocabulary:
    """Maps int64 ids to table rows: row 0 is out-of-vocabulary, the i-th key has row i + 1.

    Make one with `range` or `from_keys`, or from the slots of `build_slots`.
    """

    def __init__(self, slot_keys: npt.ArrayLike, slot_rows: npt.ArrayLike, count: int) -> None:
        self._native = _ops.Vocabulary.hashed(
            cast_array("[vocabulary] slot_keys", slot_keys, np.int64),
            cast_array("[vocabulary] slot_rows", slot_rows, np.int32),
            count,
        )

    @classmethod
    def range(cls, first: int, count: int) -> Vocabulary:
        """Ids first .. first + count - 1 have rows 1 .. count.

        Raises:
            InputError: the ids leave int64 or hold -1, which means "no item".
        """
        vocabulary = cls.__new__(cls)
        vocabulary._native = _ops.Vocabulary.range(first, count)
        return vocabulary

    @classmethod
    def from_keys(cls, keys: npt.ArrayLike) -> Vocabulary:
        """The i-th of int64 [count] distinct keys has row i + 1; order does not matter.

        Raises:
            InputError: a key repeats or is -1; the message names its position.
        """
        array = cast_array("[vocabulary] keys", keys, np.int64)
        return cls(*build_slots(array), array.size)

    @property
    def size(self) -> int:
        """Number of keys, the out-of-vocabulary row not counted."""
        return self._native.size

    def lookup(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The table row of every id, in the shape of `ids`; 0 where unknown."""
        array = cast_array("[vocabulary] ids", ids, np.int64)
        return self._native.lookup(array.reshape(-1)).reshape(array.shape)


def build_slots(
    keys: npt.ArrayLike,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Lays keys out as the open-addressing table that a hashed vocabulary borrows.

    Args:
        keys: int64 [count], distinct, none of them -1.

    Returns:
        slot_keys int64 [capacity] and slot_rows int32 [capacity], row -1 in an empty slot; at most
        16 bytes a key.

    Raises:
        InputError: a key repeats or is -1; the message names its position.
    """
    return _ops.build_slots(cast_array("[build_slots] keys", keys, np.int64))


class DeviceVocabulary:
    """A vocabulary whose slots lie in the memory of a GPU; immutable, shared by all calls.

    Args:
        vocabulary: what is copied.
        device: the GPU.

    Raises:
        DeviceError: there is no such GPU, or it has too little memory.
    """

    def __init__(self, vocabulary: Vocabulary, device: int = 0) -> None:
        self._native = _ops.DeviceVocabulary(vocabulary._native, device)

    @property
    def size(self) -> int:
        """Number of keys, the out-of-vocabulary row not counted."""
        return self._native.size

    @property
    def device(self) -> int:
        """The GPU that it is on."""
        return self._native.device

    def lookup(self, ids: CudaArray) -> Any:
        """The table row of every id of int64 `ids` on that GPU, in their shape; 0 where unknown.

        Runs on the caller's stream, and does not wait; see `recengine.ops`.

        Raises:
            InputError: `ids` are not int64, not in C order or not on that GPU.
        """
        device = call_device("[vocabulary]", ids=ids)
        if device is None:
            raise InputError("[vocabulary] ids: expected an array on a GPU")
        return _cuda_ops.lookup(device, self._native, ids)
