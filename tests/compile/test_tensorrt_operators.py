"""What graphs hold, in every precision, beside what TensorRT's ONNX parser says that it takes.

The list is that of 10.15, the newest that was to be had; plans are for 10.16 and 11. By their
release notes 11.0 to 11.5 take more operators and no fewer. What they do take, only tests marked
`tensorrt` see.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import make_model

from recengine.bundle import FidelityBounds, read_manifest
from recengine.compile.lowering import BOUNDS, lower_graphs
from recengine.compile.precision import _ELEMENTWISE, _MOVES, MATRIX_PRODUCTS

TABLE = json.loads((Path(__file__).parent / "tensorrt_operators.json").read_text())
OPERATORS = TABLE["operators"]
DEMO = Path(__file__).parents[2] / "artifacts" / "bundle"
NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}
# The input whose type is the operator's; of others it is the first.
VALUES_AT = {"Where": 1}


def unsupported(model):
    """Nodes with an operator or a type that the table does not have."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kinds[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        found = [NAMES[kinds[node.input[VALUES_AT.get(node.op_type, 0)]]]]
        if node.op_type == "Cast":
            found.append(NAMES[helper.get_node_attr_value(node, "to")])
        if not set(found) <= set(OPERATORS.get(node.op_type, ())):
            yield node.op_type, node.name, found


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("which", ["golden", "demo"])
def test_every_operator_and_type_of_the_graphs_is_supported(golden, which, precision):
    bundle = golden if which == "golden" else DEMO
    if not bundle.is_dir():
        pytest.skip("make demo was not run")
    loose = FidelityBounds(score_error=1.0, identical_top_k=0.5, metric_delta=0.5)
    models, _ = lower_graphs(bundle, read_manifest(bundle), precision, loose)
    for model in models.values():
        assert list(unsupported(model)) == []
        low, high = TABLE["opsets"]
        assert low <= model.opset_import[0].version <= high


def test_what_becomes_low_is_supported_low():
    for operator in MATRIX_PRODUCTS | _ELEMENTWISE | _MOVES:
        assert {"FP32", "FP16", "BF16"} <= set(OPERATORS[operator]), operator


def test_the_check_finds_operators_and_types_that_are_not_in_the_table():
    nodes = ["m = Mish x", "q = QuantizeLinear m s z", "r = Relu q", "y = DequantizeLinear r s z"]
    model = make_model(nodes, {"s": np.float32(0.1), "z": np.int8(0)})
    assert [(node, kinds) for node, _, kinds in unsupported(model)] == [
        ("Mish", ["FP32"]),
        ("Relu", ["INT8"]),
    ]
