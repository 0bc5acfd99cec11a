"""Recommendations in process, by the engine that the Triton backend runs."""

from __future__ import annotations

import os
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from recengine import _ops
from recengine._arrays import cast_array
from recengine._engine_arguments import Arguments
from recengine.client.schema import Schema
from recengine.client.wire import WireUsers

Floats: TypeAlias = npt.NDArray[np.float32]
GraphInputs: TypeAlias = dict[str, Floats]
"""What a dense graph reads, by the names of its inputs."""
Ranked: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Item ids int64 [batch, k], best first, padded with -1; scores float32, padded with -inf."""


class Memory(NamedTuple):
    """Bytes of a version's files, and of its tables in the memory of a GPU."""

    mapped: int
    resident: int
    huge: int
    """Of the resident ones: in huge pages; 0 where the system gives none."""
    device_tables: int
    device_shared: int
    """Of these: there before, for another engine whose files have the same contents."""


class Engine:
    """A bundle, or a version directory that our backend serves, verified and memory-mapped.

    That of a split repository has one of the methods `look_up`, `look_up_candidates`, `search` and
    `order`; others have the stages of what they have.

    Users come as `recengine.client.wire.pack_users(engine.schema, ...)` packs them. Every method
    releases the GIL while it computes and may be called from many threads at once.

    Args:
        directory: what export or compile wrote.
        threads: how many threads one call may use; None for every core that the process may use.
        resident: copy tensors into memory, in huge pages where the system gives them, instead of
            reading the mapped files. Loading takes longer, random rows are read faster. None: only
            the 8-bit codes of a large catalog, of which every search reads all; the pages of a
            mapped file may be small, and it takes two to three times as long then. Engines of a
            process share the copies; files below 2 MiB stay mapped.

    Raises:
        BundleError: a file is missing, damaged or of another format version.
        CompileError: OpenVINO refuses a graph.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        threads: int | None = None,
        *,
        resident: bool | None = None,
    ) -> None:
        self._native = _ops.Engine(os.fspath(directory), threads, resident)
        self._arguments = Arguments(self._native.schema)

    @property
    def schema(self) -> Schema:
        """What a user must bring, and the sizes of an answer."""
        return self._arguments.schema

    @property
    def memory(self) -> Memory:
        """Where the files are now."""
        return Memory(**self._native.memory)

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
        return self._native.retrieve(
            *self._arguments.users(users), self._arguments.num_candidates("k", k)
        )

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
            *self._arguments.users(users),
            *_candidates(candidates, candidate_scores),
            self._arguments.k(k),
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
            num_candidates = max(k, self.schema.num_candidates)
        return self._native.recommend(
            *self._arguments.users(users),
            self._arguments.k(k),
            self._arguments.num_candidates("num_candidates", num_candidates),
        )

    def look_up(self, users: WireUsers) -> GraphInputs:
        """What the retrieval graph reads; its other stage is `search`.

        Returns:
            "sparse" float32 [batch, width], zeros for a user with nothing known, and, where the
            model has dense features, "dense" float32 [batch, n].

        Raises:
            InputError: naming the tensor and the position that are not as the schema says.
        """
        ids, lengths, dense = self._arguments.users(users)
        return self._graph_inputs(dense, sparse=self._native.look_up(ids, lengths, dense))

    def look_up_candidates(
        self, users: WireUsers, candidates: npt.ArrayLike, candidate_scores: npt.ArrayLike
    ) -> GraphInputs:
        """What the ranking graph reads; its other stage is `order`.

        Args:
            users: the batch.
            candidates: item ids int64 [batch, n]; -1 is an empty slot.
            candidate_scores: float32 [batch, n].

        Returns:
            As `look_up` does, and "items" float32 [batch, m, dim] and "candidate_scores" float32
            [batch, m], 0 in an empty slot; m is n, or 1 empty slot where n is 0.

        Raises:
            InputError: naming the tensor and the position that are not as the schema says.
        """
        ids, lengths, dense = self._arguments.users(users)
        sparse, items, scores = self._native.look_up_candidates(
            *(ids, lengths, dense), *_candidates(candidates, candidate_scores)
        )
        return self._graph_inputs(dense, sparse=sparse, items=items, candidate_scores=scores)

    def search(self, users: WireUsers, vectors: npt.ArrayLike, k: int | None = None) -> Ranked:
        """`retrieve` after its graph.

        Args:
            users: the batch, without dense features where this version has only this stage.
            vectors: float32 [batch, dim], what the graph gave; not read for a user with nothing
                known.
            k: as in `retrieve`.

        Returns:
            Item ids and cosine scores, [batch, k].

        Raises:
            InputError: naming the tensor and the position, or the user whose vector is not finite.
        """
        given = cast_array("[retrieval] user", vectors, np.float32)
        return self._native.search(
            *self._arguments.users(users), given, self._arguments.num_candidates("k", k)
        )

    def order(
        self,
        users: WireUsers,
        candidates: npt.ArrayLike,
        candidate_scores: npt.ArrayLike,
        graph_scores: npt.ArrayLike,
        k: int | None = None,
    ) -> Ranked:
        """`rank` after its graph.

        Args:
            users: the batch, without dense features where this version has only this stage.
            candidates: as in `rank`.
            candidate_scores: as in `rank`.
            graph_scores: float32 [batch, m], what the graph gave for `look_up_candidates`; not read
                for a user with nothing known.
            k: as in `rank`.

        Returns:
            Item ids and the ranker's scores, [batch, k].

        Raises:
            InputError: naming the tensor and the position, or the score that is not finite.
        """
        return self._native.order(
            *self._arguments.users(users),
            *_candidates(candidates, candidate_scores),
            cast_array("[ranking] graph_scores", graph_scores, np.float32),
            self._arguments.k(k),
        )

    def _graph_inputs(self, dense: Floats, **inputs: Floats) -> GraphInputs:
        return inputs | ({"dense": dense} if self.schema.dense_features else {})


def _candidates(
    candidates: npt.ArrayLike, scores: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], Floats]:
    return (
        cast_array("[ranking] candidates", candidates, np.int64),
        cast_array("[ranking] candidate_scores", scores, np.float32),
    )
