import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recengine import ops
from recengine.errors import InputError

# Few distinct scores, so that ties are common; -0.0 ties with 0.0.
scores_of = st.one_of(
    st.sampled_from([-1.0, -0.0, 0.0, 1.0]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@settings(max_examples=200)
@given(
    rows=st.integers(0, 12).flatmap(
        lambda n: st.lists(
            st.lists(st.tuples(st.integers(-1, 5), scores_of), min_size=n, max_size=n),
            min_size=1,
            max_size=3,
        )
    ),
    k=st.integers(1, 15),
)
def test_order_equals_a_stable_sort(device, rows, k):
    shape = (len(rows), len(rows[0]))
    candidate_ids = np.array([[i for i, _ in row] for row in rows], np.int64).reshape(shape)
    scores = np.array([[s for _, s in row] for row in rows], np.float32).reshape(shape)
    found_ids, found_scores = device.order(candidate_ids, scores, k)
    for row, (row_ids, row_scores) in enumerate(zip(candidate_ids, scores, strict=True)):
        best = [i for i in np.argsort(-row_scores, kind="stable") if row_ids[i] != -1][:k]
        pad = k - len(best)
        assert found_ids[row].tolist() == row_ids[best].tolist() + [-1] * pad
        assert found_scores[row].tolist() == row_scores[best].tolist() + [-np.inf] * pad


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_by_row_and_column(device, value):
    with pytest.raises(InputError, match=r"scores\[1, 2\]"):
        device.order(np.ones((2, 3), int), [[0.0, 0, 0], [0, 0, value]], 1)


def test_the_score_of_an_empty_slot_may_be_anything(device):
    found_ids, found_scores = device.order([[7, -1, 8]], [[1.0, np.nan, 2.0]], 3)
    assert found_ids.tolist() == [[8, 7, -1]]
    assert found_scores.tolist() == [[2, 1, -np.inf]]


def test_shapes_that_disagree_are_refused(device):
    with pytest.raises(InputError, match=r"scores: expected shape \[2, 3\], found \[2, 4\]"):
        device.order(np.ones((2, 3), int), np.ones((2, 4)), 1)
    with pytest.raises(InputError, match="k: expected at least 1, found 0"):
        device.order(np.ones((2, 3), int), np.ones((2, 3)), 0)


@pytest.mark.parametrize("n", [63, 64, 65, 1000, 8192, 8193, 30_000])
@pytest.mark.parametrize("k", [1, 100, 4096, 4097, 9000])
def test_many_candidates(device, n, k):
    rng = np.random.default_rng(n)
    candidate_ids = rng.integers(-1, 1000, (2, n))
    scores = rng.integers(-300, 300, (2, n)).astype(np.float32)
    found_ids, found_scores = device.order(candidate_ids, scores, k)
    for row in range(2):
        best = [i for i in np.argsort(-scores[row], kind="stable") if candidate_ids[row, i] != -1]
        pad = max(0, k - len(best))
        assert found_ids[row].tolist() == candidate_ids[row, best[:k]].tolist() + [-1] * pad
        assert found_scores[row].tolist() == scores[row, best[:k]].tolist() + [-np.inf] * pad


def test_an_empty_batch_gives_an_empty_answer(device):
    found_ids, found_scores = device.order(np.empty((0, 5), int), np.empty((0, 5)), 3)
    assert found_ids.shape == found_scores.shape == (0, 3)


@pytest.mark.cuda
def test_without_a_check_scores_that_are_not_finite_are_left_out():
    ids, scores = ops.to_device(np.array([[1, 2]])), ops.to_device(np.array([[np.nan, 1]], "f4"))
    found_ids, _ = ops.order(ids, scores, 2, check=False)
    assert found_ids.numpy().tolist() == [[2, -1]]
