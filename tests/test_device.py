"""Arrays on a GPU on their way in and out."""

import contextlib
import sys
import types

import numpy as np
import pytest

from recengine import ops
from recengine.errors import InputError

pytestmark = pytest.mark.cuda


class Interface:
    """An array that offers `__cuda_array_interface__` alone, as numba's do."""

    def __init__(self, array, **changes):
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changes}


class Dlpack:
    """An array that offers DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream=None):
        return self.array.__dlpack__(stream=stream)


@pytest.mark.parametrize(
    "dtype", ["f4", "f2", "f8", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)])
def test_arrays_come_back_as_they_went(dtype, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    found = ops.to_device(values)
    assert found.shape == shape
    np.testing.assert_array_equal(found.numpy(), values)
    assert found.numpy().dtype == values.dtype


def test_what_is_no_number_is_refused():
    with pytest.raises(InputError, match="expected a number or bool"):
        ops.to_device(np.array(["a"]))


@pytest.mark.parametrize("wrap", [Interface, Dlpack])
def test_arrays_of_other_makers_are_taken(wrap):
    ids, scores = np.array([[7, 8, 9]]), np.array([[1, 3, 2]], np.float32)
    found = ops.order(wrap(ops.to_device(ids)), wrap(ops.to_device(scores)), 2)
    assert found[0].numpy().tolist() == [[8, 9]]
    assert found[1].numpy().tolist() == [[3, 2]]


def test_strides_other_than_c_order_are_refused():
    ids, scores = ops.to_device(np.ones((2, 2), int)), ops.to_device(np.ones((2, 2), np.float32))
    plain = Interface(ids, strides=(16, 8))
    assert ops.order(plain, scores, 1)[0].numpy().tolist() == [[1], [1]]
    with pytest.raises(InputError, match="candidate_ids: expected an array in C order"):
        ops.order(Interface(ids, strides=(8, 16)), scores, 1)


def test_data_that_are_not_aligned_are_refused():
    array = ops.to_device(np.ones(4, np.int64))
    pointer, read_only = array.__cuda_array_interface__["data"]
    ids = Interface(array, data=(pointer + 4, read_only), shape=(1, 2))
    with pytest.raises(InputError, match="candidate_ids: expected data aligned to <i8"):
        ops.order(ids, ops.to_device(np.ones((1, 2), np.float32)), 1)


def test_memory_of_the_host_is_refused():
    host = np.ones((1, 1), np.int64)
    ids = Interface(ops.to_device(host), data=(host.ctypes.data, False))
    with pytest.raises(InputError, match="expected memory of a GPU"):
        ops.order(ids, ops.to_device(np.ones((1, 1), np.float32)), 1)


def test_an_array_lives_as_long_as_what_was_made_of_it():
    capsule = ops.to_device(np.arange(3)).__dlpack__()
    array = type(ops.to_device(np.arange(1))).from_dlpack(capsule)
    del capsule
    assert array.numpy().tolist() == [0, 1, 2]


def test_a_framework_makes_the_results_on_its_stream(monkeypatch):
    """The calls that torch gets, with a stand-in where it has no GPU."""
    streams, current = [], []

    @contextlib.contextmanager
    def current_device(index):
        current.append(index)
        yield
        current.pop()

    class Tensor(Dlpack):
        def __dlpack__(self, *, stream=None):
            streams.append(stream)
            assert current == [0]  # torch refuses to export from another device
            return super().__dlpack__(stream=stream)

    Tensor.__module__ = "torch"
    torch = types.SimpleNamespace(
        int64=np.int64,
        float32=np.float32,
        empty=lambda shape, dtype, device: Tensor(ops.to_device(np.empty(shape, dtype))),
        cuda=types.SimpleNamespace(
            current_stream=lambda index: types.SimpleNamespace(cuda_stream=0),
            device=current_device,
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    ids, scores = np.array([[7, 8]]), np.array([[1, 3]], np.float32)
    found = ops.order(Tensor(ops.to_device(ids)), Tensor(ops.to_device(scores)), 1)
    assert [type(array) for array in found] == [Tensor, Tensor]
    assert found[0].array.numpy().tolist() == [[8]]
    assert streams == [-1, -1, -1, -1]  # on its current stream torch's arrays are ready
    mixed = ops.order(Tensor(ops.to_device(ids)), Dlpack(ops.to_device(scores)), 1)
    assert [type(array) for array in mixed] == [Tensor, Tensor]


def test_torch_tensors_give_torch_tensors():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no GPU")
    ids = torch.tensor([[7, 8, 9]], device="cuda")
    scores = torch.tensor([[1.0, 3, 2]], device="cuda")
    found_ids, found_scores = ops.order(ids, scores, 2)
    assert found_ids.tolist() == [[8, 9]]
    assert found_scores.device == scores.device
