"""What stages hand to the dense graphs and take from them."""

from __future__ import annotations

from collections.abc import Iterable

from recengine.bundle import Bag, GraphTensor, Manifest
from recengine.compile.repository import stages
from recengine.errors import CompileError

Dims = dict[str, list[int]]
"""Dims of tensors by name, without the batch; -1 where a request decides."""


def dims(tensors: Iterable[GraphTensor]) -> Dims:
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


def _require(manifest: Manifest, name: str, inputs: Dims, outputs: Dims) -> None:
    graph = manifest.graphs[name]
    for kind, expected, tensors in (
        ("input", inputs, graph.inputs),
        ("output", outputs, graph.outputs),
    ):
        found = dims(tensors)
        for tensor in sorted(expected.keys() | found.keys()):
            want, have = expected.get(tensor, "none"), found.get(tensor, "none")
            if want != have:
                raise CompileError(
                    f"[compile] graph {name}: {kind} {tensor}: expected dims {want} after the "
                    f"batch, found {have}"
                )
