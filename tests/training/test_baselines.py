from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from recengine.data import leave_last_out
from recengine.training import baselines
from recengine.training.baselines import ItemKNN, popularity_scores
from recengine.training.encode import encode
from recengine.training.metrics import ndcg_at, target_places


def test_popularity_is_the_same_for_everyone(planted):
    encoded = encode(leave_last_out(planted), 5)
    scores = popularity_scores(encoded, encoded.split.test)
    assert (scores == scores[0]).all()
    np.testing.assert_array_equal(scores[0], encoded.popularity)


def test_item_knn_sums_the_cosines_of_the_history(planted):
    encoded = encode(leave_last_out(planted), 5)
    knn = ItemKNN(encoded)
    split = encoded.split
    taken = np.zeros((len(planted.users.ids), len(planted.items.ids)))
    taken[split.user_idx[split.train], split.item_idx[split.train]] = 1
    norms = np.linalg.norm(taken, axis=0)
    similar = taken.T @ taken / np.maximum(np.outer(norms, norms) + knn.shrinkage, 1e-9)
    np.fill_diagonal(similar, 0)
    for column in similar.T:
        column[np.argsort(-column, kind="stable")[knn.neighbours :]] = 0
    positions = split.test[:5]
    expected = [similar[past].sum(0) for past in split.history(positions)]
    np.testing.assert_allclose(knn.scores(positions), expected, atol=1e-5)


def dense_item_knn(encoded):
    """Item-kNN by dense [users, items] and [items, items] matrices: settings and test scores."""
    split = encoded.split
    taken = torch.zeros(len(split.dataset.users.ids), encoded.num_items)
    taken[split.user_idx[split.train], split.item_idx[split.train]] = 1
    together = taken.T @ taken
    counts = together.diagonal()
    norms = (counts[:, None] * counts).sqrt()
    together.fill_diagonal_(0)
    found = []
    for neighbours, shrinkage in product(ItemKNN.NEIGHBOURS, ItemKNN.SHRINKAGE):
        cosines = together / (norms + shrinkage).clamp(min=1e-9)
        kept = cosines.topk(min(neighbours, len(cosines)), dim=0)
        similar = torch.zeros_like(cosines).scatter_(0, kept.indices, kept.values)
        validation, test = (
            encoded.taken_before(positions).float() @ similar
            for positions in (split.validation, split.test)
        )
        validation = encoded.exclude_history(validation, split.validation)
        places = target_places(validation, encoded.targets(split.validation))
        found.append((ndcg_at(places, 10), (neighbours, shrinkage), test))
    return max(found, key=lambda one: one[0])[1:]


@pytest.mark.parametrize("items_at_a_time", [1, 7, 45])
def test_item_knn_in_parts_is_item_knn(planted, monkeypatch, items_at_a_time):
    split = leave_last_out(planted)
    taken_again = np.concatenate([split.train, split.train[::3]])  # which says nothing new
    encoded = encode(replace(split, train=taken_again), 5)
    monkeypatch.setattr(baselines, "_CELLS", items_at_a_time * len(planted.users.ids))
    knn = ItemKNN(encoded)
    settings, scores = dense_item_knn(encoded)
    assert (knn.neighbours, knn.shrinkage) == settings
    torch.testing.assert_close(knn.scores(encoded.split.test), scores, rtol=1e-5, atol=1e-6)
