"""What only a search on a GPU has: its rounds, its limits, and calls without a check."""

import numpy as np
import pytest
from test_cosine_topk import assert_same, reference, unit

from recengine import ops
from recengine.errors import InputError

pytestmark = pytest.mark.cuda

ROWS = 8200  # with 64 dimensions enough to have codes
BLOCKS = -(-ROWS // 64)
STRIDE = BLOCKS // 32  # of the blocks that thresholds are guessed from
SAMPLED = np.arange(ROWS) // 64 % STRIDE == STRIDE // 2


def gpu_search(vectors, queries, k, **options):
    rows, scores, certificate = ops.certified_topk(
        ops.DeviceItemIndex(vectors), ops.to_device(queries), k, **options
    )
    return rows.numpy(), scores.numpy(), certificate


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def older_gpu(monkeypatch):
    """A GPU without wgmma, which more than 64 queries use; a real one has it or not."""
    monkeypatch.setenv("CUDA_EMULATED_CAPABILITY", "80")


def check_batch(batch):
    vectors, queries = normal(1, ROWS, 64), normal(2, batch, 64)
    rows, scores, certificate = gpu_search(vectors, queries, 10)
    assert_same((rows, scores), reference(vectors, queries, 10))
    assert (certificate.scored < ROWS / 4).all()


@pytest.mark.parametrize("batch", [1, 8, 9, 16, 17, 33, 64, 65, 129, 257])
def test_batches_of_every_size(batch):
    check_batch(batch)


@pytest.mark.usefixtures("older_gpu")
@pytest.mark.parametrize("batch", [65, 129])
def test_large_batches_on_an_older_gpu(batch):
    check_batch(batch)


FEW = [(dim, 20) for dim in (16, 33, 96, 257, 512, 1500, 4096)]
MANY = [(16, 70), (96, 130), (256, 130), (257, 130), (513, 70)]  # 513: not by wgmma


@pytest.mark.parametrize(("dim", "batch"), [*FEW, *MANY])
def test_codes_of_every_dimension(dim, batch):
    rows = 2**19 // dim + 400
    vectors, queries = normal(3, rows, dim), normal(4, batch, dim)
    found = gpu_search(vectors, queries, 4)
    assert_same(found, reference(vectors, queries, 4))
    assert (found[2].scored < rows).all()
    assert (found[2].bound > 0).all()


@pytest.mark.parametrize("dim", [60, 64])  # an odd number of steps, and an even one
def test_an_index_with_split_codes_is_copied_as_one_with_whole_codes(dim):
    vectors, queries = normal(3, 2**19 // dim + 400, dim), normal(4, 5, dim)
    found = gpu_search(ops.ItemIndex(vectors, split_codes=True), queries, 10)
    whole = gpu_search(ops.ItemIndex(vectors, split_codes=False), queries, 10)
    assert_same(found, reference(vectors, queries, 10))
    np.testing.assert_array_equal(found[2].bound, whole[2].bound)
    np.testing.assert_array_equal(found[2].scored, whole[2].scored)


def test_codes_along_the_axes_of_more_than_256_dimensions():
    decay = np.float32(0.9) ** np.arange(260, dtype=np.float32)
    vectors, queries = normal(3, 78_000, 260) * decay, normal(4, 3, 260)
    assert ops.ItemIndex(vectors).stored_codes()["axes"].size == 260**2
    found = gpu_search(vectors, queries, 10)
    assert_same(found, reference(vectors, queries, 10))
    assert (found[2].scored < 78_000).all()


def test_vectors_too_long_for_codes_are_all_scored():
    vectors, queries = normal(3, 130, 4100), normal(4, 2, 4100)
    found = gpu_search(vectors, queries, 4)
    assert_same(found, reference(vectors, queries, 4))
    assert found[2].scored.tolist() == [130, 130]


def test_many_of_many_items():
    vectors, queries = normal(5, 140_000, 8), normal(6, 2, 8)
    found = gpu_search(vectors, queries, 4096)
    assert_same(found, reference(vectors, queries, 4096))
    assert ((found[2].scored > 4096) & (found[2].scored < 20_000)).all()


def test_a_threshold_that_is_too_high_is_lowered():
    """What is near the query was sampled: more than the rank that is guessed from, less than K."""
    vectors, query = normal(7, ROWS, 64), normal(8, 1, 64)
    near = np.flatnonzero(SAMPLED & (np.arange(ROWS) % 64 < 8))[:40]
    vectors[near] += 3 * query
    found = gpu_search(vectors, query, 50)
    assert_same(found, reference(vectors, query, 50))
    assert 100 < found[2].scored[0] < ROWS  # not in the first round, nor by scoring all
    assert found[2].bound[0] > 0


def test_a_list_that_overflows_raises_the_threshold():
    """What is near the query was not sampled, and is more than a list takes."""
    vectors, query = normal(9, ROWS, 64), normal(10, 1, 64)
    near = np.flatnonzero(~SAMPLED)[:3000]
    vectors[near] += np.linspace(0.5, 5, 3000, dtype=np.float32)[::-1, None] * query
    found = gpu_search(vectors, query, 10)
    assert_same(found, reference(vectors, query, 10))
    assert 1000 < found[2].scored[0] < 3000  # a full list, and some of the next round
    assert found[2].bound[0] > 0


@pytest.mark.parametrize(("kind", "batch"), [("all sampled", 3), ("copies", 3), ("copies", 70)])
def test_what_two_rounds_leave_open_is_answered_by_scoring_all(kind, batch):
    vectors, queries = normal(11, ROWS, 64), normal(12, batch, 64)
    if kind == "all sampled":
        vectors[SAMPLED] += 5 * queries[1]
    else:
        vectors[100:6000] = queries[1]
    rows, scores, certificate = gpu_search(vectors, queries, 100)
    assert_same((rows, scores), reference(vectors, queries, 100))
    assert certificate.scored[1] > ROWS
    assert certificate.bound[1] == 0
    assert (certificate.scored[[0, 2]] < ROWS).all()


def test_excluded_items_do_not_fill_the_lists():
    """The 2000 best are excluded, with repeats; more than a list takes."""
    vectors, queries = normal(13, ROWS, 64), normal(14, 2, 64)
    best = np.argsort(-(unit(queries) @ unit(vectors).T), axis=1)[:, :2000]
    exclude = [np.concatenate([best[0], best[0, :300]]), best[1, ::2]]
    found = gpu_search(
        vectors,
        queries,
        10,
        exclude=(
            ops.to_device(np.concatenate(exclude)),
            ops.to_device(np.array([2300, 1000], np.int32)),
        ),
    )
    assert_same(found, reference(vectors, queries, 10, exclude))
    assert (found[2].scored < ROWS).all()


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.3])
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_allowed_may_be_little(share, packed):
    vectors, queries = normal(15, ROWS, 64), normal(16, 3, 64)
    allow = np.random.default_rng(17).random(ROWS) < share
    bits = np.packbits(np.pad(allow, (0, -ROWS % 64)), bitorder="little")
    array = ops.to_device(bits.view("<i8") if packed else allow)
    found = gpu_search(vectors, queries, 20, allow=array)
    assert_same(found, reference(vectors, queries, 20, allow=allow))
    assert (found[2].scored <= allow.sum()).all()


