"""What callers pass as arrays, on its way into the native module."""

from __future__ import annotations

from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from recengine.errors import InputError

_DTYPES: dict[type[np.generic], np.dtype[Any]] = {
    dtype: np.dtype(dtype) for dtype in (np.float32, np.int32, np.int64, np.uint8, np.uint64)
}


class DlpackArray(Protocol):
    """What DLPack makes known to others: NumPy's arrays, torch's, and more."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """The device, as DLPack counts them."""


def as_numpy(name: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    """The array itself, or a view of what offers DLPack on the CPU."""
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "__dlpack__"):
        return np.asarray(value)
    try:
        return np.from_dlpack(cast(Any, value))
    except (BufferError, RuntimeError, TypeError) as error:
        raise InputError(f"{name}: expected an array on the CPU: {error}") from None


def cast_array(name: str, value: npt.ArrayLike, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """The array as `dtype` in C order; integers stay integers and keep their value."""
    wanted = _DTYPES[dtype]
    if type(value) is np.ndarray and value.dtype is wanted:  # what costs nothing comes first
        flags = value.flags
        if flags.c_contiguous and flags.aligned:
            return value
    array = as_numpy(name, value)
    kinds = "f" if wanted.kind == "f" else "iu"
    if array.size > 0 and array.dtype.kind not in kinds:
        raise InputError(f"{name}: expected {wanted}, found {array.dtype}")
    if array.size > 0 and wanted.kind != "f" and not np.can_cast(array.dtype, wanted):
        limits = np.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InputError(f"{name}: expected values within {wanted}, found {array.dtype} beyond")
    with np.errstate(over="ignore"):  # what becomes infinite is refused by the operation
        return np.require(array, wanted, ["C", "A"])


def expect_output(name: str, value: DlpackArray, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """The array, or a view of it, which an operation can write to as it is."""
    if not hasattr(value, "__dlpack__"):
        raise InputError(f"{name}: expected an array, found {type(value).__name__}")
    array = as_numpy(name, cast(Any, value))
    if array.dtype != _DTYPES[dtype]:
        raise InputError(f"{name}: expected {_DTYPES[dtype]}, found {array.dtype}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise InputError(f"{name}: expected an array in C order, found strides {array.strides}")
    if not array.flags.writeable:
        raise InputError(f"{name}: expected an array to write to, found one that is read-only")
    return array
