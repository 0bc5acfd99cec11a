"""What any trained model must beat: popularity and item-kNN."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from recengine.data.dataset import Int64s
from recengine.training.encode import Encoded
from recengine.training.metrics import catalog_places, ndcg_at

_CELLS = 1 << 24  # of one dense matrix: 64 MiB


def popularity_scores(encoded: Encoded, positions: Int64s) -> Tensor:
    """Every user gets the most taken items: [positions, items]."""
    counts = torch.from_numpy(encoded.popularity).float()
    return counts.expand(len(positions), -1)


class ItemKNN:
    """Sums the cosine similarity of an item to each item of the user's history.

    Sarwar et al., "Item-based collaborative filtering recommendation algorithms", 2001. Neighbours
    and shrinkage are those with the best NDCG@10 on the validation targets. Memory grows with the
    interactions and the neighbours kept, not with users x items or items x items.
    """

    NEIGHBOURS = (20, 50, 100, 200)
    SHRINKAGE = (0.0, 10.0, 100.0)

    def __init__(self, encoded: Encoded) -> None:
        self._encoded = encoded
        settings = list(product(self.NEIGHBOURS, self.SHRINKAGE))
        parts: list[list[Tensor]] = [[] for _ in settings]
        taken = _taken(encoded, encoded.split.train)
        counts = taken.sum(1).to_dense()
        step = max(1, _CELLS // max(taken.shape))
        for start in range(0, encoded.num_items, step):
            items = torch.arange(start, min(start + step, encoded.num_items))
            together = taken @ taken.index_select(0, items).to_dense().T.contiguous()
            together[items, torch.arange(len(items))] = 0
            norms = (counts[:, None] * counts[items]).sqrt()
            for part, (neighbours, shrinkage) in zip(parts, settings, strict=True):
                cosines = together / (norms + shrinkage).clamp(min=1e-9)
                part.append(_nearest(cosines, neighbours))
        best = -1.0
        validation = encoded.split.validation
        for part, (neighbours, shrinkage) in zip(parts, settings, strict=True):
            similar = torch.cat(part).coalesce()
            places = catalog_places(encoded, partial(self._score, similar), validation)
            ndcg = ndcg_at(places, 10)
            if ndcg > best:
                best, self._similar = ndcg, similar
                self.neighbours, self.shrinkage = neighbours, shrinkage

    def scores(self, positions: Int64s) -> Tensor:
        """Scores [positions, items]."""
        return self._score(self._similar, positions)

    def _score(self, similar: Tensor, positions: Int64s) -> Tensor:
        taken = self._encoded.taken_before(positions).T.float()
        return (similar @ taken.contiguous()).T


def _nearest(cosines: Tensor, neighbours: int) -> Tensor:
    """The `neighbours` largest values of each column, as sparse rows: [n, m] to [m, n]."""
    n, m = cosines.shape
    kept = cosines.topk(min(neighbours, n), dim=0)
    rows = torch.arange(m).expand_as(kept.indices)
    return _sparse(rows.flatten(), kept.indices.flatten(), kept.values.flatten(), (m, n))


def _taken(encoded: Encoded, positions: Int64s) -> Tensor:
    """1 where a user took an item: sparse [items, users]."""
    split = encoded.split
    shape = (encoded.num_items, len(split.dataset.users.ids))
    pairs = np.unique(split.item_idx[positions] * shape[1] + split.user_idx[positions])
    items, users = (torch.from_numpy(part) for part in np.divmod(pairs, shape[1]))
    return _sparse(items, users, torch.ones(len(items)), shape).coalesce()


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    indices = torch.stack([rows, columns])
    # Said either way, or PyTorch warns.
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False)
