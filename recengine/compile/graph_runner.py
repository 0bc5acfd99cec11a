"""Runs ONNX graphs on the CPU, with ONNX Runtime, for what compile compares and calibrates."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import NodeProto, TensorProto, helper

from recengine.compile.onnxruntime import open_session
from recengine.compile.staged_answer import Run
from recengine.engine import Floats, GraphInputs

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def graph_runner(model: onnx.ModelProto) -> Run:
    """Computes the model's only output; otherwise see `outputs_runner`."""
    run = outputs_runner(model)
    return lambda inputs: run(inputs)[model.graph.output[0].name]


def outputs_runner(model: onnx.ModelProto) -> Callable[[GraphInputs], GraphInputs]:
    """Computes all outputs by name, every node as it stands in the graph.

    A low-precision node computes in fp32 and rounds its result, as a GPU's matrix units do: the CPU
    has kernels for hardly any of them.

    Raises:
        CompileError: ONNX Runtime is not installed, or does not take the model.
    """
    # Not optimized: fused integer kernels do not round where the graph says.
    session = open_session(_widened(model).SerializeToString(), optimize=False)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: GraphInputs) -> dict[str, Floats]:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same values from fp32 nodes: low inputs are cast up, low outputs rounded by a Cast."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    low = {
        value.name: value.type.tensor_type.elem_type
        for value in graph.value_info
        if value.type.tensor_type.elem_type in _LOW
    }
    low |= {
        tensor.name: tensor.data_type for tensor in graph.initializer if tensor.data_type in _LOW
    }
    nodes: list[NodeProto] = []
    for node in graph.node:
        after: list[NodeProto] = []
        if node.op_type != "Cast":
            wide = f".{len(nodes)}"  # unique by the node's place
            for at, name in enumerate(node.input):
                if name in low:
                    node.input[at] = f"{name}{wide}.{at}"
                    nodes.append(
                        helper.make_node("Cast", [name], [node.input[at]], to=TensorProto.FLOAT)
                    )
            for at, name in enumerate(node.output):
                if name in low:
                    node.output[at] = name + wide
                    after.append(helper.make_node("Cast", [name + wide], [name], to=low[name]))
        nodes += [node, *after]
    widened = onnx.ModelProto()
    widened.CopyFrom(model)
    del widened.graph.node[:], widened.graph.value_info[:]
    widened.graph.node.extend(nodes)
    return widened
