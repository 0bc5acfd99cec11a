"""The CUDA parts, or their twin in a build without them."""

import re

import pytest

from recengine import ops
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
