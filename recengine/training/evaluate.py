"""Quality on held-out targets against the whole catalog, beside popularity and item-kNN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from recengine.data.dataset import Int64s
from recengine.models import DLRM, TwoTower
from recengine.training.baselines import ItemKNN, popularity_scores
from recengine.training.config import MOST_KNN_ITEMS
from recengine.training.encode import Encoded
from recengine.training.metrics import catalog_places, metrics_of
from recengine.training.ranking import order
from recengine.training.recommender import Quality
from recengine.training.retrieval import top_candidates


@torch.no_grad()
def evaluate(
    encoded: Encoded,
    retrieval: TwoTower,
    ranking: DLRM,
    positions: Int64s,
    num_candidates: int,
) -> tuple[Quality, ...]:
    """Recall and NDCG of four methods on the same targets.

    Each method orders the whole catalog without the items that the user already had; the ranked
    list is the retrieval's first `num_candidates` in the ranker's order.

    Args:
        encoded: the data.
        retrieval: the two-tower model.
        ranking: the ranker.
        positions: targets, e.g. `encoded.split.test`.
        num_candidates: how many items are ranked.

    Returns:
        One row each for popularity, item-kNN (catalogs up to 20,000 items), retrieval and
        retrieval + ranking.
    """
    items = retrieval.eval().items(*encoded.catalog())
    table = ranking.eval().items(*encoded.catalog())

    def retrieved(part: Int64s) -> Tensor:
        return retrieval.users(*encoded.user_batch(part)) @ items.T

    def ranked(part: Int64s) -> Tensor:
        _, rows, cosines = top_candidates(retrieval, encoded, part, num_candidates)
        return order(ranking, encoded, part, rows, cosines, table)

    methods: dict[str, Callable[[Int64s], Tensor]] = {
        "popularity": lambda part: popularity_scores(encoded, part)
    }
    if encoded.num_items <= MOST_KNN_ITEMS:
        methods["item-kNN"] = ItemKNN(encoded).scores
    methods |= {"retrieval": retrieved, "retrieval + ranking": ranked}
    return tuple(
        Quality(name, len(positions), metrics_of(catalog_places(encoded, scores, positions)))
        for name, scores in methods.items()
    )