def test_more_queries_than_a_pass_takes():
    vectors, queries = normal(18, 40, 4), normal(19, 530, 4)
    exclude = [np.array([q % 40]) for q in range(530)]
    lists = (ops.to_device(np.arange(530) % 40), ops.to_device(np.ones(530, np.int32)))
    found = gpu_search(vectors, queries, 3, exclude=lists)
    assert_same(found, reference(vectors, queries, 3, exclude))


def test_values_out_of_range_are_named():
    index = ops.DeviceItemIndex(np.ones((3, 4)))
    queries = np.ones((2, 4), np.float32)

    def search(queries=queries, rows=(0,), lengths=(1, 0)):
        exclude = (ops.to_device(np.array(rows)), ops.to_device(np.array(lengths, np.int32)))
        return ops.cosine_topk(index, ops.to_device(queries), 1, exclude=exclude)

    search()
    with pytest.raises(InputError, match="queries: row 1: expected finite values"):
        search(np.array([[1, 2, 3, 4], [1, np.nan, 3, 4]], np.float32))
    with pytest.raises(InputError, match=r"exclude_rows\[0\]: expected 0 to 2, found 3"):
        search(rows=[3])
    with pytest.raises(InputError, match=r"exclude_lengths\[1\].*found -1"):
        search(rows=[0, 1], lengths=[1, -1])
    with pytest.raises(InputError, match=r"exclude_lengths\[1\]: expected 0 to 1"):
        search(rows=[0, 1], lengths=[1, 2])
    with pytest.raises(InputError, match="expected to sum to 2, found 1"):
        search(rows=[0, 1], lengths=[1, 0])
    with pytest.raises(InputError, match="exclude_lengths: expected batch 2, found 1"):
        search(lengths=[1])


