"""The operations on torch's streams and in its CUDA graphs; needs a GPU and a torch that has it."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from recengine import ops

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("this torch has no GPU", allow_module_level=True)

pytestmark = pytest.mark.cuda

BATCH = 32
ABOUT_50_MS = 100_000_000  # cycles


class Bags:
    """Two tables of one call, on the host and on the GPU."""

    def __init__(self, rng):
        values = [rng.normal(size=(1000, dim)).astype(np.float32) for dim in (64, 16)]
        self.tables = [ops.EmbeddingTable(array) for array in values]
        self.device_tables = [ops.DeviceTable(table) for table in self.tables]

    def inputs(self, rng):
        lengths = rng.permutation(np.arange(2 * BATCH) % 7).reshape(BATCH, 2).astype(np.int32)
        return rng.integers(0, 1000, lengths.sum()), lengths

    def on_cpu(self, rows, lengths):
        return (ops.embedding_bag(self.tables, rows, lengths, pooling="sum"),)

    def on_gpu(self, rows, lengths, check):
        found = ops.embedding_bag(self.device_tables, rows, lengths, pooling="sum", check=check)
        return (found,)


class TopK:
    """A catalog that is scanned as codes, with excluded and allowed items."""

    def __init__(self, rng, batch):
        self.batch = batch
        self.index = ops.ItemIndex(rng.normal(size=(50_000, 64)).astype(np.float32))
        self.device_index = ops.DeviceItemIndex(self.index)

    def inputs(self, rng):
        queries = rng.normal(size=(self.batch, 64)).astype(np.float32)
        excluded = rng.integers(0, 50_000, 5 * self.batch)
        allowed = rng.random(50_000) < 0.9
        return queries, excluded, np.full(self.batch, 5, np.int32), allowed

    def on_cpu(self, queries, excluded, lengths, allowed):
        exclude = (excluded, lengths)
        return ops.cosine_topk(self.index, queries, 100, exclude=exclude, allow=allowed)

    def on_gpu(self, queries, excluded, lengths, allowed, check):
        return ops.cosine_topk(
            self.device_index,
            queries,
            100,
            exclude=(excluded, lengths),
            allow=allowed,
            check=check,
        )


class Order:
    def __init__(self, rng):
        pass

    def inputs(self, rng):
        ids = rng.permuted(np.tile(np.arange(200), (BATCH, 1)), axis=1)
        return ids, rng.normal(size=ids.shape).astype(np.float32)

    def on_cpu(self, ids, scores):
        return ops.order(ids, scores, 50)

    def on_gpu(self, ids, scores, check):
        return ops.order(ids, scores, 50, check=check)


class Lookup:
    def __init__(self, rng):
        self.vocabulary = ops.Vocabulary.from_keys(rng.permutation(10**6)[:5000])
        self.device_vocabulary = ops.DeviceVocabulary(self.vocabulary)

    def inputs(self, rng):
        return (rng.integers(0, 10**6, 1000),)

    def on_cpu(self, ids):
        return (self.vocabulary.lookup(ids),)

    def on_gpu(self, ids, check):
        return (self.device_vocabulary.lookup(ids),)


# One pass of a search, one of warpgroups' instructions where the GPU has them, and several passes.
SEARCHES = [partial(TopK, batch=batch) for batch in (32, 130, 600)]


@pytest.fixture(params=[Bags, *SEARCHES, Order, Lookup])
def operation(request):
    return request.param(np.random.default_rng(0))


def to_gpu(arrays):
    tensors = [torch.from_numpy(array).cuda() for array in arrays]
    torch.cuda.synchronize()
    return tensors


def fill(tensors, arrays):
    for tensor, array in zip(tensors, arrays, strict=True):
        tensor.copy_(array)  # on the current stream


def assert_answered(operation, found, inputs):
    for tensor, expected in zip(found, operation.on_cpu(*inputs), strict=True):
        if isinstance(operation, Bags):  # may be added in another order
            np.testing.assert_allclose(tensor.cpu().numpy(), expected, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(tensor.cpu().numpy(), expected)


@pytest.mark.parametrize("check", [True, False])
def test_a_call_runs_after_what_is_on_torchs_current_stream(operation, check):
    old, new = (operation.inputs(np.random.default_rng(seed)) for seed in (1, 2))
    tensors, before, after = to_gpu(old), to_gpu(new), to_gpu(old)
    operation.on_gpu(*tensors, check)  # loads the kernels, which may wait for the GPU
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(ABOUT_50_MS)
        fill(tensors, before)
        found = operation.on_gpu(*tensors, check)
        if not check:
            assert not stream.query()  # the call did not wait for the GPU
        fill(tensors, after)
    stream.synchronize()
    assert_answered(operation, found, new)


def test_a_cuda_graph_of_torch_answers_what_its_inputs_hold_at_each_replay(operation):
    tensors = to_gpu(operation.inputs(np.random.default_rng(1)))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # the first calls may allocate
        for _ in range(2):
            operation.on_gpu(*tensors, False)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = operation.on_gpu(*tensors, False)
    for seed in range(2, 7):
        inputs = operation.inputs(np.random.default_rng(seed))
        fill(tensors, to_gpu(inputs))
        graph.replay()
        torch.cuda.synchronize()
        assert_answered(operation, found, inputs)


def test_threads_with_streams_of_their_own_share_tables_and_index(operation):
    def run(thread):
        rng = np.random.default_rng(thread)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                inputs = operation.inputs(rng)
                tensors = [torch.from_numpy(array).cuda() for array in inputs]
                found = operation.on_gpu(*tensors, True)
                assert_answered(operation, found, inputs)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, thread) for thread in range(4)]:
            future.result()


@pytest.mark.parametrize("cache_bytes", [None, 0])
def test_a_table_that_goes_before_its_call_has_run_is_read_all_the_same(cache_bytes):
    values = np.random.default_rng(0).normal(size=(1000, 64)).astype(np.float32)
    rows = torch.arange(1000, device="cuda")
    lengths = torch.ones(1000, 1, dtype=torch.int32, device="cuda")
    table = ops.DeviceTable(ops.EmbeddingTable(values), cache_bytes=cache_bytes)
    ops.embedding_bag([table], rows, lengths, pooling="sum")  # loads the kernels
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(ABOUT_50_MS)
        found = ops.embedding_bag([table], rows, lengths, pooling="sum", check=False)
    del table
    after = ops.DeviceTable(ops.EmbeddingTable(-values), cache_bytes=cache_bytes)
    stream.synchronize()
    np.testing.assert_array_equal(found.cpu().numpy(), values)
    del after
