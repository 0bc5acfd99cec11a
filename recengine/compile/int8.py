"""An fp32 ONNX graph with int8 matrix products, said by quantize and dequantize nodes.

Q/DQ stand on the inputs of the products with constant weights and nowhere else; sums, biases and
the other inputs of a shared tensor stay fp32. ONNX Runtime's quantiser puts them on every reader of
a tensor and scales batched weights along the wrong axis, so this is our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from recengine.compile.precision import MATRIX_PRODUCTS, checked, fold_constants
from recengine.errors import CompileError

_MAX_CODE = 127  # symmetric: TensorRT wants zero points of 0, and weights without -128


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product of an activation with a constant [in, out], or [out, in] transposed."""

    node: int
    activation: str
    weight: str
    out_axis: int


def products(graph: onnx.GraphProto) -> Iterator[Product]:
    """The matrix products that int8 can take, in the order of the nodes."""
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    constants = {tensor.name for tensor in graph.initializer}
    for at, node in enumerate(graph.node):
        if node.op_type not in MATRIX_PRODUCTS:
            continue
        activation, weight = node.input[:2]
        attributes = {item.name: item.i for item in node.attribute}
        # TensorRT keeps activations rows first; a transposed one would need another layout.
        if weight in matrices and activation not in constants and not attributes.get("transA"):
            yield Product(at, activation, weight, 0 if attributes.get("transB") else 1)


def quantize(model: onnx.ModelProto, largest: Mapping[str, float]) -> onnx.ModelProto:
    """The model with int8 matrix products.

    Weights have one scale per output channel, activations one per tensor; all are symmetric.

    Args:
        model: fp32; it is not changed.
        largest: by name, the largest magnitude that each product's activation takes.

    Returns:
        A checked model with the same inputs and outputs.

    Raises:
        CompileError: the range of an activation is missing or not finite, or the result is not a
            valid model.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    fold_constants(quantized.graph)
    writer = _Writer(quantized.graph, largest)
    for product in products(quantized.graph):
        node = quantized.graph.node[product.node]
        node.input[0] = writer.activation(product.activation)
        node.input[1] = writer.weight(product.weight, product.out_axis)
    writer.finish()
    return checked(quantized)


class _Writer:
    """Adds scales, codes and nodes to a graph, once per tensor."""

    def __init__(self, graph: onnx.GraphProto, largest: Mapping[str, float]) -> None:
        self._graph = graph
        self._largest = largest
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._added: set[str] = set()
        self._first: list[NodeProto] = []  # read constants alone
        self._behind: dict[str, list[NodeProto]] = {}  # by the tensor they read

    def activation(self, name: str) -> str:
        """Quantize, then dequantize; the name of the result."""
        result, scale, zero = f"{name}.dequantized", f"{name}.scale", f"{name}.zero"
        if result not in self._added:
            self._add(scale, np.float32(self._range(name) / _MAX_CODE))
            self._add(zero, np.int8(0))  # also says that the codes are signed
            self._behind[name] = [
                helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}.int8"]),
                helper.make_node("DequantizeLinear", [f"{name}.int8", scale], [result]),
            ]
            self._added.add(result)
        return result

    def weight(self, name: str, out_axis: int) -> str:
        """Codes and what dequantizes them along `out_axis`; the name of the result."""
        result = f"{name}.dequantized{out_axis}"
        if result not in self._added:
            values = numpy_helper.to_array(self._weights[name])
            scales = np.abs(values).max(axis=1 - out_axis, keepdims=True) / np.float32(_MAX_CODE)
            scales[scales == 0] = 1
            codes, scale = f"{name}.int8{out_axis}", f"{name}.scale{out_axis}"
            self._add(codes, np.rint(values / scales).astype(np.int8))
            self._add(scale, scales.reshape(-1))
            node = helper.make_node("DequantizeLinear", [codes, scale], [result], axis=out_axis)
            self._first.append(node)
            self._added.add(result)
        return result

    def finish(self) -> None:
        """Puts the nodes in order and drops weights that nothing reads any more."""
        nodes = list(self._first)
        for name in (value.name for value in self._graph.input):
            nodes += self._behind.get(name, ())
        for node in self._graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self._behind.get(name, ())
        read = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in read]
        del self._graph.node[:], self._graph.initializer[:], self._graph.value_info[:]
        self._graph.node.extend(nodes)
        self._graph.initializer.extend(kept)

    def _range(self, name: str) -> float:
        found = self._largest.get(name)
        if found is None or not np.isfinite(found):
            raise CompileError(
                f"[precision] {self._graph.name}: activation {name}: expected the largest "
                f"magnitude of its values, found {found}"
            )
        return found or 1.0

    def _add(self, name: str, values: npt.NDArray[np.generic] | np.generic) -> None:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
