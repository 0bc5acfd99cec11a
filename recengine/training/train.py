"""From a data set to a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from recengine.data.dataset import Dataset
from recengine.data.split import LEAVE_LAST_OUT, Split, leave_last_out
from recengine.errors import InputError
from recengine.models import DLRM, TwoTower
from recengine.training import checkpoint
from recengine.training.config import TrainingConfig
from recengine.training.encode import ITEM, Encoded, encode
from recengine.training.evaluate import evaluate
from recengine.training.ranking import fit_ranking
from recengine.training.recommender import Quality, Recommender
from recengine.training.retrieval import fit_retrieval


def train(
    dataset: Dataset,
    out: Path | str,
    *,
    config: TrainingConfig | None = None,
    split: Split | None = None,
    progress: bool = True,
    **overrides: Any,
) -> tuple[Quality, ...]:
    """Fits retrieval and ranking, measures both on the test targets and writes a checkpoint.

    Args:
        dataset: what to learn from.
        out: the checkpoint directory; one that stands there is replaced.
        config: all settings; the defaults suit MovieLens-100K.
        split: what to learn from, choose by and report; by default each user's last item is the
            test and the second last the validation.
        progress: say on standard error which model is fitted and, on a terminal or in a notebook,
            how far it is.
        **overrides: single settings of `config`, as in `seed=1, max_epochs=10`.

    Returns:
        Quality on the test targets: popularity, item-kNN, retrieval, retrieval + ranking.

    Raises:
        InputError: there is nothing to learn from, or no user to validate or test with.
        OSError: `out` cannot be written.
    """
    checkpoint.require_writable(out)
    config = TrainingConfig(**{**(config or TrainingConfig()).model_dump(), **overrides})
    split = split or leave_last_out(dataset)
    for name, targets in (
        ("train", split.train),
        ("validation", split.validation),
        ("test", split.test),
    ):
        if not len(targets):
            why = "" if name == "train" else _why_none(split)
            raise InputError(f"[train] {dataset.name}: expected {name} targets, found none{why}")
    L.seed_everything(config.seed, verbose=False)
    history = max(*config.retrieval.history_lengths, *config.ranking.history_lengths)
    encoded = encode(split, history)
    if not len(encoded.learnable()):
        raise InputError(
            f"[train] {dataset.name}: expected users with two train targets, found none"
        )
    _say("fitting retrieval", progress)
    retrieval = fit_retrieval(encoded, config, progress=progress)
    _say("fitting ranking", progress)
    ranking = fit_ranking(encoded, retrieval, config, progress=progress)
    quality = evaluate(encoded, retrieval, ranking, split.test, config.num_candidates)
    checkpoint.save(_recommender(encoded, retrieval, ranking, quality, config), out)
    return quality


def _say(what: str, progress: bool) -> None:
    if progress:
        print(what, file=sys.stderr, flush=True)


def _why_none(split: Split) -> str:
    """What may have left no targets to validate or test with; empty where nothing is known."""
    pairs = split.user_idx * len(split.dataset.items.ids) + split.item_idx
    repeats = len(pairs) - len(np.unique(pairs))
    longest = np.bincount(split.user_idx).max(initial=0)
    if repeats:
        return (
            f"; {repeats} of {len(pairs)} interactions are of an item that the user had before, "
            "which is left out of validation and test: what was taken is not recommended again. "
            "Keep the first of each user and item"
        )
    if split.name == LEAVE_LAST_OUT and longest < 3:
        return f"; {split.name} needs three interactions of a user, found at most {longest}"
    return ""


def _recommender(
    encoded: Encoded,
    retrieval: TwoTower,
    ranking: DLRM,
    quality: tuple[Quality, ...],
    config: TrainingConfig,
) -> Recommender:
    dataset = encoded.split.dataset
    return Recommender(
        name=dataset.name,
        features=encoded.features,
        dense_features=encoded.dense_features,
        item_features=encoded.item_features,
        item_vocabulary=ITEM,
        vocabularies=encoded.vocabularies,
        retrieval=retrieval.eval(),
        ranking=ranking.eval(),
        item_rows={name: rows.numpy() for name, rows in encoded.item_rows.items()},
        item_dense=encoded.item_dense.numpy(),
        popularity=encoded.popularity,
        num_candidates=min(config.num_candidates, encoded.num_items),
        k=min(config.k, encoded.num_items),
        held_out=encoded.requests(encoded.split.test),
        quality=quality,
        dense_means=encoded.dense_means,
        dataset=dataset.source | {"split": encoded.split.name},
    )
