"""ONNX graphs to OpenVINO IR, the format the CPU engine runs."""

from __future__ import annotations

from pathlib import Path

import openvino

from recengine.bundle import Graph
from recengine.compile.graph_signature import require_tensors
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
    require_tensors(graph.file, "input", graph.inputs, _found(model.inputs), fp32="f32")
    require_tensors(graph.file, "output", graph.outputs, _found(model.outputs), fp32="f32")
    openvino.save_model(model, destination / f"{name}.xml", compress_to_fp16=False)
    return graph.model_copy(
        update={"file": f"{name}.xml", "weights": f"{name}.bin", "format": "openvino"}
    )


def _found(ports: list[openvino.Output]) -> dict[str, tuple[str, list[int]]]:
    """Element type and dims of tensors by name; -1 where a dim is open."""
    return {
        port.get_any_name(): (
            port.get_element_type().get_type_name(),
            [dim.get_length() if dim.is_static else -1 for dim in port.get_partial_shape()],
        )
        for port in ports
    }