def test_without_a_check_values_out_of_range_touch_nothing_else():
    vectors, queries = normal(20, 300, 16), normal(21, 4, 16)
    queries[1, 3] = np.inf
    exclude = [[5, 7], [], [400, -1, 9], [3]]
    rows, scores = ops.cosine_topk(
        ops.DeviceItemIndex(vectors),
        ops.to_device(queries),
        300,
        exclude=(
            ops.to_device(np.array([5, 7, 400, -1, 9, 3])),
            ops.to_device(np.array([2, -4, 3, 9], np.int32)),
        ),
        check=False,
    )
    rows, scores = rows.numpy(), scores.numpy()
    assert (rows[1] == -1).all()
    assert np.isneginf(scores[1]).all()
    exclude[2] = [9]
    others = [0, 2, 3]
    expected = reference(vectors, queries[others], 300, [exclude[q] for q in others])
    assert_same((rows[others], scores[others]), expected)


def test_arguments_of_another_kind_are_named():
    vectors, queries = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    index, on_gpu = ops.DeviceItemIndex(vectors), ops.to_device(queries)
    assert (index.rows, index.dim, index.device) == (3, 4, 0)
    with pytest.raises(InputError, match="index: expected a DeviceItemIndex"):
        ops.cosine_topk(ops.ItemIndex(vectors), on_gpu, 1)
    with pytest.raises(InputError, match="queries: expected an array on a GPU"):
        ops.cosine_topk(index, queries, 1)
    with pytest.raises(
        InputError, match="allow: expected an array on cuda:0, found one on the CPU"
    ):
        ops.cosine_topk(index, on_gpu, 1, allow=np.ones(3, bool))
    with pytest.raises(InputError, match="exclude: expected the tuple"):
        ops.cosine_topk(index, on_gpu, 1, exclude=[[1], [2]])
    with pytest.raises(InputError, match="queries: expected <f4, found <f8"):
        ops.cosine_topk(index, ops.to_device(np.ones((2, 4))), 1)
    with pytest.raises(InputError, match="queries: expected dim 4, found 5"):
        ops.cosine_topk(index, ops.to_device(np.ones((2, 5), np.float32)), 1)
    with pytest.raises(InputError, match=r"allow: expected shape \(3,\), found \(4,\)"):
        ops.cosine_topk(index, on_gpu, 1, allow=ops.to_device(np.ones(4, bool)))
    with pytest.raises(InputError, match="allow: expected 1 words, found 2"):
        ops.cosine_topk(index, on_gpu, 1, allow=ops.to_device(np.ones(2, np.uint64)))
    with pytest.raises(InputError, match="k: expected at least 1, found 0"):
        ops.cosine_topk(index, on_gpu, 0)
    with pytest.raises(InputError, match="check: expected an ItemIndex, found a DeviceItemIndex"):
        ops.certified_topk(index, on_gpu, 1, check=True)
