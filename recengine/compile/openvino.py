"""ONNX graphs to OpenVINO IR, the format the CPU engine runs."""

from __future__ import annotations

from pathlib import Path

import openvino

from recengine.bundle import Graph, GraphTensor
from recengine.errors import CompileError


def convert(source: Path, graph: Graph, destination: Path, name: str) -> Graph:
    """Writes `name`.xml and `name`.bin of an ONNX graph, weights in fp32.

    Args:
        source: directory that holds `graph.file`.
        graph: what the manifest says of the graph.
        destination: directory to write to.
        name: stem of the two files.

    Returns:
        The manifest entry of the compiled graph.

    Raises:
        CompileError: OpenVINO cannot read the graph, or its inputs and outputs are not those of
            the manifest; the message names the tensor.
    """
    try:
        model = openvino.Core().read_model(source / graph.file)
    except RuntimeError as error:
        raise CompileError(f"[compile] {source / graph.file}: {error}") from None
    _check("input", graph.inputs, model.inputs, graph.file)
    _check("output", graph.outputs, model.outputs, graph.file)
    openvino.save_model(model, destination / f"{name}.xml", compress_to_fp16=False)
    return graph.model_copy(
        update={"file": f"{name}.xml", "weights": f"{name}.bin", "format": "openvino"}
    )


def _check(kind: str, expected: list[GraphTensor], ports: list[openvino.Output], file: str) -> None:
    """Every tensor of the manifest is in the graph, fp32, with the same static dims."""
    found = {port.get_any_name(): port for port in ports}
    names = [tensor.name for tensor in expected]
    if sorted(names) != sorted(found):
        raise CompileError(f"[compile] {file}: expected {kind}s {names}, found {list(found)}")
    for tensor in expected:
        port = found[tensor.name]
        element = port.get_element_type()
        if element != openvino.Type.f32:
            raise CompileError(
                f"[compile] {file}: {kind} {tensor.name}: expected f32, found {element}"
            )
        dims = [-1 if isinstance(dim, str) else dim for dim in tensor.dims]
        shape = [dim.get_length() if dim.is_static else -1 for dim in port.get_partial_shape()]
        if dims != shape:
            raise CompileError(
                f"[compile] {file}: {kind} {tensor.name}: expected {dims}, found {shape}"
            )
