"""ONNX graphs as Triton's stock ONNX Runtime backend loads them: as they are, once checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from recengine._files import sync
from recengine.bundle import Manifest
from recengine.compile.graph_signature import require_tensors
from recengine.errors import CompileError
from recengine.graph_files import write_record

if TYPE_CHECKING:
    from recengine.compile.staged_answer import Run
    from recengine.engine import Floats, GraphInputs

_FILE = "model.onnx"


def convert(bundle: Path, manifest: Manifest, name: str, destination: Path) -> None:
    """Copies an ONNX graph to `destination`/model.onnx, weights of their own file beside it.

    graph.json has their checksums.

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
    require_tensors(entry.file, "input", entry.inputs, _found(inputs), fp32="FLOAT")
    require_tensors(entry.file, "output", entry.outputs, _found(graph.output), fp32="FLOAT")
    copies = {entry.file: _FILE}
    if entry.weights is not None:  # ONNX names them relative to the graph
        copies[entry.weights] = os.path.relpath(entry.weights, Path(entry.file).parent)
    for file, copy in copies.items():
        (destination / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / file, destination / copy)
        sync(destination / copy)
    write_record(destination, copies.values())
    sync(destination)


def load(directory: Path) -> Run:
    """The graph in ONNX Runtime, on one thread.

    Raises:
        CompileError: ONNX Runtime is not installed, or refuses the graph. What is returned raises
            it where the graph fails.
    """
    session = open_session(directory / _FILE, threads=1)

    def run(inputs: GraphInputs) -> Floats:
        output: Floats
        try:
            (output,) = session.run(None, inputs)
        except Exception as error:  # its own have no common class
            raise CompileError(f"[compile] graph {directory.name}: ONNX Runtime: {error}") from None
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


def _found(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[str, list[int]]]:
    """Element type and dims of tensors by name; -1 where a dim is open."""
    tensors = {value.name: value.type.tensor_type for value in values}
    return {
        name: (
            onnx.TensorProto.DataType.Name(tensor.elem_type),
            [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim],
        )
        for name, tensor in tensors.items()
    }
