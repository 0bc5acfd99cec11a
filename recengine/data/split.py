"""Splits in time: what is learned from lies before what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from recengine.data.dataset import Dataset, Int64s, Ragged
from recengine.errors import InputError

LEAVE_LAST_OUT = "leave-last-out"
_TIME_RATIO = "time-ratio:"


@dataclass(frozen=True)
class Split:
    """Three sets of targets over one list of interactions, ordered by user, then by time.

    A target is a position in that list: the user took items[position] after everything of theirs
    that stands before it. `history()` is that view, so a target never sees its own future.

    Attributes:
        user_idx: rows of `dataset.users`, one per interaction.
        item_idx: rows of `dataset.items`, one per interaction.
        times: int64, one per interaction.
        starts: position of the first interaction of the same user, one per interaction.
        train: positions to learn from.
        validation: positions to choose by.
        test: positions to report.
        name: how it was made, as `splitter` reads it.
    """

    dataset: Dataset
    user_idx: Int64s
    item_idx: Int64s
    times: Int64s
    starts: Int64s
    train: Int64s
    validation: Int64s
    test: Int64s
    name: str = "custom"

    def history(self, positions: Int64s, max_length: int | None = None) -> Ragged:
        """Item rows that each target's user had before it, oldest first, the last `max_length`."""
        starts = self.starts[positions]
        if max_length is not None:
            starts = np.maximum(starts, positions - max_length)
        lengths = positions - starts
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        steps = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.item_idx[steps], offsets)


def splitter(name: str) -> Callable[[Dataset], Split]:
    """The function that splits in this way.

    Args:
        name: "leave-last-out", or "time-ratio:0.8,0.1,0.1" with shares as `time_ratio` takes them.

    Raises:
        InputError: it is neither.
    """
    if name == LEAVE_LAST_OUT:
        return leave_last_out
    shares = name.removeprefix(_TIME_RATIO)
    try:
        ratios = tuple(float(share) for share in shares.split(","))
    except ValueError:
        ratios = ()
    if shares == name or not _are_shares(ratios):
        raise InputError(
            f"[splitter] expected {LEAVE_LAST_OUT}, or {_TIME_RATIO}0.8,0.1,0.1 with three shares "
            f"that sum to 1, found {name!r}"
        )
    return partial(time_ratio, ratios=ratios)


def leave_last_out(dataset: Dataset) -> Split:
    """Each user's last item is for the test, the second last for validation.

    A user of fewer than three interactions is only learned from.
    """
    order, starts, ends = _by_user(dataset)
    positions = np.arange(len(order))
    to_end = np.where(ends - starts >= 3, ends - positions, 3)
    parts = [positions[to_end > 2], positions[to_end == 2], positions[to_end == 1]]
    return _split(dataset, LEAVE_LAST_OUT, order, starts, parts)


def time_ratio(dataset: Dataset, ratios: Sequence[float] = (0.8, 0.1, 0.1)) -> Split:
    """Cuts all interactions at two moments: the oldest share is for training, the newest for test.

    Interactions of one moment stay together.

    Args:
        dataset: what to split.
        ratios: shares of train, validation and test; they sum to 1.
    """
    if not _are_shares(ratios):
        raise InputError(
            f"[time_ratio] ratios: expected three shares that sum to 1, found {ratios}"
        )
    order, starts, _ = _by_user(dataset)
    times = dataset.interactions.times
    cuts = np.round(np.cumsum(ratios)[:2] * len(times)).astype(np.int64)
    # Moments, not counts: everything of the cut's own moment falls behind it.
    moments = [times[cut] if cut < len(times) else np.iinfo(np.int64).max for cut in cuts]
    part = np.searchsorted(np.array(moments), times[order], side="right")
    name = _TIME_RATIO + ",".join(f"{float(ratio)!r}" for ratio in ratios)
    return _split(dataset, name, order, starts, [np.flatnonzero(part == i) for i in range(3)])


def _are_shares(ratios: Sequence[float]) -> bool:
    return len(ratios) == 3 and min(ratios) >= 0 and abs(sum(ratios) - 1) <= 1e-6


def _by_user(dataset: Dataset) -> tuple[Int64s, Int64s, Int64s]:
    """Order by user (then time, as it stands), first and one-past-last position of its user."""
    users = dataset.interactions.users
    order = np.argsort(users, kind="stable")
    _, first, inverse, counts = np.unique(
        users[order], return_index=True, return_inverse=True, return_counts=True
    )
    starts = first[inverse].astype(np.int64)
    return order, starts, starts + counts[inverse]


def _split(
    dataset: Dataset, name: str, order: Int64s, starts: Int64s, parts: list[Int64s]
) -> Split:
    interactions = dataset.interactions
    item_idx = dataset.items.find(interactions.items[order])
    user_idx = dataset.users.find(interactions.users[order])
    # What a user had before is excluded from the answer, so it cannot be asked for.
    pairs = user_idx * len(dataset.items.ids) + item_idx
    new = np.zeros(len(pairs), bool)
    new[np.unique(pairs, return_index=True)[1]] = True
    train, validation, test = parts
    return Split(
        dataset=dataset,
        user_idx=user_idx,
        item_idx=item_idx,
        times=interactions.times[order],
        starts=starts,
        train=train,
        validation=validation[new[validation]],
        test=test[new[test]],
        name=name,
    )
