"""Arrays on a GPU: the device and the stream that a call runs on, and who makes its results.

Arrays are taken by DLPack or `__cuda_array_interface__`. A call runs on the current stream of the
framework whose array is its first one, and that framework makes the arrays that it returns.
"""

from __future__ import annotations

import dataclasses
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from recengine import _ops
from recengine._ops import DeviceArray
from recengine.errors import InputError

_DLPACK_CUDA = (2, 13)  # of a device, and managed by the driver
_LEGACY_STREAM = 1
_NO_STREAM = -1  # the producer need not do anything
_FRAMEWORKS = ("torch", "cupy")  # that have a current stream


class CudaArray(Protocol):
    """What a GPU's array offers at least; `__cuda_array_interface__` alone does, too."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """The device, as DLPack counts them."""


def to_device(values: npt.ArrayLike, device: int = 0) -> DeviceArray:
    """Copies an array to a GPU, on its legacy default stream.

    The result offers `numpy()`, DLPack and `__cuda_array_interface__`. It is for programs that use
    no framework: torch's and cupy's own arrays can be passed to every operation as they are.

    Raises:
        InputError: the dtype is neither a number nor bool.
        DeviceError: there is no such device.
    """
    return DeviceArray.from_numpy(np.asarray(values), device, 0)


@dataclasses.dataclass(frozen=True)
class Device:
    """Where one call runs."""

    index: int
    stream: int  # a cudaStream_t, 0 for the legacy default stream
    framework: str  # "torch", "cupy" or another

    def read(self, name: str, value: Any) -> DeviceArray:
        """A view of an array on this device, whose data are ready on this stream."""
        try:
            if isinstance(value, DeviceArray):
                _order_after(self, value.stream)
                differ = _differ(self.stream, value.stream)
                return value.for_stream(self.stream) if differ else value
            if hasattr(value, "__dlpack__"):
                with _current_device(_framework(value), self.index):
                    return DeviceArray.from_dlpack(value.__dlpack__(stream=self._consumer(value)))
            interface = value.__cuda_array_interface__
            _order_after(self, interface.get("stream"))
            return _from_interface(interface, value)
        except (BufferError, InputError, RuntimeError, TypeError) as error:
            raise InputError(f"{name}: {error}") from None

    def _consumer(self, value: Any) -> int:
        """The stream that a producer must have an array ready on, as DLPack names it.

        The framework whose current stream this is has its arrays ready there.
        """
        if self.framework in _FRAMEWORKS and _framework(value) == self.framework:
            return _NO_STREAM
        return self.stream or _LEGACY_STREAM

    def upload(self, values: npt.NDArray[Any]) -> Any:
        """A copy of an array of the host, in the framework of the arguments."""
        array = DeviceArray.from_numpy(values, self.index, self.stream)
        if self.framework in _FRAMEWORKS:
            return sys.modules[self.framework].from_dlpack(array)
        return array

    def empty(self, shape: tuple[int, ...], dtype: type[np.generic]) -> Any:
        """An array for a result, made by the framework of the arguments."""
        name = np.dtype(dtype).name
        if self.framework == "torch":
            torch = sys.modules["torch"]
            return torch.empty(shape, dtype=getattr(torch, name), device=f"cuda:{self.index}")
        if self.framework == "cupy":
            cupy = sys.modules["cupy"]
            with _current_device("cupy", self.index):
                return cupy.empty(shape, name)
        return DeviceArray.empty(list(shape), np.dtype(dtype).str, self.index, self.stream)


def call_device(op: str, **arrays: Any) -> Device | None:
    """Where a call with these arrays runs; None when all of them are on the CPU.

    Raises:
        InputError: they are not all on one device; the message names the first that is elsewhere.
    """
    given = {name: value for name, value in arrays.items() if value is not None}
    found = {name: _index_of(f"{op} {name}", value) for name, value in given.items()}
    on_gpu = [name for name, index in found.items() if index is not None]
    if not on_gpu:
        return None
    index = found[on_gpu[0]]
    assert index is not None
    for name, other in found.items():
        if other != index:
            where = "the CPU" if other is None else f"cuda:{other}"
            raise InputError(
                f"{op} {name}: expected an array on cuda:{index}, found one on {where}"
            )
    first = given[on_gpu[0]]
    framework = _framework(first)
    return Device(index, _current_stream(framework, first, index), framework)


def _framework(value: Any) -> str:
    """Whose array it is."""
    return type(value).__module__.partition(".")[0]


def _current_device(framework: str, index: int) -> AbstractContextManager[Any]:
    """Makes a GPU the framework's current one: torch exports arrays of that one alone."""
    if framework == "torch":
        return cast("AbstractContextManager[Any]", sys.modules["torch"].cuda.device(index))
    if framework == "cupy":
        return cast("AbstractContextManager[Any]", sys.modules["cupy"].cuda.Device(index))
    return nullcontext()


def _index_of(name: str, value: Any) -> int | None:
    """The GPU whose memory an array is in; None for the CPU, and for what is no array yet."""
    device = getattr(value, "__dlpack_device__", None)
    if device is not None:
        kind, index = device()
        return int(index) if kind in _DLPACK_CUDA else None
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return None
    try:
        return _ops.device_of(interface["data"][0])
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _current_stream(framework: str, value: Any, index: int) -> int:
    if framework == "torch":
        return int(sys.modules["torch"].cuda.current_stream(index).cuda_stream)
    if framework == "cupy":
        cupy = sys.modules["cupy"]
        with _current_device("cupy", index):
            return int(cupy.cuda.get_current_stream().ptr)
    if isinstance(value, DeviceArray):
        return value.stream
    interface = getattr(value, "__cuda_array_interface__", None) or {}
    return int(interface.get("stream") or 0)


def _from_interface(interface: dict[str, Any], owner: Any) -> DeviceArray:
    shape, strides = interface["shape"], interface.get("strides")
    typestr = interface["typestr"]
    plain = np.empty(0, typestr).itemsize
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size > 1 and stride != plain:
            raise InputError(f"expected an array in C order, found strides {strides}")
        plain *= size
    return DeviceArray.from_pointer(interface["data"][0], list(shape), typestr, owner)


def _order_after(device: Device, stream: int | None) -> None:
    """Lets the call wait for what a producer has put on its own stream."""
    if stream is not None and _differ(stream, device.stream):
        _ops.order_after(device.index, device.stream, stream)


def _differ(stream: int, other: int) -> bool:
    return (stream or _LEGACY_STREAM) != (other or _LEGACY_STREAM)
