"""What eager PyTorch answers for held-out users; the fidelity gate compares engines with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recengine.data.dataset import Int64s, Ragged
from recengine.keys import NO_ITEM
from recengine.training.recommender import Recommender, Requests, lookup

Arrays = dict[str, NDArray[Any]]

_BATCH = 64


@dataclass(frozen=True)
class Sizes:
    """How many items: retrieved by default, retrieved at most, and answered in the end."""

    num_candidates: int
    max_candidates: int
    k: int


def reference_tensors(recommender: Recommender, sizes: Sizes, max_users: int) -> Arrays:
    """The tensors of recengine.bundle.Reference, for users spread evenly over the held-out ones.

    Users of whom a model knows nothing are left out: an engine does not ask the model for them.
    Without any user there are no tensors.
    """
    known = _known_users(recommender)
    count = min(max_users, len(known))
    if count == 0:
        return {}
    requests = _take(recommender.held_out, known[np.arange(count) * len(known) // count])
    tensors = _pack(recommender, requests) | {"target": requests.targets}
    if recommender.dense_features:
        tensors["dense"] = requests.dense
    vectors, items = recommender.item_vectors(), recommender.item_table()
    parts = [
        _answer(
            recommender,
            _take(requests, np.arange(at, min(at + _BATCH, count))),
            sizes,
            vectors,
            items,
        )
        for at in range(0, count, _BATCH)
    ]
    return tensors | {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@torch.inference_mode()
def _answer(
    recommender: Recommender, requests: Requests, sizes: Sizes, vectors: Tensor, items: Tensor
) -> Arrays:
    """Cosines over the whole catalog without the excluded items, then the ranking of the best."""
    rows = recommender.user_rows(requests.features)
    dense = recommender.user_dense(requests.dense)
    cosines = recommender.retrieval.eval().users(rows, dense) @ vectors.T  # [users, items]
    excluded = lookup(recommender.item_keys, requests.excluded)
    users = np.repeat(np.arange(len(excluded)), excluded.lengths)
    known = excluded.values > 0
    cosines[users[known], excluded.values[known] - 1] = -torch.inf
    candidate_scores, candidates = cosines.topk(sizes.num_candidates)  # [users, num_candidates]

    empty = candidate_scores.isinf()
    scores = recommender.ranking.eval()(
        rows, items[candidates + 1], candidate_scores.masked_fill(empty, 0), dense
    )
    best_scores, places = scores.masked_fill(empty, -torch.inf).topk(sizes.k)  # [users, k]
    keys = np.where(empty, NO_ITEM, recommender.item_keys[candidates.numpy()])
    return {
        "candidates": keys,
        "candidate_scores": candidate_scores.numpy(),
        "items": np.take_along_axis(keys, places.numpy(), axis=1),
        "scores": best_scores.numpy(),
    }


def _known_users(recommender: Recommender) -> Int64s:
    """Held-out users with a known id in some feature of each model."""
    rows = recommender.user_rows(recommender.held_out.features)
    known = np.ones(len(recommender.held_out.targets), bool)
    for bags in (recommender.retrieval.user_bags, recommender.ranking.user_bags):
        known &= np.any([(rows[bag.feature] > 0).any(1).numpy() for bag in bags], axis=0)
    return np.flatnonzero(known)


def _take(requests: Requests, users: Int64s) -> Requests:
    def some(lists: Ragged) -> Ragged:
        return Ragged.of([lists[user] for user in users])

    return Requests(
        features={name: some(lists) for name, lists in requests.features.items()},
        dense=requests.dense[users],
        excluded=some(requests.excluded),
        targets=requests.targets[users],
    )


def _pack(recommender: Recommender, requests: Requests) -> Arrays:
    """Raw ids as they stand on the wire: features in order, then the excluded items."""
    runs = [
        [requests.features[spec.name][user][-spec.max_length :] for spec in recommender.features]
        + [requests.excluded[user]]
        for user in range(len(requests.targets))
    ]
    packed = Ragged.of([np.concatenate(run) for run in runs])
    ids = np.full((len(runs), max(1, packed.lengths.max())), NO_ITEM, np.int64)
    ids[np.arange(ids.shape[1]) < packed.lengths[:, None]] = packed.values
    return {"ids": ids, "lengths": np.array([list(map(len, run)) for run in runs], np.int32)}
