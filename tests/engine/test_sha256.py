import hashlib

import numpy as np
import pytest

from recengine._ops import sha256


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize(
    "size", [0, 1, 3, 54, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 4097, 100_000]
)
def test_sha256_is_that_of_hashlib(size, portable):
    data = np.random.default_rng(size).bytes(size)
    assert sha256(data, portable=portable) == hashlib.sha256(data).digest()
