"""What engines make of the arguments of a call."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from recengine._arrays import cast_array
from recengine.client.schema import Feature, Schema
from recengine.client.wire import WireUsers
from recengine.errors import InputError


class Arguments:
    """Those of an engine with this schema, as the native module gives it."""

    def __init__(self, schema: dict[str, Any]) -> None:
        features = tuple(Feature(**feature) for feature in schema.pop("features"))
        dense_features = tuple(schema.pop("dense_features"))
        self.schema = Schema(features=features, dense_features=dense_features, **schema)

    def users(
        self, users: WireUsers
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        """Ids, lengths and dense features, [batch, 0] where there are none.

        Raises:
            InputError: an array is of another dtype.
        """
        ids = cast_array("[engine] ids", users.ids, np.int64)
        lengths = cast_array("[engine] lengths", users.lengths, np.int32)
        absent = np.empty((len(ids), 0), np.float32)
        dense = absent if users.dense is None else users.dense
        return ids, lengths, cast_array("[engine] dense", dense, np.float32)

    def k(self, k: int | None) -> int:
        """How many items to rank, schema.k by default."""
        return self._count("k", k, self.schema.k)

    def num_candidates(self, name: str, count: int | None) -> int:
        """How many items to retrieve, schema.num_candidates by default."""
        return self._count(name, count, self.schema.num_candidates)

    def _count(self, name: str, count: int | None, default: int) -> int:
        if count is None:
            return default
        if not 1 <= count <= self.schema.max_candidates:
            raise InputError(
                f"[engine] {name}: expected 1 to {self.schema.max_candidates}, found {count}"
            )
        return count
