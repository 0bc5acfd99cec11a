"""Recall and NDCG of one relevant item per user, from its place in the ranked catalog."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from recengine.data.dataset import Int64s
from recengine.training.encode import Encoded

RECALL_AT = (10, 20, 50)
NDCG_AT = (10, 20)
NOWHERE = 1 << 62  # behind every k
_CHUNK = 1024  # targets


def target_places(scores: Tensor, targets: Tensor, rows: Tensor | None = None) -> Int64s:
    """How many items stand before each target: higher scores, and equal ones of a lower row.

    Args:
        scores: [users, n]; -inf takes an item out of the answer.
        targets: int64 [users], catalog rows.
        rows: int [users, n], catalog rows of the scores, each once; None when n is the catalog.

    Returns:
        int64 [users], 0 is best; `NOWHERE` for a target that has no score, or -inf.
    """
    targets = targets[:, None]
    if rows is None:
        own, rows = scores.gather(1, targets), torch.arange(scores.shape[1])
    else:
        own = scores.masked_fill(rows != targets, -torch.inf).amax(1, keepdim=True)
    before = (scores > own) | ((scores == own) & (rows < targets))
    places = before.sum(1)
    places[own[:, 0] == -torch.inf] = NOWHERE
    return places.numpy()


def catalog_places(
    encoded: Encoded, scores: Callable[[Int64s], Tensor], positions: Int64s
) -> Int64s:
    """Places of targets in the catalog without the items that the user already had.

    Args:
        encoded: the data.
        scores: of targets, [n, items]; called with some of `positions` at a time.
        positions: the targets, at least one.

    Returns:
        int64 [positions], as `target_places`.
    """
    parts = [positions[at : at + _CHUNK] for at in range(0, len(positions), _CHUNK)]
    return np.concatenate(
        [
            target_places(encoded.exclude_history(scores(part), part), encoded.targets(part))
            for part in parts
        ]
    )


def recall_at(places: Int64s, k: int) -> float:
    """Share of users whose target is among the first k."""
    return float((places < k).mean())


def ndcg_at(places: Int64s, k: int) -> float:
    """Mean of 1 / log2(place + 2) over users, 0 where the target is not among the first k.

    Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002.
    """
    return float(np.where(places < k, 1 / np.log2(places + 2), 0).mean())


def metrics_of(
    places: Int64s, recall: Sequence[int] = RECALL_AT, ndcg: Sequence[int] = NDCG_AT
) -> dict[str, float]:
    """All metrics by name, as in "recall@10"."""
    return {f"recall@{k}": recall_at(places, k) for k in recall} | {
        f"ndcg@{k}": ndcg_at(places, k) for k in ndcg
    }
