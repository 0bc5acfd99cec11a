import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recengine.training.metrics import metrics_of, ndcg_at, recall_at, target_places

scores = st.lists(
    st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0]), min_size=6, max_size=6),
    min_size=1,
    max_size=8,
)


@given(scores, st.integers(0, 5), st.integers(1, 6))
def test_metrics_equal_a_sorted_list_per_user(scores, target, k):
    places = target_places(torch.tensor(scores), torch.full((len(scores),), target))
    recalls, ndcgs = [], []
    for row in scores:
        ranked = sorted(range(6), key=lambda item: (-row[item], item))
        top = [item for item in ranked if row[item] > -np.inf][:k]
        recalls.append(target in top)
        ndcgs.append(1 / np.log2(top.index(target) + 2) if target in top else 0)
    assert recall_at(places, k) == np.mean(recalls)
    np.testing.assert_allclose(ndcg_at(places, k), np.mean(ndcgs))


@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from([-np.inf, 0.0, 1.0]), min_size=4, max_size=4),
    st.integers(0, 5),
)
def test_places_among_candidates_are_those_in_the_catalog(seed, scores, target):
    rows = np.random.default_rng(seed).permutation(6)[:4]
    catalog = np.full(6, -np.inf)
    catalog[rows] = scores
    target = torch.tensor([target])
    places = target_places(torch.tensor([scores]), target, torch.from_numpy(rows)[None])
    assert places == target_places(torch.from_numpy(catalog)[None], target)


def test_a_target_that_is_not_offered_is_no_hit_in_a_catalog_smaller_than_k():
    places = target_places(torch.tensor([[1.0, -np.inf]]), torch.tensor([1]))
    assert (recall_at(places, 10), ndcg_at(places, 10)) == (0, 0)


def test_metrics_are_named_as_papers_write_them():
    names = {"recall@10", "recall@20", "recall@50", "ndcg@10", "ndcg@20"}
    assert set(metrics_of(np.array([0, 3]))) == names
