"""A split as table rows: vocabularies, features, and the batches that the models take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recengine.bundle import Bag
from recengine.data.dataset import FeatureTable, Float32s, Int64s, Ragged
from recengine.data.split import Split
from recengine.errors import InputError
from recengine.models.bags import PADDING, Rows, TableShape
from recengine.training.recommender import FeatureSpec, Requests, lookup

USER = "user_id"
ITEM = "item_id"
HISTORY = "history"
_LONGEST_LIST = 50


@dataclass(frozen=True)
class Encoded:
    """A split with everything looked up once.

    Attributes:
        split: what was encoded.
        features: sparse user features in wire order: user_id, history, then the data set's own.
        item_features: sparse item features: item_id, then the data set's own.
        dense_features: names of the dense user features.
        dense_means: their means, which unknown values have taken.
        vocabularies: int64 keys by name; key r has table row r + 1.
        user_rows: table rows [users, width] by feature; history is not among them.
        user_dense: fp32 [users, n].
        item_rows: table rows [items, width] by feature.
        item_dense: fp32 [items, n], standardised.
        popularity: int64 [items], training interactions of each item.
    """

    split: Split
    features: tuple[FeatureSpec, ...]
    item_features: tuple[FeatureSpec, ...]
    dense_features: tuple[str, ...]
    dense_means: dict[str, float]
    vocabularies: dict[str, Int64s]
    user_rows: dict[str, Tensor]
    user_dense: Tensor
    item_rows: dict[str, Tensor]
    item_dense: Tensor
    popularity: Int64s

    @property
    def num_items(self) -> int:
        """Items in the catalog."""
        return len(self.popularity)

    def learnable(self) -> Int64s:
        """Training positions with a history: nothing can be said of a user's first item."""
        train = self.split.train
        return train[self.split.starts[train] < train]

    def user_batch(self, positions: Int64s) -> tuple[dict[str, Tensor], Tensor | None]:
        """Rows of every user feature, and dense user features, as they stood before each target."""
        users = torch.from_numpy(self.split.user_idx[positions])
        width = next(spec.max_length for spec in self.features if spec.name == HISTORY)
        past = self.split.history(positions, width)
        rows = {name: values[users] for name, values in self.user_rows.items()}
        rows[HISTORY] = torch.from_numpy(
            Ragged(past.values + 1, past.offsets).padded(width, PADDING)
        )
        return rows, self.user_dense[users] if self.dense_features else None

    def catalog(self) -> tuple[Rows, Tensor | None]:
        """Rows of every item feature, and dense item features, of the whole catalog."""
        return self.item_rows, self.item_dense if self.item_dense.shape[1] else None

    def items(self, catalog_rows: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """The same of these items: int64 [n]."""
        rows = {name: values[catalog_rows] for name, values in self.item_rows.items()}
        return rows, self.item_dense[catalog_rows] if self.item_dense.shape[1] else None

    def taken_before(self, positions: Int64s) -> Tensor:
        """What the user of each target had before it: bool [positions, items]."""
        past = self.split.history(positions)
        taken = torch.zeros(len(positions), self.num_items, dtype=torch.bool)
        taken[np.repeat(np.arange(len(past)), past.lengths), past.values] = True
        return taken

    def exclude_history(self, scores: Tensor, positions: Int64s) -> Tensor:
        """Scores [positions, items] with -inf at what the user had before."""
        return scores.masked_fill(self.taken_before(positions), -torch.inf)

    def targets(self, positions: Int64s) -> Tensor:
        """Catalog rows of the targets."""
        return torch.from_numpy(self.split.item_idx[positions])

    @staticmethod
    def bags(
        features: tuple[FeatureSpec, ...], prefix: str, history_lengths: tuple[int, ...]
    ) -> tuple[Bag, ...]:
        """One mean bag per feature, for the history one per length."""
        return tuple(
            Bag(
                feature=spec.name,
                table=f"{prefix}_{spec.vocabulary}",
                pooling="mean",
                max_length=length,
            )
            for spec in features
            for length in (history_lengths if spec.name == HISTORY else (spec.max_length,))
        )

    def tables(self, bags: tuple[Bag, ...], prefix: str, dim: int) -> dict[str, TableShape]:
        """Shapes of the tables that the bags use."""
        return {
            bag.table: TableShape(
                rows=len(self.vocabularies[bag.table.removeprefix(f"{prefix}_")]) + 1, dim=dim
            )
            for bag in bags
        }

    def requests(self, positions: Int64s) -> Requests:
        """The users of these targets as they would ask on the wire."""
        dataset = self.split.dataset
        users = self.split.user_idx[positions]
        everything = self.split.history(positions)
        excluded = Ragged(dataset.items.ids[everything.values], everything.offsets)
        features = {
            spec.name: Ragged.of([dataset.users.sparse[spec.name][user] for user in users])
            for spec in self.features
            if spec.name not in (USER, HISTORY)
        }
        width = next(spec.max_length for spec in self.features if spec.name == HISTORY)
        past = self.split.history(positions, width)
        return Requests(
            features={
                USER: Ragged(dataset.users.ids[users], np.arange(len(users) + 1)),
                HISTORY: Ragged(dataset.items.ids[past.values], past.offsets),
                **features,
            },
            dense=self.user_dense[users].numpy(),
            excluded=excluded,
            targets=dataset.items.ids[self.split.item_idx[positions]],
        )


def encode(split: Split, history_length: int) -> Encoded:
    """Builds vocabularies of everything the data set names and looks it up.

    Args:
        split: the data; only its training part counts for popularity.
        history_length: items of a user's history that any model looks at.

    Raises:
        InputError: a column of the data set has the name of a feature that is made here.
    """
    dataset = split.dataset
    for table, taken in ((dataset.users, (USER, HISTORY)), (dataset.items, (ITEM,))):
        for name in taken:
            if name in table.sparse or name in table.dense:
                raise InputError(f"[encode] column {name!r}: this name is taken, rename the column")
    vocabularies = {USER: dataset.users.ids, ITEM: dataset.items.ids}
    users, user_rows = _sparse(dataset.users, "user", vocabularies)
    items, item_rows = _sparse(dataset.items, "item", vocabularies)
    num_users, num_items = len(dataset.users.ids), len(dataset.items.ids)
    item_dense = _dense(dataset.items)
    spread = item_dense.std(0, keepdims=True)
    return Encoded(
        split=split,
        features=(
            FeatureSpec(USER, USER, 1, dataset.hashed_users),
            FeatureSpec(HISTORY, ITEM, history_length, dataset.hashed_items),
            *users,
        ),
        item_features=(FeatureSpec(ITEM, ITEM, 1, dataset.hashed_items), *items),
        dense_features=tuple(dataset.users.dense),
        dense_means=_means(dataset.users),
        vocabularies=vocabularies,
        user_rows={USER: torch.arange(1, num_users + 1)[:, None], **user_rows},
        user_dense=torch.from_numpy(_dense(dataset.users)),
        item_rows={ITEM: torch.arange(1, num_items + 1)[:, None], **item_rows},
        item_dense=torch.from_numpy(
            (item_dense - item_dense.mean(0)) / np.where(spread, spread, 1)
        ),
        popularity=np.bincount(split.item_idx[split.train], minlength=num_items),
    )


def _sparse(
    table: FeatureTable, side: str, vocabularies: dict[str, Int64s]
) -> tuple[list[FeatureSpec], dict[str, Tensor]]:
    """Features of one table with their rows; adds one vocabulary per feature."""
    specs, rows = [], {}
    for name, lists in table.sparse.items():
        vocabulary = f"{side}_{name}"
        width = int(min(max(lists.lengths.max(initial=1), 1), _LONGEST_LIST))
        vocabularies[vocabulary] = np.unique(lists.values)
        specs.append(FeatureSpec(name, vocabulary, width, name in table.hashed))
        rows[name] = torch.from_numpy(
            lookup(vocabularies[vocabulary], lists).padded(width, PADDING)
        )
    return specs, rows


def _means(table: FeatureTable) -> dict[str, float]:
    """Means of what is known of the dense columns; 0 where nothing is."""
    known = {name: values[~np.isnan(values)] for name, values in table.dense.items()}
    return {name: float(values.mean()) if len(values) else 0.0 for name, values in known.items()}


def _dense(table: FeatureTable) -> Float32s:
    """Dense columns [n, columns]; an unknown value takes the column's mean."""
    columns: list[Float32s] = [np.empty((len(table.ids), 0), np.float32)]
    for name, mean in _means(table).items():
        values = table.dense[name]
        columns.append(np.where(np.isnan(values), mean, values)[:, None])
    return np.concatenate(columns, axis=1).astype(np.float32)
