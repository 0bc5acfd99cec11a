"""What the CUDA driver and TensorRT's library tell of this machine."""

import pytest
from cuda_stub import build_driver, build_library, build_tensorrt

from recengine import _cuda_driver, gpu
from recengine.errors import DeviceError
from recengine.gpu import Gpu, current_gpu, tensorrt_version


def test_the_driver_tells_name_capability_and_cuda(tmp_path, monkeypatch):
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", build_driver(tmp_path / "libcuda.so.1"))
    release = tmp_path / "version"
    release.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    monkeypatch.setattr(gpu, "_DRIVER_RELEASE", release)
    assert current_gpu() == Gpu("NVIDIA L4", "8.9", "580.65.06", "12.9")
    monkeypatch.setattr(gpu, "_DRIVER_RELEASE", tmp_path / "none")
    assert current_gpu().driver is None


def test_the_library_tells_its_version(tmp_path):
    assert tensorrt_version(build_tensorrt(tmp_path)) == "10.16.1.11"
    with pytest.raises(DeviceError, match=r"nvinfer_9\.so: .*getInferLibMajorVersion"):
        tensorrt_version(build_library(tmp_path / "nvinfer_9.so", "int x;"))
    with pytest.raises(DeviceError, match=r"libnvinfer-none\.so\.10: cannot open"):
        tensorrt_version("libnvinfer-none.so.10")
