"""An fp32 ONNX graph in fp16 or bf16, typed node by node as a strongly typed network takes it.

Inputs and outputs stay fp32. Matrix products and what is cheap around them become low; whatever is
not known to be safe stays fp32: norms, reductions, softmax, exponentials, divisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import ml_dtypes
import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from recengine.errors import CompileError

Low = Literal["fp16", "bf16"]

MATRIX_PRODUCTS = frozenset({"MatMul", "Gemm"})
_ELEMENTWISE = frozenset(
    {"Add", "Clip", "LeakyRelu", "Max", "Min", "Mul", "Neg", "PRelu", "Relu", "Sub", "Where"}
)
_MOVES = frozenset(
    {
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_READ_NO_VALUES = frozenset({"Shape", "Size"})

_DTYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def lower(model: onnx.ModelProto, precision: Low) -> onnx.ModelProto:
    """The model with its matrix products, and what stands between them, in fp16 or bf16.

    The sums behind the last matrix product stay fp32: they are small, and in fp16 the scores of
    neighbours in a ranking would fall together.

    Args:
        model: fp32, without control flow; it is not changed.
        precision: the low type.

    Returns:
        A checked model with the same inputs and outputs.

    Raises:
        CompileError: the result is not a valid model; the message says what onnx found.
    """
    if precision not in get_args(Low):
        raise CompileError(f"[precision] expected {get_args(Low)}, found {precision!r}")
    return checked(_Lowering(model, precision).run())


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, once onnx accepts every node's types and shapes.

    Raises:
        CompileError: it does not.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompileError(f"[precision] {model.graph.name}: {error}") from None
    return model


def fold_constants(graph: onnx.GraphProto) -> None:
    """Makes initializers of Constant nodes that hold a tensor."""
    kept = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            graph.initializer.append(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


class _Lowering:
    """One pass over the nodes. Tensor `x` is fp32, `x.fp16` (or `x.bf16`) its low form."""

    def __init__(self, model: onnx.ModelProto, precision: Low) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        fold_constants(self._graph)
        self._suffix = f".{precision}"
        self._type: int = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
        self._dtype = _DTYPES[precision]
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._floats = _float_tensors(self._model)
        self._computed: set[str] = set()  # tensors that some node gives
        self._low: set[str] = set()  # those of them that are computed low
        self._nodes: list[NodeProto] = []
        self._written: set[str] = set()  # what the nodes and initializers so far give

    def run(self) -> onnx.ModelProto:
        graph = self._graph
        tail = _tail(graph)
        for at, node in enumerate(graph.node):
            self._rewrite(node, low=at not in tail and self._is_low(node))
        for output in graph.output:
            self._read(output.name, low=False)
        nodes = self._nodes
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self._model

    def _is_low(self, node: NodeProto) -> bool:
        if self._floats.isdisjoint(node.output) or not self._constants_fit(node):
            return False
        if node.op_type in _MOVES:
            # What only moves values changes no type; inputs are cast on their way in.
            computed = self._floats.intersection(node.input) & self._computed
            return computed <= self._low
        return node.op_type in MATRIX_PRODUCTS or node.op_type in _ELEMENTWISE

    def _constants_fit(self, node: NodeProto) -> bool:
        """Whether no constant becomes infinite, and no lone one (an epsilon) zero."""
        for name in self._floats.intersection(node.input) & self._constants.keys():
            array = numpy_helper.to_array(self._constants[name])
            with np.errstate(over="ignore", under="ignore"):
                low = array.astype(self._dtype)
            vanished = array.size == 1 and bool(np.any(array)) and not np.any(low)
            if vanished or not np.isfinite(low.astype(np.float32)).all():
                return False
        return True

    def _rewrite(self, node: NodeProto, low: bool) -> None:
        floats = self._floats
        for at, name in enumerate(node.input):
            if name in floats:
                as_it_is = node.op_type in _READ_NO_VALUES and name in self._low
                node.input[at] = self._read(name, low or as_it_is)
        self._computed.update(node.output)
        for at, name in enumerate(node.output):
            if low and name in floats:
                self._low.add(name)
                node.output[at] = name + self._suffix
        self._written.update(node.output)
        self._nodes.append(node)

    def _read(self, name: str, low: bool) -> str:
        """The tensor's name in the wanted type; where it has only the other one, casts it."""
        wanted = name + self._suffix if low else name
        if low == (name in self._low) or wanted in self._written:
            return wanted
        if low and name in self._constants:
            values = numpy_helper.to_array(self._constants[name]).astype(self._dtype)
            self._graph.initializer.append(numpy_helper.from_array(values, wanted))
        else:
            source = name if low else name + self._suffix
            kind = self._type if low else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [source], [wanted], to=kind))
        self._written.add(wanted)
        return wanted


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    floats = {value.name for value in values if _is_float(value.type.tensor_type.elem_type)}
    return floats | {tensor.name for tensor in graph.initializer if _is_float(tensor.data_type)}


def _is_float(kind: int) -> bool:
    return kind == int(TensorProto.FLOAT)


def _tail(graph: onnx.GraphProto) -> set[int]:
    """Positions of the nodes behind the last matrix products: sums and moves up to the outputs."""
    readers: dict[str, list[int]] = {}
    for at, node in enumerate(graph.node):
        for name in node.input:
            readers.setdefault(name, []).append(at)
    outputs = {output.name for output in graph.output}
    tail: set[int] = set()

    def ends(names: Iterable[str]) -> bool:
        return all(
            (name in readers or name in outputs) and tail.issuperset(readers.get(name, ()))
            for name in names
        )

    for at, node in reversed(list(enumerate(graph.node))):
        if node.op_type in _ELEMENTWISE | _MOVES and ends(node.output):
            tail.add(at)
    return tail
