"""A trained recommender: two models, and all that export needs beside their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from recengine.data.dataset import Float32s, Int64s, Ragged
from recengine.models import DLRM, TwoTower
from recengine.models.bags import PADDING


@dataclass(frozen=True)
class FeatureSpec:
    """A sparse feature: the last `max_length` ids of a list, looked up in `vocabulary`.

    `hashed` says that the raw keys are strings, hashed by `recengine.keys.hash_key`.
    """

    name: str
    vocabulary: str
    max_length: int
    hashed: bool = False


@dataclass(frozen=True)
class Requests:
    """Held-out users, ready for the wire: raw ids by feature, oldest first.

    One per target: a user of several stands here as often, each time with what was taken before.

    Attributes:
        features: raw ids of every sparse user feature, [users].
        dense: fp32 [users, dense features]; no columns when the model has none.
        excluded: raw item ids that the answer must not have: the user's earlier items.
        targets: int64 [users], the raw id of the item that the user took next.
    """

    features: dict[str, Ragged]
    dense: Float32s
    excluded: Ragged
    targets: Int64s


@dataclass(frozen=True)
class Quality:
    """One method on one split: recall and NDCG at k by name ("recall@10"), over `users` targets."""

    method: str
    users: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Recommender:
    """Both models with their vocabularies and the catalog.

    Catalog row r is row r of `item_rows`, `item_dense` and `popularity`, key r of the item
    vocabulary, and table row r + 1.

    Attributes:
        features: sparse user features, in wire order.
        dense_features: dense user features, in wire order.
        item_features: sparse item features.
        item_vocabulary: name of the vocabulary of item ids.
        vocabularies: int64 keys by name; key r has table row r + 1.
        item_rows: table rows int64 [items, width] by item feature, right-aligned, padded with -1.
        item_dense: fp32 [items, n], standardised; no columns when there are none.
        popularity: int64 [items], how often each item was taken in training.
        num_candidates: how many items the ranking was trained to order.
        held_out: the test users.
        quality: what was measured on them.
        dense_means: of each dense user feature, what training took for an unknown value.
        dataset: where it came from, and under "split" how it was split.
    """

    name: str
    features: tuple[FeatureSpec, ...]
    dense_features: tuple[str, ...]
    item_features: tuple[FeatureSpec, ...]
    item_vocabulary: str
    vocabularies: dict[str, Int64s]
    retrieval: TwoTower
    ranking: DLRM
    item_rows: dict[str, Int64s]
    item_dense: Float32s
    popularity: Int64s
    num_candidates: int
    k: int
    held_out: Requests
    quality: tuple[Quality, ...] = ()
    dense_means: dict[str, float] = field(default_factory=dict)
    dataset: dict[str, str] = field(default_factory=dict)

    @property
    def item_keys(self) -> Int64s:
        """Raw item ids in catalog order."""
        return self.vocabularies[self.item_vocabulary]

    def user_rows(self, features: Mapping[str, Ragged]) -> dict[str, Tensor]:
        """Table rows of users' raw ids, as the models take them; unknown ids have row 0."""
        return {
            spec.name: torch.from_numpy(
                lookup(self.vocabularies[spec.vocabulary], features[spec.name]).padded(
                    spec.max_length, PADDING
                )
            )
            for spec in self.features
        }

    def user_dense(self, dense: Float32s) -> Tensor | None:
        """Dense user features as the models take them: None when there are none."""
        return torch.from_numpy(dense) if self.dense_features else None

    def catalog(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """Item rows and dense item features as the models take them."""
        rows = {name: torch.from_numpy(values) for name, values in self.item_rows.items()}
        return rows, torch.from_numpy(self.item_dense) if self.item_dense.shape[1] else None

    @torch.inference_mode()
    def item_vectors(self) -> Tensor:
        """Unit item vectors of the retrieval, [items, dim]."""
        return self.retrieval.eval().items(*self.catalog())

    @torch.inference_mode()
    def item_table(self) -> Tensor:
        """Item rows of the ranking, [items + 1, width]; row 0 is the unknown item."""
        return self.ranking.eval().item_table(*self.catalog())


def lookup(keys: Int64s, ids: Ragged) -> Ragged:
    """Raw ids to table rows: key r has row r + 1, any other id row 0."""
    order = np.argsort(keys)
    places = np.minimum(np.searchsorted(keys, ids.values, sorter=order), len(keys) - 1)
    candidates = order[places] if len(keys) else places
    known = keys[candidates] == ids.values if len(keys) else np.zeros(len(places), bool)
    return Ragged(np.where(known, candidates + 1, 0), ids.offsets)
