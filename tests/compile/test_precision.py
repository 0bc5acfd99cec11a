"""Graphs in fp16 and bf16: which nodes become low, and what they then compute."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_graphs import make_model, matrix

from recengine.compile.graph_runner import graph_runner
from recengine.compile.precision import lower
from recengine.errors import CompileError

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
precisions = pytest.mark.parametrize("precision", LOW)


def types(model):
    """The element type of every tensor."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.output]}
    return found | {tensor.name: tensor.data_type for tensor in graph.initializer}


@precisions
def test_inputs_and_outputs_stay_fp32_with_casts_at_the_border(bundle, precision):
    for name in ("tower", "ranker"):
        model = onnx.load(bundle / f"{name}.onnx")
        low = lower(model, precision)
        assert [*low.graph.input, *low.graph.output] == [*model.graph.input, *model.graph.output]
        kinds = types(low)
        for node in low.graph.node:
            if node.op_type in ("Gemm", "MatMul"):
                assert kinds[node.output[0]] == LOW[precision]
        casts = [node.input[0] for node in low.graph.node if node.op_type == "Cast"]
        assert len(casts) == len(set(casts))  # once per tensor and direction


@precisions
def test_what_follows_the_last_product_stays_fp32(precision):
    nodes = ["h = MatMul x w", "r = Relu h", "m = MatMul r w", "s = Add m b", "y = Mul s x"]
    low = lower(make_model(nodes, {"w": matrix(), "b": matrix()[0]}), precision)
    kinds = types(low)
    assert kinds["y"] == kinds["s"] == kinds["m"] == kinds["b"] == TensorProto.FLOAT
    assert kinds[f"r.{precision}"] == LOW[precision]
    assert "r" not in kinds


@pytest.mark.parametrize(
    "operator", ["Softmax", "Exp", "Sigmoid", "Tanh", "Sqrt", "Reciprocal", "Erf"]
)
def test_operators_that_lose_much_stay_fp32(operator):
    nodes = ["h = MatMul x w", f"s = {operator} h", "y = MatMul s w"]
    kinds = types(lower(make_model(nodes, {"w": matrix()}), "fp16"))
    assert kinds["s"] == TensorProto.FLOAT
    assert kinds["s.fp16"] == kinds["y.fp16"] == TensorProto.FLOAT16


def test_division_and_reduction_stay_fp32():
    nodes = ["h = MatMul x w", "s = ReduceSum h axes", "d = Div h s", "y = MatMul d w"]
    constants = {"w": matrix(), "axes": np.array([1])}
    kinds = types(lower(make_model(nodes, constants), "fp16"))
    assert kinds["s"] == kinds["d"] == TensorProto.FLOAT


def test_moved_values_keep_their_type_and_are_cast_once():
    nodes = ["s = Softmax x", "t = Transpose s", "u = Transpose t", "y = MatMul u w"]
    low = lower(make_model(nodes, {"w": matrix()}), "fp16")
    assert types(low)["u"] == TensorProto.FLOAT
    assert [node.input[0] for node in low.graph.node if node.op_type == "Cast"] == ["u", "y.fp16"]


@pytest.mark.parametrize(("value", "kept"), [(7e4, "fp16"), (1e-9, "fp16"), (6e4, None)])
def test_a_node_whose_constant_does_not_fit_stays_fp32(value, kept):
    nodes = ["h = Max x c", "y = MatMul h w"]
    model = make_model(nodes, {"c": np.float32(value), "w": matrix()})
    for precision in LOW:
        kinds = types(lower(model, precision))
        assert ("h" in kinds) == (precision == kept)
    assert {tensor.name for tensor in model.graph.initializer} == {"c", "w"}  # not changed


def test_a_constant_that_both_types_read_is_there_twice():
    nodes = ["h = MatMul x w", "e = Exp w", "p = MatMul h e", "y = MatMul p w"]
    kinds = types(lower(make_model(nodes, {"w": matrix()}), "bf16"))
    assert (kinds["w"], kinds["w.bf16"]) == (TensorProto.FLOAT, TensorProto.BFLOAT16)


def test_constant_nodes_become_low_initializers():
    model = make_model(["h = MatMul x w", "y = MatMul h w"])
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(matrix(), "v"))
    model.graph.node.insert(0, constant)
    low = lower(model, "fp16")
    assert [tensor.name for tensor in low.graph.initializer] == ["w.fp16"]
    assert {node.op_type for node in low.graph.node} == {"Cast", "MatMul"}


@precisions
def test_the_runner_rounds_where_the_graph_does(precision):
    """The oracle is NumPy, rounding after every node."""
    nodes = ["h = MatMul x w", "a = Add h b", "r = Relu a", "y = MatMul r v"]
    constants = {"w": matrix(), "b": matrix(1)[0], "v": matrix(2)}
    x = matrix(3)
    low = {k: v.astype(DTYPES[precision]).astype(np.float32) for k, v in constants.items()}

    def rounded(values):
        return values.astype(DTYPES[precision]).astype(np.float32)

    hidden = rounded(rounded(rounded(x) @ low["w"]) + low["b"])
    expected = rounded(np.maximum(hidden, 0) @ low["v"])
    model = lower(make_model(nodes, constants), precision)
    np.testing.assert_array_equal(graph_runner(model)({"x": x}), expected)
    assert not np.array_equal(graph_runner(make_model(nodes, constants))({"x": x}), expected)
    reference = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(expected, reference, rtol=2e-2, atol=2e-2)


def test_an_operator_without_a_low_form_at_its_opset_is_refused():
    model = make_model(["h = MatMul x w", "y = MatMul h w"], {"w": matrix()})
    model.opset_import[0].version = 12  # bf16 came with 13
    with pytest.raises(CompileError, match=r"\[precision\] test: .*bfloat16"):
        lower(model, "bf16")
