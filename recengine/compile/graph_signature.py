"""What stages hand to the dense graphs and take from them."""

from __future__ import annotations

from collections.abc import Iterable

from recengine.bundle import Bag, GraphTensor, Manifest
from recengine.compile.repository import Tensors, stages
from recengine.errors import CompileError

BATCH_AXIS = "batch"
"""The dynamic axis that every tensor of a graph begins with."""


def dims(tensors: Iterable[GraphTensor]) -> dict[str, list[int]]:
    """Those of a graph's tensors; a named dim is open."""
    return {
        tensor.name: [-1 if isinstance(dim, str) else dim for dim in tensor.dims[1:]]
        for tensor in tensors
    }


def require_signatures(manifest: Manifest) -> None:
    """Refuses a bundle whose graphs do not fit its tables and index.

    Raises:
        CompileError: naming the graph and the tensor.
    """
    retrieval, ranking = stages(manifest)
    dense = {"dense": [len(manifest.dense_features)]} if manifest.dense_features else {}
    tower = {"sparse": [_width(manifest, retrieval.bags)], **dense}
    items = [-1, manifest.tables[ranking.item_table].dim]
    ranker = {
        "sparse": [_width(manifest, ranking.bags)],
        **dense,
        "items": items,
        "candidate_scores": [-1],
    }
    _require(manifest, retrieval.graph, tower, {"user": [retrieval.index.dim]})
    _require(manifest, ranking.graph, ranker, {"scores": [-1]})


def _width(manifest: Manifest, bags: Iterable[Bag]) -> int:
    return sum(manifest.tables[bag.table].dim for bag in bags)


def _require(manifest: Manifest, name: str, inputs: Tensors, outputs: Tensors) -> None:
    graph = manifest.graphs[name]
    for kind, expected, tensors in (
        ("input", inputs, graph.inputs),
        ("output", outputs, graph.outputs),
    ):
        for batched in tensors:
            if not batched.dims or batched.dims[0] != BATCH_AXIS:
                raise CompileError(
                    f"[compile] graph {name}: {kind} {batched.name}: expected the axis "
                    f"{BATCH_AXIS!r} first, found {batched.dims}"
                )
        found = dims(tensors)
        for tensor in sorted(expected.keys() | found.keys()):
            want, have = expected.get(tensor, "none"), found.get(tensor, "none")
            if want != have:
                raise CompileError(
                    f"[compile] graph {name}: {kind} {tensor}: expected dims {want} after the "
                    f"batch, found {have}"
                )
