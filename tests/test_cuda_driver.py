"""How the CUDA driver is called, on a driver whose memory is the host's."""

import numpy as np
import pytest
from cuda_stub import build_driver

from recengine import _cuda_driver
from recengine._cuda_driver import Driver
from recengine.errors import DeviceError


@pytest.fixture
def driver(tmp_path, monkeypatch):
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", build_driver(tmp_path / "libcuda.so.1"))
    return Driver()


def test_what_is_uploaded_is_downloaded(driver):
    driver.use_primary_context()
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    result = np.empty((4, 3), np.float32)
    with driver.buffer(values.nbytes) as address, driver.buffer(4) as other:
        assert abs(address - other) >= values.nbytes
        driver.upload(address, values.T)  # not contiguous
        driver.download(address, result)
    np.testing.assert_array_equal(result, values.T)


def test_a_failing_call_is_named_with_its_status(driver):
    with (
        pytest.raises(DeviceError, match="cuMemAlloc_v2: expected CUresult 0, found 2"),
        driver.buffer(1 << 40),
    ):
        pass


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ({"status": 100}, "cuInit: expected CUresult 0, found 100"),
        ({"count": 0}, "expected a GPU, found none"),
    ],
)
def test_a_driver_without_a_gpu_is_an_error(tmp_path, monkeypatch, behaviour, message):
    library = build_driver(tmp_path / "libcuda.so.1", **behaviour)
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", library)
    with pytest.raises(DeviceError, match=message):
        Driver()


def test_without_a_driver_the_message_says_so(monkeypatch):
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(DeviceError, match="is there an NVIDIA driver"):
        Driver()
