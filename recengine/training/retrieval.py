"""Fits the two-tower model: in-batch sampled softmax with logQ correction.

Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", 2019.
"""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from recengine.data.dataset import Int64s
from recengine.models import TwoTower, TwoTowerConfig
from recengine.training.config import TrainingConfig
from recengine.training.encode import Encoded
from recengine.training.fit import MONITOR, adamw, fit, forget, forget_users, settle_unseen
from recengine.training.metrics import ndcg_at, target_places

PREFIX = "retrieval"


def make_two_tower(encoded: Encoded, config: TrainingConfig) -> TwoTower:
    """A model for these features, with random weights."""
    ours = config.retrieval
    user_bags = encoded.bags(encoded.features, PREFIX, ours.history_lengths)
    item_bags = encoded.bags(encoded.item_features, PREFIX, ours.history_lengths)
    return TwoTower(
        TwoTowerConfig(
            user_bags=user_bags,
            item_bags=item_bags,
            tables=encoded.tables(user_bags + item_bags, PREFIX, ours.dim),
            num_user_dense=len(encoded.dense_features),
            num_item_dense=encoded.item_dense.shape[1],
            hidden=ours.hidden,
            dim=ours.dim,
            dropout=ours.dropout,
        )
    )


class RetrievalTask(L.LightningModule):
    """One step: the targets of a batch are each other's negatives."""

    def __init__(self, model: TwoTower, encoded: Encoded, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self._encoded = encoded
        self._config = config
        counts = torch.from_numpy(encoded.popularity).float()
        self._log_q = (counts.clamp(min=1) / counts.sum()).log()

    def training_step(self, positions: Tensor) -> Tensor:
        """The loss of targets at these positions."""
        encoded, rate = self._encoded, self._config.unknown_rate
        rows, dense = encoded.user_batch(positions.numpy())
        rows = forget_users(forget(rows, rate), self._config.retrieval.unknown_user_rate)
        users = self.model.users(rows, dense)
        targets = encoded.targets(positions.numpy())
        item_rows, item_dense = encoded.items(targets)
        items = self.model.items(forget(item_rows, rate), item_dense)
        logits = users @ items.T / self._config.retrieval.temperature - self._log_q[targets]
        # Neither the target itself nor what the user already had is a negative.
        taken = encoded.taken_before(positions.numpy())[:, targets]
        hits = (taken | (targets[:, None] == targets)).fill_diagonal_(False)
        loss = F.cross_entropy(logits.masked_fill(hits, -torch.inf), torch.arange(len(targets)))
        self.log("loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Embeds the catalog once for all validation batches."""
        settle_unseen(self.model.tables, PREFIX, self._encoded)
        self._items = self.model.items(*self._encoded.catalog())

    def validation_step(self, positions: Tensor) -> None:
        """NDCG@10 over the whole catalog."""
        scores = self.model.users(*self._encoded.user_batch(positions.numpy())) @ self._items.T
        scores = self._encoded.exclude_history(scores, positions.numpy())
        places = target_places(scores, self._encoded.targets(positions.numpy()))
        self.log(MONITOR, ndcg_at(places, 10), prog_bar=True, batch_size=len(positions))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, slower with every epoch."""
        return adamw(self, self._config.retrieval)


def fit_retrieval(encoded: Encoded, config: TrainingConfig, *, progress: bool = True) -> TwoTower:
    """Fits a two-tower model.

    Args:
        encoded: the data.
        config: what to fit and how.
        progress: show a progress bar.
    """
    model = make_two_tower(encoded, config)
    task = RetrievalTask(model, encoded, config)
    ours = config.retrieval
    fit(
        task,
        encoded,
        ours.batch_size,
        config.max_epochs,
        patience=ours.patience,
        progress=progress,
    )
    return model


@torch.no_grad()
def top_candidates(
    model: TwoTower, encoded: Encoded, positions: Int64s, n: int, chunk: int = 2048
) -> tuple[Tensor, Tensor, Tensor]:
    """The best n items of each user that the user did not have.

    Returns:
        Unit user vectors [positions, dim], catalog rows int32 [positions, n], best first, and
        their cosines [positions, n]; -inf where a user has fewer items left.
    """
    items = model.eval().items(*encoded.catalog())
    parts = []
    for at in range(0, len(positions), chunk):
        part = positions[at : at + chunk]
        users = model.users(*encoded.user_batch(part))
        scores = encoded.exclude_history(users @ items.T, part)
        best = scores.topk(min(n, encoded.num_items))
        parts.append((users, best.indices.int(), best.values))
    users, rows, cosines = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return users, rows, cosines
