"""The CUDA parts, or their twin in a build without them."""

import re

import pytest

from recengine import doctor, ops
from recengine.errors import DeviceError


def test_a_build_without_cuda_says_how_to_get_it():
    if ops.cuda_built():
        assert isinstance(ops.cuda_devices(), list)
        return
    with pytest.raises(DeviceError, match="RECENGINE_CUDA=ON"):
        ops.cuda_devices()


@pytest.mark.cuda
def test_a_device_says_its_name_capability_and_memory():
    for device in ops.cuda_devices():
        assert re.search(r"., compute capability \d+\.\d, \d+ MiB$", device)


@pytest.mark.cuda
def test_a_driver_older_than_the_build_is_an_error_that_the_doctor_tells(emulated_driver):
    emulated_driver(12040)
    with pytest.raises(DeviceError, match=r"expected one for CUDA 13 .* found one for CUDA 12\.4$"):
        ops.cuda_devices()
    finding = doctor._cuda()
    assert finding.level is doctor.Level.PROBLEM
    assert finding.found.endswith("found one for CUDA 12.4")


@pytest.mark.cuda
def test_without_a_driver_there_is_no_gpu(emulated_driver):
    emulated_driver(0)
    assert ops.cuda_devices() == []
    assert doctor._cuda().found == "built, no GPU found"
