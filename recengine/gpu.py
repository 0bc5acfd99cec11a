"""The GPU and the TensorRT of this machine, asked of their own libraries."""

from __future__ import annotations

import ctypes
import dataclasses
import re
from pathlib import Path

from recengine._cuda_driver import Driver
from recengine.errors import DeviceError

LIBRARIES = ("libnvinfer.so.11", "libnvinfer.so.10")
"""TensorRT's runtime, newest first: the versions that plans are built for."""

_DRIVER_RELEASE = Path("/proc/driver/nvidia/version")
_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256


@dataclasses.dataclass(frozen=True)
class Gpu:
    """The GPU that a process takes when it names none, and its driver.

    compute_capability as "9.0"; driver as "580.65.06", None where it is not told; cuda as "13.0":
    the newest that the driver supports.
    """

    name: str
    compute_capability: str
    driver: str | None
    cuda: str


def current_gpu() -> Gpu:
    """Asks the CUDA driver, which needs neither TensorRT nor a CUDA build of recengine.

    Raises:
        DeviceError: there is no driver or no GPU, or the driver fails.
    """
    driver = Driver()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    driver.call("cuDeviceGetName", name, _NAME_BYTES, driver.device)
    major, minor = (
        driver.number("cuDeviceGetAttribute", attribute, driver.device)
        for attribute in _COMPUTE_CAPABILITY
    )
    version = driver.number("cuDriverGetVersion")  # 1000 * major + 10 * minor
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major}.{minor}",
        driver=_driver_release(),
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


def _driver_release() -> str | None:
    try:
        text = _DRIVER_RELEASE.read_text()
    except OSError:
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found[0] if found else None


def tensorrt_version(library: str) -> str:
    """The version of a TensorRT library, such as "libnvinfer.so.10", as "10.16.1.11".

    Raises:
        DeviceError: it is not there, or is not TensorRT 10 or later.
    """
    try:
        runtime = ctypes.CDLL(library)
        parts = ("Major", "Minor", "Patch", "Build")
        return ".".join(str(runtime[f"getInferLib{part}Version"]()) for part in parts)
    except (OSError, AttributeError) as error:
        raise DeviceError(f"[gpu] {library}: {error}") from None
