"""The few functions of NVIDIA's CUDA driver that are wanted where recengine has no CUDA build."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from recengine.errors import DeviceError

_LIBRARY = "libcuda.so.1"


class Driver:
    """libcuda.so.1, with the status of every call checked.

    Raises:
        DeviceError: there is no driver or no GPU, or the driver fails.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise DeviceError(f"[gpu] {_LIBRARY}: not found; is there an NVIDIA driver?") from None
        self.call("cuInit", 0)
        if self.number("cuDeviceGetCount") == 0:
            raise DeviceError("[gpu] expected a GPU, found none that this process may use")
        self.device = self.number("cuDeviceGet", 0)

    def number(self, function: str, *arguments: int) -> int:
        """Calls a function that writes an int through its first argument."""
        result = ctypes.c_int()
        self.call(function, ctypes.byref(result), *arguments)
        return result.value

    def call(self, function: str, *arguments: Any) -> None:
        """Calls a function that returns a CUresult."""
        status = self._library[function](*arguments)
        if status != 0:
            raise DeviceError(f"[gpu] {function}: expected CUresult 0, found {status}")

    def use_primary_context(self) -> None:
        """Makes the context that CUDA's runtime libraries share this thread's."""
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.call("cuCtxSetCurrent", context)

    @contextmanager
    def buffer(self, num_bytes: int) -> Iterator[int]:
        """The address of GPU memory that is there inside the block."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        try:
            yield address.value
        finally:
            self.call("cuMemFree_v2", address)

    def upload(self, address: int, values: npt.NDArray[Any]) -> None:
        """Copies an array to the GPU."""
        source = np.ascontiguousarray(values)
        host = ctypes.c_void_p(source.ctypes.data)
        self.call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), host, ctypes.c_size_t(source.nbytes))

    def download(self, address: int, values: npt.NDArray[Any]) -> None:
        """Fills an array from the GPU, after what the default stream was given before."""
        host = ctypes.c_void_p(values.ctypes.data)
        self.call("cuMemcpyDtoH_v2", host, ctypes.c_uint64(address), ctypes.c_size_t(values.nbytes))
