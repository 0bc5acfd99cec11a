"""What a recommender answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from recengine.keys import NO_ITEM


@dataclasses.dataclass(frozen=True, eq=False)
class Recommendations:
    """Items for a batch of users, best first.

    Iterating yields one list of (item id, score) per user, without the padding.

    Attributes:
        item_ids: int64 [batch, k], padded with -1.
        scores: float32 [batch, k], padded with -inf.
    """

    item_ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, user: int) -> list[tuple[int, float]]:
        pairs = zip(self.item_ids[user].tolist(), self.scores[user].tolist(), strict=True)
        return [(item, score) for item, score in pairs if item != NO_ITEM]

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        return (self[user] for user in range(len(self)))
