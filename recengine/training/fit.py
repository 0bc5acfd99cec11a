"""The Lightning loop that both models share."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, TextIO, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from recengine.data.dataset import Int64s
from recengine.models.bags import Rows
from recengine.training.config import RankingConfig, RetrievalConfig
from recengine.training.encode import ITEM, USER, Encoded

MONITOR = "validation_ndcg@10"


def fit(
    task: L.LightningModule,
    encoded: Encoded,
    batch_size: int,
    epochs: int,
    *,
    patience: int | None = None,
    progress: bool = True,
) -> None:
    """Fits `task` and leaves it as the last epoch, or with patience the best, made it.

    Args:
        task: logs `MONITOR` in its validation; batches are int64 tensors of target positions.
        encoded: the data.
        batch_size: targets per step, at most.
        epochs: how many, at most.
        patience: keep the epoch of the best NDCG@10 on the validation targets, and stop after so
            many without a better one; by default all epochs are run and the last one is kept.
        progress: show a progress bar, on a terminal or in a notebook.
    """
    _quiet()
    progress = progress and _shows_bars(sys.stdout) and _shows_bars(sys.stderr)
    with tempfile.TemporaryDirectory() as directory:
        keep = ModelCheckpoint(directory, "best", MONITOR, mode="max", save_weights_only=True)
        callbacks: list[Callback] = []
        if patience is not None:
            callbacks += [keep, EarlyStopping(MONITOR, mode="max", patience=patience)]
        if progress:
            callbacks.append(TQDMProgressBar(refresh_rate=10))
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=patience is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            task,
            _batches(encoded.learnable(), batch_size, shuffle=True),
            _batches(encoded.split.validation, batch_size, shuffle=False),
        )
        if patience is not None:
            best = torch.load(Path(keep.best_model_path), weights_only=True)
            task.load_state_dict(best["state_dict"])
    task.eval()


def adamw(
    task: L.LightningModule, config: RetrievalConfig | RankingConfig
) -> OptimizerLRSchedulerConfig:
    """AdamW whose rate shrinks by `config.decay` after each epoch."""
    optimizer = AdamW(task.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    return {"optimizer": optimizer, "lr_scheduler": ExponentialLR(optimizer, config.decay)}


def forget(rows: Rows, rate: float) -> dict[str, Tensor]:
    """Turns a share of the ids into unknown ones, so that row 0 of every table is trained."""
    return {
        name: torch.where((torch.rand(values.shape) < rate) & (values > 0), 0, values)
        for name, values in rows.items()
    }


def forget_users(rows: Rows, rate: float) -> dict[str, Tensor]:
    """The same for user ids alone: a model that knows them all learns little from histories."""
    return {**rows, **forget({USER: rows[USER]}, rate)}


def _batches(positions: Int64s, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
    """Batches of positions, cut from one tensor by index lists."""
    data = cast(Any, torch.from_numpy(positions))
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    sampler = BatchSampler(order, min(batch_size, len(positions)), drop_last=shuffle)
    # batch_size=None: the sampler already yields lists, and a tensor takes those at once.
    return DataLoader(data, batch_size=None, sampler=sampler)


def _shows_bars(stream: TextIO | None) -> bool:
    """Whether a line can be written over, as in a notebook's cell, whose stream denies it."""
    in_notebook = type(stream).__module__ == "ipykernel.iostream"
    return stream is not None and (in_notebook or stream.isatty())


def _quiet() -> None:
    """Lightning's advice on GPUs and loader workers is of no use here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")


@torch.no_grad()
def settle_unseen(tables: nn.ParameterDict, prefix: str, encoded: Encoded) -> None:
    """Users and items that training never names take the unknown row: theirs is still random."""
    split = encoded.split
    for name, rows in ((USER, split.user_idx), (ITEM, split.item_idx)):
        weight = tables[f"{prefix}_{name}"]
        unseen = torch.ones(len(weight), dtype=torch.bool)
        unseen[torch.from_numpy(rows[split.train]) + 1] = False
        weight[unseen] = weight[0].clone()
