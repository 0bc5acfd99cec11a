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


@settings(max_examples=200, deadline=None)
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
def test_order_equals_a_stable_sort(rows, k):
    shape = (len(rows), len(rows[0]))
    candidate_ids = np.array([[i for i, _ in row] for row in rows], np.int64).reshape(shape)
    scores = np.array([[s for _, s in row] for row in rows], np.float32).reshape(shape)
    found_ids, found_scores = ops.order(candidate_ids, scores, k)
    for row, (row_ids, row_scores) in enumerate(zip(candidate_ids, scores, strict=True)):
        best = [i for i in np.argsort(-row_scores, kind="stable") if row_ids[i] != -1][:k]
        pad = k - len(best)
        assert found_ids[row].tolist() == row_ids[best].tolist() + [-1] * pad
        assert found_scores[row].tolist() == row_scores[best].tolist() + [-np.inf] * pad


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_by_row_and_column(value):
    with pytest.raises(InputError, match=r"scores\[1, 2\]"):
        ops.order(np.ones((2, 3), int), [[0.0, 0, 0], [0, 0, value]], 1)


def test_the_score_of_an_empty_slot_may_be_anything():
    found_ids, found_scores = ops.order([[7, -1, 8]], [[1.0, np.nan, 2.0]], 3)
    assert found_ids.tolist() == [[8, 7, -1]]
    assert found_scores.tolist() == [[2, 1, -np.inf]]


def test_shapes_that_disagree_are_refused():
    with pytest.raises(InputError, match=r"scores: expected shape \[2, 3\], found \[2, 4\]"):
        ops.order(np.ones((2, 3), int), np.ones((2, 4)), 1)
    with pytest.raises(InputError, match="k: expected at least 1, found 0"):
        ops.order(np.ones((2, 3), int), np.ones((2, 3)), 0)
