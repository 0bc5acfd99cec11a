"""What stages hand to the dense graphs and take from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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


def require_tensors(
    file: str,
    kind: str,
    expected: Sequence[GraphTensor],
    found: Mapping[str, tuple[str, list[int]]],
    fp32: str,
) -> None:
    """Refuses a graph file whose tensors are not those of the manifest, all of them fp32.

    Args:
        file: what the message calls the graph.
        kind: "input" or "output".
        expected: those of the manifest.
        found: element type and dims of those of the graph, -1 where a dim is open.
        fp32: how the graph's format calls fp32.

    Raises:
        CompileError: naming the tensor.
    """
    names = [tensor.name for tensor in expected]
    if sorted(names) != sorted(found):
        raise CompileError(f"[compile] {file}: expected {kind}s {names}, found {list(found)}")
    for tensor in expected:
        element, shape = found[tensor.name]
        what = f"[compile] {file}: {kind} {tensor.name}"
        if element != fp32:
            raise CompileError(f"{what}: expected {fp32}, found {element}")
        dims = [-1 if isinstance(dim, str) else dim for dim in tensor.dims]
        if dims != shape:
            raise CompileError(f"{what}: expected {dims}, found {shape}")


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
