"""What any trained model must beat: popularity and item-kNN."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from recengine.data.dataset import Int64s
from recengine.training.encode import Encoded
from recengine.training.metrics import ndcg_at, target_places


def popularity_scores(encoded: Encoded, positions: Int64s) -> Tensor:
    """Every user gets the most taken items: [positions, items]."""
    counts = torch.from_numpy(encoded.popularity).float()
    return counts.expand(len(positions), -1)


class ItemKNN:
    """Sums the cosine similarity of an item to each item of the user's history.

    Sarwar et al., "Item-based collaborative filtering recommendation algorithms", 2001. Neighbours
    and shrinkage are those with the best NDCG@10 on the validation targets.
    """

    NEIGHBOURS = (20, 50, 100, 200)
    SHRINKAGE = (0.0, 10.0, 100.0)

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        split = encoded.split
        taken = _taken(encoded, split.train)
        together = taken.T @ taken
        counts = together.diagonal()
        norms = (counts[:, None] * counts).sqrt()
        together.fill_diagonal_(0)
        best = -1.0
        for neighbours, shrinkage in product(self.NEIGHBOURS, self.SHRINKAGE):
            similar = _nearest(together / (norms + shrinkage).clamp(min=1e-9), neighbours)
            scores = encoded.exclude_history(
                self._score(similar, split.validation), split.validation
            )
            ndcg = ndcg_at(target_places(scores, encoded.targets(split.validation)), 10)
            if ndcg > best:
                best, self._similar = ndcg, similar
                self.neighbours, self.shrinkage = neighbours, shrinkage

    def scores(self, positions: Int64s) -> Tensor:
        """Scores [positions, items]."""
        return self._score(self._similar, positions)

    def _score(self, similar: Tensor, positions: Int64s) -> Tensor:
        return self._encoded.taken_before(positions).float() @ similar


def _nearest(similar: Tensor, neighbours: int) -> Tensor:
    """Keeps the `neighbours` largest values of each column."""
    kept = similar.topk(min(neighbours, len(similar)), dim=0)
    return torch.zeros_like(similar).scatter_(0, kept.indices, kept.values)


def _taken(encoded: Encoded, positions: Int64s) -> Tensor:
    """1 where a user took an item: [users, items]."""
    split = encoded.split
    matrix = torch.zeros(len(split.dataset.users.ids), encoded.num_items)
    matrix[split.user_idx[positions], split.item_idx[positions]] = 1
    return matrix
