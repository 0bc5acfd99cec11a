"""Fits the DLRM ranker: a softmax over the target, hard negatives of the retrieval, random ones."""

from __future__ import annotations

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from recengine.data.dataset import Int64s
from recengine.models import DLRM, DLRMConfig, TwoTower
from recengine.training.config import TrainingConfig
from recengine.training.encode import Encoded
from recengine.training.fit import MONITOR, adamw, fit, forget, forget_users, settle_unseen
from recengine.training.metrics import ndcg_at, target_places
from recengine.training.retrieval import top_candidates

PREFIX = "ranking"


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
        )
    )


class RankingTask(L.LightningModule):
    """Learns log p(item | user) by itself, then how much the retrieval score adds to it.

    Negatives come from the retrieval's own softmax, a small share of them from the whole catalog.
    Subtracting the log of that probability (as logQ does in a batch) makes the sampled softmax
    estimate the full one, however hard the negatives are; it is the more precise the closer they
    are drawn to what the model itself would offer (Bengio & Senécal, "Adaptive Importance Sampling
    to Accelerate Training of a Neural Probabilistic Language Model", 2008). The weight of the
    retrieval score is chosen on the validation targets: the retrieval knows the training targets
    too well to be weighed there.
    """

    def __init__(
        self, model: DLRM, retrieval: TwoTower, encoded: Encoded, config: TrainingConfig
    ) -> None:
        super().__init__()
        self.model = model
        self._encoded = encoded
        self._config = config
        self._retrieval = [retrieval.eval()]  # in a list: not a part of what is fitted
        with torch.no_grad():
            self._vectors = retrieval.items(*encoded.catalog())
        self._offered = top_candidates(
            retrieval, encoded, encoded.split.validation, config.num_candidates
        )

    def training_step(self, positions: Tensor) -> Tensor:
        """The loss of targets at these positions."""
        encoded, ours, rate = self._encoded, self._config.ranking, self._config.unknown_rate
        rows, dense = encoded.user_batch(positions.numpy())
        targets = encoded.targets(positions.numpy())[:, None]
        taken = encoded.taken_before(positions.numpy())
        proposal = self._proposal(rows, dense, taken)
        negatives = proposal.multinomial(ours.negatives, replacement=True)
        hits = taken.gather(1, negatives) | (negatives == targets)
        items = torch.cat([targets, negatives], dim=1)
        rows = forget_users(forget(rows, rate), ours.unknown_user_rate)
        logits = self.model.interactions(rows, self._items(items), dense)
        logits = logits - proposal.gather(1, items).log()
        logits = logits.masked_fill(F.pad(hits, (1, 0)), -torch.inf)
        loss = F.cross_entropy(logits, torch.zeros(len(items), dtype=torch.int64))
        self.log("loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def _proposal(self, rows: dict[str, Tensor], dense: Tensor | None, taken: Tensor) -> Tensor:
        """How likely each item is drawn as a negative: [batch, items]."""
        cosines = self._retrieval[0].users(rows, dense) @ self._vectors.T
        logits = cosines / self._config.retrieval.temperature
        hard = logits.masked_fill(taken, -torch.inf).softmax(1)
        share = self._config.ranking.hard_share
        return share * hard + (1 - share) / self._encoded.num_items

    def _items(self, items: Tensor) -> Tensor:
        """Item rows [batch, n, width], each distinct item pooled once."""
        distinct, places = torch.unique(items, return_inverse=True)
        rows, dense = self._encoded.items(distinct)
        table = self.model.items(forget(rows, self._config.unknown_rate), dense)
        # Unlike table[places], its gradient is summed in one order.
        return F.embedding(places, table)

    def on_validation_epoch_start(self) -> None:
        """Pools the catalog once for all validation batches."""
        settle_unseen(self.model.tables, PREFIX, self._encoded)
        self._table = self.model.items(*self._encoded.catalog())
        self._logits: list[Tensor] = []

    def validation_step(self, positions: Tensor) -> None:
        """Logits of what the retrieval offers, the retrieval score left out."""
        at = sum(map(len, self._logits))
        rows, dense = self._encoded.user_batch(positions.numpy())
        offered = self._offered[1][at : at + len(positions)].long()
        self._logits.append(self.model.interactions(rows, self._table[offered], dense))

    def on_validation_epoch_end(self) -> None:
        """Takes the weight of the retrieval score that gives the best NDCG@10."""
        _, offered, cosines = self._offered
        targets = self._encoded.targets(self._encoded.split.validation)
        logits = torch.cat(self._logits)

        def ndcg(weight: float) -> float:
            return ndcg_at(target_places(logits + weight * cosines, targets, offered), 10)

        scale = 1 / self._config.retrieval.temperature
        weights = [share * scale for share in self._config.ranking.score_shares]
        best = max(weights, key=ndcg)
        self.model.ranker.score_weight.fill_(best)
        self.log(MONITOR, ndcg(best), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, slower with every epoch."""
        return adamw(self, self._config.ranking)


def fit_ranking(
    encoded: Encoded, retrieval: TwoTower, config: TrainingConfig, *, progress: bool = True
) -> DLRM:
    """Fits a ranker that orders the candidates of `retrieval`.

    The rate falls until little changes, and the last epoch is kept. The best on the validation
    targets would be one of luck: epochs differ by less than the error of NDCG@10 over a few hundred
    users, and the retrieval was chosen on the same targets.

    Args:
        encoded: the data.
        retrieval: the model whose candidates are ordered.
        config: what to fit and how.
        progress: show a progress bar.
    """
    model = make_dlrm(encoded, config)
    task = RankingTask(model, retrieval, encoded, config)
    ours = config.ranking
    fit(task, encoded, ours.batch_size, min(ours.epochs, config.max_epochs), progress=progress)
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
    scores = model(user_rows, table[rows.long()], cosines.masked_fill(empty, 0), dense)
    catalog = torch.full((len(positions), encoded.num_items), -torch.inf)
    return catalog.scatter(1, rows.long(), scores.masked_fill(empty, -torch.inf))
