"""Graphs with int8 products: where Q/DQ stand, and what they then compute."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import make_model, matrix

from recengine.compile.calibration import largest_activations
from recengine.compile.graph_runner import graph_runner
from recengine.compile.int8 import products, quantize
from recengine.errors import CompileError


def by_output(model):
    return {name: node for node in model.graph.node for name in node.output}


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def fake_quantized(values, scale):
    return np.clip(np.rint(values / scale), -128, 127) * scale


def test_codes_and_scales_are_symmetric_and_per_output_channel():
    model = make_model(
        ["h = MatMul x w", "y = Gemm h v b"], {"w": matrix(), "v": matrix(1), "b": matrix()[0]}
    )
    model.graph.node[1].attribute.append(helper.make_attribute("transB", 1))
    quantized = quantize(model, {"x": 2.0, "h": 5.0})
    nodes, values = by_output(quantized), constants(quantized)
    for product, weight, axis in (("h", matrix(), 1), ("y", matrix(1), 0)):
        node = nodes[product]
        dequantize = nodes[node.input[1]]
        assert dequantize.op_type == "DequantizeLinear"
        assert len(dequantize.input) == 2  # no zero point: weights are symmetric
        assert helper.get_node_attr_value(dequantize, "axis") == axis
        codes, scales = (values[name] for name in dequantize.input)
        assert (codes.dtype, scales.shape) == (np.int8, (4,))
        assert np.abs(codes).max(axis=1 - axis).tolist() == [127] * 4
        wide = scales[:, None] if axis == 0 else scales
        np.testing.assert_allclose(codes * wide, weight, atol=scales.max() / 2)
    assert values[nodes["y"].input[2]].dtype == np.float32  # the bias


def test_only_the_input_of_a_product_is_quantized_not_its_other_readers():
    nodes = ["h = Relu x", "p = MatMul h w", "q = MatMul h w", "s = Add p q", "y = Add s h"]
    quantized = quantize(make_model(nodes, {"w": matrix()}), {"h": 1.0})
    found = by_output(quantized)
    assert list(found["y"].input) == ["s", "h"]
    assert found["p"].input == found["q"].input
    quantizers = [node for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    assert [list(node.input) for node in quantizers] == [["h", "h.scale", "h.zero"]]
    zero = constants(quantized)["h.zero"]
    assert (zero.dtype, zero) == (np.int8, 0)
    assert "w" not in constants(quantized)


def test_products_of_activations_and_batched_weights_stay_fp32():
    model = make_model(["p = MatMul x x", "y = MatMul b p"], {"b": np.ones((2, 3, 4), np.float32)})
    assert list(products(model.graph)) == []


def test_quantized_products_compute_what_numpy_does():
    x, w, b = matrix(3), matrix(), matrix(1)[0]
    w[:, 2] = 0  # a channel without range
    model = make_model(["y = Gemm x w b"], {"w": w, "b": b})
    largest = largest_activations(model, [{"x": x}, {"x": x / 2}])
    assert largest == {"x": np.abs(x).max()}
    scales = np.abs(w).max(axis=0) / 127
    scales[2] = 1
    expected = fake_quantized(x, largest["x"] / 127) @ fake_quantized(w, scales) + b
    found = graph_runner(quantize(model, largest))({"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_inner_activations_are_measured(bundle):
    model = onnx.load(bundle / "ranker.onnx")
    rng = np.random.default_rng(0)
    inputs = {
        "sparse": rng.normal(size=(3, 12)),
        "dense": rng.normal(size=(3, 2)),
        "items": rng.normal(size=(3, 5, 12)),
        "candidate_scores": rng.normal(size=(3, 5)),
    }
    inputs = {name: values.astype(np.float32) for name, values in inputs.items()}
    features = np.concatenate([inputs["sparse"], inputs["dense"]], axis=1)
    weights = constants(model)
    hidden = np.maximum(features @ weights["w1"] + weights["b1"], 0)
    found = largest_activations(model, [inputs])
    expected = {
        "features": features.max(),
        "r1": hidden.max(),
        "items": np.abs(inputs["items"]).max(),
    }
    assert found["r1"] == pytest.approx(expected["r1"], rel=1e-5)
    assert found["items"] == expected["items"]
    assert found["features"] == np.abs(features).max()
    assert set(found) == set(expected)  # match = projected x user is a product of activations


def test_a_missing_range_is_refused_by_name():
    model = make_model(["y = MatMul x w"], {"w": matrix()})
    for largest in ({}, {"x": np.inf}):
        with pytest.raises(CompileError, match=r"test: activation x: expected the largest"):
            quantize(model, largest)


def test_inputs_and_outputs_stay_as_they_are(bundle):
    model = onnx.load(bundle / "tower.onnx")
    quantized = quantize(model, {"features": 3.0, "r1": 3.0})
    assert [*quantized.graph.input, *quantized.graph.output] == [
        *model.graph.input,
        *model.graph.output,
    ]
    assert quantized.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
