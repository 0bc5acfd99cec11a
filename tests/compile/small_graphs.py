"""Small ONNX graphs for the tests of what rewrites them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def make_model(nodes, constants=None, outputs=("y",)):
    """A graph over x [n, 4] of nodes like "y = Relu x"."""

    def node(text):
        name, rest = text.split(" = ")
        operator, *inputs = rest.split()
        return helper.make_node(operator, inputs, [name])

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None])

    graph = helper.make_graph(
        [node(text) for text in nodes],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [value(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def matrix(seed=0):
    return np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)
