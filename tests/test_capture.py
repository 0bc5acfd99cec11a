"""What a GPU's arrays and tables do while somebody captures a CUDA graph."""

import contextlib
import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recengine import ops
from recengine.errors import InputError

pytestmark = pytest.mark.cuda

BLOCKING, NON_BLOCKING = 0, 1
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


@pytest.fixture(scope="module")
def runtime():
    """CUDA's runtime in this process; whose copy makes a stream does not matter."""
    for name in (None, "libcudart.so", "libcudart.so.13", "libcudart.so.12"):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(name)
            if hasattr(library, "cudaStreamBeginCapture"):
                return library
    pytest.skip("there is no shared library of CUDA's runtime")


@pytest.fixture
def begin(runtime):
    def begin(flags, mode):
        stream = ctypes.c_void_p()
        assert runtime.cudaStreamCreateWithFlags(ctypes.byref(stream), flags) == 0
        assert runtime.cudaStreamBeginCapture(stream, mode) == 0
        return stream

    return begin


@pytest.fixture
def end(runtime):
    """Ends a capture; says whether it was spoilt."""

    def end(stream):
        graph = ctypes.c_void_p()
        status = runtime.cudaStreamEndCapture(stream, ctypes.byref(graph))
        if graph:
            runtime.cudaGraphDestroy(graph)
        runtime.cudaStreamDestroy(stream)
        return status != 0

    return end


def load_index():
    vectors = np.random.default_rng(0).normal(size=(5000, 64))
    return ops.DeviceItemIndex(ops.ItemIndex(vectors.astype(np.float32)))


def load_table(cache_bytes=None):
    table = ops.EmbeddingTable(np.ones((1000, 64), np.float32))
    return ops.DeviceTable(table, cache_bytes=cache_bytes)


def load_spilled_table():
    return load_table(cache_bytes=1 << 14)


def load_vocabulary():
    return ops.DeviceVocabulary(ops.Vocabulary.from_keys(np.arange(0, 1000, 3)))


def read(loaded):
    """A call that nobody waits for; its answer."""
    ids = ops.to_device(np.array([3, 4, 3]))
    if isinstance(loaded, ops.DeviceItemIndex):
        queries = ops.to_device(np.ones((2, 64), np.float32))
        return ops.cosine_topk(loaded, queries, 5, check=False)
    if isinstance(loaded, ops.DeviceVocabulary):
        return loaded.lookup(ids)
    lengths = ops.to_device(np.array([[3]], np.int32))
    return ops.embedding_bag([loaded], ids, lengths, pooling="sum", check=False)


LOADS = [load_index, load_table, load_spilled_table, load_vocabulary]
CAPTURES = pytest.mark.parametrize(
    ("flags", "mode"), [(BLOCKING, THREAD_LOCAL), (NON_BLOCKING, GLOBAL)], ids=["tensorrt", "torch"]
)


@pytest.mark.parametrize("load", LOADS)
@CAPTURES
def test_loading_and_freeing_works_and_spoils_no_capture(begin, end, load, flags, mode):
    """As TensorRT and torch capture them; what is loaded is freed at once."""
    with ThreadPoolExecutor(1) as other:
        stream = other.submit(begin, flags, mode).result()
        try:
            load()
        finally:
            spoilt = other.submit(end, stream).result()
    assert not spoilt


@pytest.mark.parametrize("load", LOADS)
@CAPTURES
def test_freeing_what_calls_have_read_spoils_no_capture(begin, end, load, flags, mode):
    loaded = load()
    read(loaded)
    with ThreadPoolExecutor(1) as other:
        stream = other.submit(begin, flags, mode).result()
        try:
            del loaded
        finally:
            spoilt = other.submit(end, stream).result()
    assert not spoilt


@pytest.fixture
def not_waited_for(runtime):
    """How many streams have got work that nobody has waited for since."""
    if not hasattr(runtime, "cuda_emulation_streams_not_waited_for"):
        pytest.skip("only the emulation knows")
    return runtime.cuda_emulation_streams_not_waited_for


@pytest.mark.parametrize("load", LOADS)
def test_what_goes_waits_for_the_stream_that_reads_it(not_waited_for, load):
    loaded = load()
    before = not_waited_for()
    answer = read(loaded)
    assert not_waited_for() == before + 1
    del loaded
    assert not_waited_for() == before
    del answer


@pytest.mark.parametrize("cache_bytes", [None, 0])
def test_what_goes_while_calls_read_it_is_read_to_the_end(cache_bytes):
    """On a real GPU calls still run, or wait, when their table goes."""
    rng = np.random.default_rng(0)
    values = rng.integers(-9, 9, (20, 1000, 64)).astype(np.float32)
    rows = rng.integers(0, 1000, 20_000)
    ids, lengths = ops.to_device(rows), ops.to_device(np.full((1000, 1), 20, np.int32))
    found = []
    for table in values:
        loaded = ops.DeviceTable(ops.EmbeddingTable(table), cache_bytes=cache_bytes)
        found.append(ops.embedding_bag([loaded], ids, lengths, pooling="sum", check=False))
        del loaded
    for table, sums in zip(values, found, strict=True):
        np.testing.assert_array_equal(sums.numpy(), table[rows].reshape(1000, 20, 64).sum(axis=1))


class OnStream:
    """An array of a framework whose current stream is the one given."""

    def __init__(self, array, stream):
        self.array = array
        self.__cuda_array_interface__ = {
            **array.__cuda_array_interface__,
            "stream": stream.value,
        }


@pytest.mark.parametrize("is_other_captured", [False, True], ids=["plain", "another_capture"])
def test_arrays_of_another_stream_are_refused_by_name_while_one_is_captured(
    begin, end, is_other_captured
):
    ids = ops.to_device(np.array([[7, 8, 9]]))
    scores = ops.to_device(np.array([[1, 3, 2]], np.float32))
    captured = [begin(NON_BLOCKING, RELAXED) for _ in range(1 + is_other_captured)]
    others = OnStream(scores, captured[1]) if is_other_captured else scores
    try:
        with pytest.raises(InputError, match="scores: expected arrays of the stream that is capt"):
            ops.order(OnStream(ids, captured[0]), others, 2, check=False)
    finally:
        spoilt = [end(stream) for stream in captured]
    assert not any(spoilt)
