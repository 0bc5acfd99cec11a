import numpy as np

from recengine.data import leave_last_out
from recengine.training.baselines import ItemKNN, popularity_scores
from recengine.training.encode import encode


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
