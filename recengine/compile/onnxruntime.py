"""ONNX graphs as Triton's stock ONNX Runtime backend loads them: as they are, once checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from recengine._files import sync
from recengine.bundle import GraphTensor, Manifest
from recengine.errors import CompileError

if TYPE_CHECKING:
    from recengine.compile.staged_answer import Run
    from recengine.engine import Floats, GraphInputs

_FILE = "model.onnx"


def convert(bundle: Path, manifest: Manifest, name: str, destination: Path) -> None:
    """Copies an ONNX graph to `destination`/model.onnx, weights of their own file beside it.

    Args:
        bundle: directory that holds the graph.
        manifest: the bundle's.
        name: of the graph.
        destination: directory to write to.

    Raises:
        CompileError: the file is not an ONNX graph, or its inputs and outputs are not those of the
            manifest; the message names the tensor.
    """
    entry = manifest.graphs[name]
    source = bundle / entry.file
    try:
        graph = onnx.load(source, load_external_data=False).graph
    except Exception as error:  # protobuf's and onnx's own have no common class
        raise CompileError(f"[compile] {source}: not an ONNX graph: {error}") from None
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    _check("input", entry.inputs, inputs, entry.file)
    _check("output", entry.outputs, graph.output, entry.file)
    copies = {entry.file: _FILE}
    if entry.weights is not None:  # ONNX names them relative to the graph
        copies[entry.weights] = os.path.relpath(entry.weights, Path(entry.file).parent)
    for file, copy in copies.items():
        (destination / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / file, destination / copy)
        sync(destination / copy)
    sync(destination)


def load(directory: Path) -> Run:
    """The graph in ONNX Runtime, on one thread.

    Raises:
        CompileError: ONNX Runtime is not installed, or refuses the graph.
    """
    session = open_session(directory / _FILE, threads=1)

    def run(inputs: GraphInputs) -> Floats:
        output: Floats
        (output,) = session.run(None, inputs)
        return output

    return run


def open_session(model: Path | bytes, *, threads: int = 0, optimize: bool = True) -> Any:
    """ONNX Runtime on the CPU.

    Args:
        model: a file, or the content of one.
        threads: how many one run may use; 0 for every core.
        optimize: False computes every node as it stands in the graph.

    Raises:
        CompileError: ONNX Runtime is not installed, or refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError:
        raise CompileError(
            "[compile] onnxruntime: the fidelity gate runs graphs in ONNX Runtime, which is not "
            "installed: pip install 'recengine[onnxruntime]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own have no common class
        name = model if isinstance(model, Path) else "graph"
        raise CompileError(f"[compile] {name}: ONNX Runtime: {error}") from None


def _check(
    kind: str, expected: list[GraphTensor], found: list[onnx.ValueInfoProto], file: str
) -> None:
    """Every tensor of the manifest is in the graph, fp32, with the same static dims."""
    values = {value.name: value.type.tensor_type for value in found}
    names = [tensor.name for tensor in expected]
    if sorted(names) != sorted(values):
        raise CompileError(f"[compile] {file}: expected {kind}s {names}, found {list(values)}")
    for tensor in expected:
        value = values[tensor.name]
        what = f"[compile] {file}: {kind} {tensor.name}"
        if value.elem_type != onnx.TensorProto.FLOAT:
            element = onnx.TensorProto.DataType.Name(value.elem_type)
            raise CompileError(f"{what}: expected FLOAT, found {element}")
        dims = [-1 if isinstance(dim, str) else dim for dim in tensor.dims]
        shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.shape.dim]
        if dims != shape:
            raise CompileError(f"{what}: expected {dims}, found {shape}")
