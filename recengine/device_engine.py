"""The stages beside the dense graphs on a GPU, in process: what our backend runs there."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from recengine import _ops
from recengine._device import Device, call_device
from recengine._engine_arguments import Arguments
from recengine.client.schema import Schema
from recengine.client.wire import WireUsers
from recengine.engine import Memory
from recengine.errors import InputError


class DeviceEngine:
    """`recengine.Engine`'s single stages with tables and index in the memory of a GPU.

    Users come as NumPy arrays, all else lies on the device. A call runs on the current stream of
    the framework whose array is its first one, and that framework makes the results; `look_up`,
    which takes no such array, returns arrays with DLPack on the stream that it is told.

    Args:
        directory: a bundle, or a version directory of a split repository.
        device: number of the GPU.
        table_bytes: of its memory for tables; None for all that they need. The rows of tables that
            do not fit stay in pinned memory of the host, and a cache on the device holds those that
            are read most.

    Raises:
        BundleError: a file is missing, damaged or of another format version.
        DeviceError: the device is not there or lacks the memory, or this build has no CUDA parts.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        device: int = 0,
        table_bytes: int | None = None,
    ) -> None:
        if device < 0:
            raise InputError(f"[engine] device: expected at least 0, found {device}")
        if table_bytes is not None and table_bytes < 1:
            raise InputError(f"[engine] table_bytes: expected at least 1, found {table_bytes}")
        self._native = _ops.DeviceEngine(os.fspath(directory), device, table_bytes or 0)
        self._device = device
        self._arguments = Arguments(self._native.schema)
        self._widths: dict[str, int] = self._native.widths

    @property
    def schema(self) -> Schema:
        """What a user must bring, and the sizes of an answer."""
        return self._arguments.schema

    @property
    def memory(self) -> Memory:
        """Where the files are, and what of the device's memory the tables have."""
        return Memory(**self._native.memory)

    @property
    def device(self) -> int:
        """Number of the GPU."""
        return self._device

    def look_up(self, users: WireUsers, stream: int = 0) -> dict[str, Any]:
        """What the retrieval graph reads; see `Engine.look_up`.

        Args:
            users: the batch.
            stream: a cudaStream_t to work on, 0 for the legacy default stream.

        Raises:
            InputError: naming the tensor and the position that are not as the schema says.
        """
        ids, lengths, dense = self._arguments.users(users)
        device = Device(self._device, stream, "recengine")
        sparse = device.empty((len(ids), self._widths["retrieval_sparse"]), np.float32)
        self._native.look_up(ids, lengths, dense, sparse, stream)
        return self._graph_inputs(device, dense, sparse=sparse)

    def look_up_candidates(
        self, users: WireUsers, candidates: Any, candidate_scores: Any
    ) -> dict[str, Any]:
        """What the ranking graph reads; see `Engine.look_up_candidates`.

        Args:
            users: the batch.
            candidates: item ids int64 [batch, n] on the device; -1 is an empty slot.
            candidate_scores: float32 [batch, n] on the device.

        Raises:
            InputError: naming the tensor and the position that are not as the schema says. The
                candidates' values are not looked at.
        """
        device = self._call(candidates=candidates, candidate_scores=candidate_scores)
        ids, lengths, dense = self._arguments.users(users)
        given = device.read("[ranking] candidates", candidates)
        slots = max(given.shape[1], 1) if len(given.shape) == 2 else 1
        sparse = device.empty((len(ids), self._widths["ranking_sparse"]), np.float32)
        items = device.empty((len(ids), slots, self._widths["item"]), np.float32)
        scores = device.empty((len(ids), slots), np.float32)
        self._native.look_up_candidates(
            *(ids, lengths, dense, given),
            device.read("[ranking] candidate_scores", candidate_scores),
            device.read("[ranking] sparse", sparse),
            device.read("[ranking] items", items),
            device.read("[ranking] item_scores", scores),
            device.stream,
        )
        return self._graph_inputs(
            device, dense, sparse=sparse, items=items, candidate_scores=scores
        )

    def search(self, users: WireUsers, vectors: Any, k: int | None = None) -> tuple[Any, Any]:
        """`Engine.search`, the same answer to the bit for the same vectors. Waits for it.

        Args:
            users: the batch.
            vectors: float32 [batch, dim] on the device.
            k: 1 to schema.max_candidates; None for schema.num_candidates.

        Returns:
            Item ids int64 and cosine scores float32, [batch, k], on the device.

        Raises:
            InputError: naming the tensor and the position, or the user whose vector is not finite.
        """
        device = self._call(user=vectors)
        ids, lengths, dense = self._arguments.users(users)
        item_ids, scores = self._answer(device, len(ids), self._arguments.num_candidates("k", k))
        self._native.search(
            *(ids, lengths, dense, device.read("[retrieval] user", vectors)),
            device.read("[engine] item_ids", item_ids),
            device.read("[engine] scores", scores),
            device.stream,
        )
        return item_ids, scores

    def order(
        self,
        users: WireUsers,
        candidates: Any,
        candidate_scores: Any,
        graph_scores: Any,
        k: int | None = None,
    ) -> tuple[Any, Any]:
        """`Engine.order`, the same answer. Waits for it.

        Args:
            users: the batch.
            candidates: as in `look_up_candidates`.
            candidate_scores: as in `look_up_candidates`.
            graph_scores: float32 [batch, m] on the device.
            k: 1 to schema.max_candidates; None for schema.k.

        Returns:
            Item ids int64 and scores float32, [batch, k], on the device.

        Raises:
            InputError: naming the tensor and the position, or the score that is not finite.
        """
        device = self._call(
            candidates=candidates, candidate_scores=candidate_scores, graph_scores=graph_scores
        )
        ids, lengths, dense = self._arguments.users(users)
        item_ids, scores = self._answer(device, len(ids), self._arguments.k(k))
        self._native.order(
            *(ids, lengths, dense),
            device.read("[ranking] candidates", candidates),
            device.read("[ranking] candidate_scores", candidate_scores),
            device.read("[ranking] graph_scores", graph_scores),
            device.read("[engine] item_ids", item_ids),
            device.read("[engine] scores", scores),
            device.stream,
        )
        return item_ids, scores

    def _call(self, **arrays: Any) -> Device:
        """Where a call with these arrays runs: on this engine's device."""
        device = call_device("[engine]", **arrays)
        if device is None or device.index != self._device:
            found = "the CPU" if device is None else f"cuda:{device.index}"
            raise InputError(
                f"[engine] {next(iter(arrays))}: expected an array on cuda:{self._device}, "
                f"found one on {found}"
            )
        return device

    @staticmethod
    def _answer(device: Device, batch: int, k: int) -> tuple[Any, Any]:
        return device.empty((batch, k), np.int64), device.empty((batch, k), np.float32)

    def _graph_inputs(self, device: Device, dense: Any, **inputs: Any) -> dict[str, Any]:
        return inputs | ({"dense": device.upload(dense)} if self.schema.dense_features else {})
