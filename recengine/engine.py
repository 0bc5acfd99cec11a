"""Recommendations in process, by the engine that the Triton backend runs."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from recengine import _ops
from recengine._arrays import cast_array
from recengine.client.schema import Feature, Schema
from recengine.client.wire import WireUsers
from recengine.errors import InputError

Ranked: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Item ids int64 [batch, k], best first, padded with -1; scores float32, padded with -inf."""


class Engine:
    """A bundle, or a version directory compiled for the CPU, verified and memory-mapped.

    Users come as `recengine.client.wire.pack_users(engine.schema, ...)` packs them. Every method
    releases the GIL while it computes and may be called from many threads at once.

    Args:
        directory: what export or compile wrote.
        threads: how many threads one call may use; None for every core that the process may use.

    Raises:
        BundleError: a file is missing, damaged or of another format version.
        CompileError: OpenVINO refuses a graph.
    """

    def __init__(self, directory: str | os.PathLike[str], threads: int | None = None) -> None:
        self._native = _ops.Engine(os.fspath(directory), threads)
        raw: dict[str, Any] = self._native.schema
        features = tuple(Feature(**feature) for feature in raw.pop("features"))
        dense_features = tuple(raw.pop("dense_features"))
        self._schema = Schema(features=features, dense_features=dense_features, **raw)

    @property
    def schema(self) -> Schema:
        """What a user must bring, and the sizes of an answer."""
        return self._schema

    @property
    def has_retrieval(self) -> bool:
        """Whether `retrieve` is there."""
        return bool(self._native.has_retrieval)

    @property
    def has_ranking(self) -> bool:
        """Whether `rank` is there."""
        return bool(self._native.has_ranking)

    def retrieve(self, users: WireUsers, k: int | None = None) -> Ranked:
        """The k items nearest to each user, excluded ones left out.

        Args:
            users: the batch; a user with nothing known gets the fallback list.
            k: 1 to schema.max_candidates; None for schema.num_candidates.

        Returns:
            Item ids and cosine scores, [batch, k].

        Raises:
            InputError: naming the tensor and the position that are not as the schema says.
        """
        return self._native.retrieve(*self._arrays(users), self._num_candidates("k", k))

    def rank(
        self,
        users: WireUsers,
        candidates: npt.ArrayLike,
        candidate_scores: npt.ArrayLike,
        k: int | None = None,
    ) -> Ranked:
        """The k best candidates of each user.

        Args:
            users: the batch; a user with nothing known keeps the order of the candidate scores.
            candidates: item ids int64 [batch, n]; -1 is an empty slot.
            candidate_scores: float32 [batch, n], as retrieval gave them.
            k: 1 to schema.max_candidates; None for schema.k.

        Returns:
            Item ids and the ranker's scores, [batch, k].

        Raises:
            InputError: naming the tensor and the position that are not as the schema says.
        """
        return self._native.rank(
            *self._arrays(users),
            cast_array("[ranking] candidates", candidates, np.int64),
            cast_array("[ranking] candidate_scores", candidate_scores, np.float32),
            self._k(k),
        )

    def recommend(
        self, users: WireUsers, k: int | None = None, num_candidates: int | None = None
    ) -> Ranked:
        """`retrieve` of num_candidates items, then `rank`.

        Args:
            users: the batch.
            k: 1 to schema.max_candidates; None for schema.k.
            num_candidates: 1 to schema.max_candidates; None for schema.num_candidates, or k if
                that is more.

        Returns:
            Item ids and the ranker's scores, [batch, k].

        Raises:
            InputError: naming the tensor and the position that are not as the schema says.
        """
        if num_candidates is None and k is not None:
            num_candidates = max(k, self._schema.num_candidates)
        return self._native.recommend(
            *self._arrays(users),
            self._k(k),
            self._num_candidates("num_candidates", num_candidates),
        )

    def _arrays(
        self, users: WireUsers
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
        ids = cast_array("[engine] ids", users.ids, np.int64)
        lengths = cast_array("[engine] lengths", users.lengths, np.int32)
        absent = np.empty((len(ids), 0), np.float32)
        dense = absent if users.dense is None else users.dense
        return ids, lengths, cast_array("[engine] dense", dense, np.float32)

    def _k(self, k: int | None) -> int:
        return self._count("k", k, self._schema.k)

    def _num_candidates(self, name: str, count: int | None) -> int:
        return self._count(name, count, self._schema.num_candidates)

    def _count(self, name: str, count: int | None, default: int) -> int:
        if count is None:
            return default
        if not 1 <= count <= self._schema.max_candidates:
            raise InputError(
                f"[engine] {name}: expected 1 to {self._schema.max_candidates}, found {count}"
            )
        return count
