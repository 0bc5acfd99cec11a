"""Fits the DLRM ranker: softmax over a target, hard negatives from the retrieval, random ones."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from recengine.data.dataset import Int64s
from recengine.models import DLRM, DLRMConfig, TwoTower
from recengine.training.config import TrainingConfig
from recengine.training.encode import Encoded
from recengine.training.fit import MONITOR, adamw, fit, forget, settle_unseen
from recengine.training.metrics import ndcg_at, target_places
from recengine.training.retrieval import fit_retrieval, top_candidates

PREFIX = "ranking"


@dataclass(frozen=True)
class Candidates:
    """What the retrieval offers for targets it was not fitted on.

    Attributes:
        positions: int64 [n], the targets, ascending.
        users: unit user vectors [n, dim].
        items: unit item vectors [folds * items, dim].
        first_item: int64 [n], where the catalog of the target's fold begins in `items`.
        rows: int32 [n, num_candidates], catalog rows of the best, best first.
    """

    positions: Int64s
    users: Tensor
    items: Tensor
    first_item: Tensor
    rows: Tensor

    def cosines(self, picked: Tensor, items: Tensor) -> Tensor:
        """Retrieval scores [batch, n] of items [batch, n] for the targets `picked` [batch]."""
        vectors = self.items[self.first_item[picked, None] + items]  # [batch, n, dim]
        return torch.einsum("bd,bnd->bn", self.users[picked], vectors)


def out_of_fold_candidates(
    encoded: Encoded, config: TrainingConfig, *, progress: bool = True
) -> Candidates:
    """Candidates of every training target from a model that never saw its user.

    A retrieval model scores the targets that it was fitted on too well, and a ranker that learns
    from such scores trusts them too much. So users are cut into folds, and one retrieval model is
    fitted without each fold.
    """
    split, ours = encoded.split, config.ranking
    rng = np.random.default_rng(config.seed)
    positions = split.train[split.starts[split.train] < split.train]
    if len(positions) > ours.max_targets:
        positions = np.sort(rng.choice(positions, ours.max_targets, replace=False))
    fold_of_user = rng.integers(ours.folds, size=len(split.dataset.users.ids))
    fold = fold_of_user[split.user_idx[positions]]
    fold_of_train = fold_of_user[split.user_idx[split.train]]
    count, dim = len(positions), config.retrieval.dim
    users = torch.empty(count, dim)
    rows = torch.empty(count, min(config.num_candidates, encoded.num_items), dtype=torch.int32)
    items = []
    for i in range(ours.folds):
        model = fit_retrieval(encoded, config, split.train[fold_of_train != i], progress=progress)
        inside = np.flatnonzero(fold == i)
        users[inside], rows[inside], _ = top_candidates(
            model, encoded, positions[inside], rows.shape[1]
        )
        with torch.no_grad():
            items.append(model.items(*encoded.catalog()))
    return Candidates(
        positions, users, torch.cat(items), torch.from_numpy(fold * encoded.num_items), rows
    )


def make_dlrm(encoded: Encoded, config: TrainingConfig) -> DLRM:
    """A model for these features, with random weights."""
    ours = config.ranking
    user_bags = encoded.bags(encoded.features, PREFIX, ours.history_lengths)
    item_bags = encoded.bags(encoded.item_features, PREFIX, ours.history_lengths)
    return DLRM(
        DLRMConfig(
            user_bags=user_bags,
            item_bags=item_bags,
            tables=encoded.tables(user_bags + item_bags, PREFIX, ours.dim),
            num_user_dense=len(encoded.dense_features),
            num_item_dense=encoded.item_dense.shape[1],
            hidden=ours.hidden,
            dim=ours.dim,
            dropout=ours.dropout,
            score_weight=1 / config.retrieval.temperature,
        )
    )


class RankingTask(L.LightningModule):
    """One step: each target against candidates that the retrieval prefers, and random ones."""

    def __init__(
        self,
        model: DLRM,
        encoded: Encoded,
        candidates: Candidates,
        validation: tuple[Tensor, Tensor],
        config: TrainingConfig,
    ) -> None:
        super().__init__()
        self.model = model
        self._encoded = encoded
        self._candidates = candidates
        self._validation = validation
        self._config = config

    def training_step(self, positions: Tensor) -> Tensor:
        """The loss of targets at these positions."""
        encoded, candidates = self._encoded, self._candidates
        picked = torch.from_numpy(np.searchsorted(candidates.positions, positions.numpy()))
        targets = encoded.targets(positions.numpy())
        negatives = self._negatives(picked)
        known = encoded.taken_before(positions.numpy()).gather(1, negatives)
        hits = known | (negatives == targets[:, None])
        items = torch.cat([targets[:, None], negatives], dim=1)
        rows, dense = encoded.user_batch(positions.numpy())
        logits = self.model(
            forget(rows, self._config.unknown_rate),
            self._items(items),
            candidates.cosines(picked, items),
            dense,
        )
        logits = logits.masked_fill(F.pad(hits, (1, 0)), -torch.inf)
        loss = F.cross_entropy(logits, torch.zeros(len(items), dtype=torch.int64))
        self.log("loss", loss, prog_bar=True)
        return loss

    def _negatives(self, picked: Tensor) -> Tensor:
        """Catalog rows [batch, hard + random]."""
        ours, offered = self._config.ranking, self._candidates.rows[picked].long()
        hard = torch.rand(offered.shape).topk(min(ours.hard_negatives, offered.shape[1])).indices
        random = torch.randint(self._encoded.num_items, (len(picked), ours.random_negatives))
        return torch.cat([offered.gather(1, hard), random], dim=1)

    def _items(self, items: Tensor) -> Tensor:
        """Item rows [batch, n, width], each distinct item pooled once."""
        distinct, places = torch.unique(items, return_inverse=True)
        rows, dense = self._encoded.items(distinct)
        return self.model.items(forget(rows, self._config.unknown_rate), dense)[places]

    def on_validation_epoch_start(self) -> None:
        """Pools the catalog once for all validation batches."""
        settle_unseen(self.model.tables, PREFIX, self._encoded, self._candidates.positions)
        self._table = self.model.items(*self._encoded.catalog())

    def validation_step(self, positions: Tensor) -> None:
        """NDCG@10 of the retrieval's candidates in the new order."""
        split = self._encoded.split
        picked = torch.from_numpy(np.searchsorted(split.validation, positions.numpy()))
        rows, cosines = (part[picked] for part in self._validation)
        scores = order(self.model, self._encoded, positions.numpy(), rows, cosines, self._table)
        places = target_places(scores, self._encoded.targets(positions.numpy()))
        self.log(MONITOR, ndcg_at(places, 10), prog_bar=True, batch_size=len(positions))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, slower with every epoch."""
        return adamw(self, self._config.ranking)


def fit_ranking(
    encoded: Encoded, retrieval: TwoTower, config: TrainingConfig, *, progress: bool = True
) -> DLRM:
    """Fits a ranker that orders the candidates of `retrieval`.

    Args:
        encoded: the data.
        retrieval: the model whose candidates are ordered in validation and in use.
        config: what to fit and how.
        progress: show a progress bar.
    """
    split = encoded.split
    candidates = out_of_fold_candidates(encoded, config, progress=progress)
    model = make_dlrm(encoded, config)
    validation = top_candidates(retrieval, encoded, split.validation, config.num_candidates)[1:]
    task = RankingTask(model, encoded, candidates, validation, config)
    batch_size = min(config.ranking.batch_size, len(candidates.positions))
    fit(task, candidates.positions, split.validation, batch_size, config, progress=progress)
    return model


def order(
    model: DLRM, encoded: Encoded, positions: Int64s, rows: Tensor, cosines: Tensor, table: Tensor
) -> Tensor:
    """Ranking scores of candidates over the whole catalog, -inf where there is no candidate.

    Args:
        model: the ranker.
        encoded: the data.
        positions: targets.
        rows: int [positions, n], catalog rows of the candidates.
        cosines: [positions, n]; -inf marks an empty slot.
        table: item rows [items, width] of the model.

    Returns:
        [positions, items].
    """
    user_rows, dense = encoded.user_batch(positions)
    empty = cosines.isinf()
    rows = rows.long()
    scores = model(user_rows, table[rows], cosines.masked_fill(empty, 0), dense)
    catalog = torch.full((len(positions), encoded.num_items), -torch.inf)
    return catalog.scatter(1, rows, scores.masked_fill(empty, -torch.inf))
