"""How a plan is run: calls beside the real bindings' signatures, memory in a made-up driver."""

import ctypes

import numpy as np
import pytest
from cuda_stub import build_driver
from strict_tensorrt import PLAN

from recengine import _cuda_driver
from recengine.compile.plan_runner import PlanRunner
from recengine.errors import CompileError


@pytest.fixture
def device(trt, monkeypatch, tmp_path):
    """A GPU that executes any plan, of one input and one output: it doubles what it reads."""
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", build_driver(tmp_path / "libcuda.so.1"))
    addresses = {}

    def execute(_, stream_handle):
        x, y = (ctypes.cast(addresses[name], ctypes.POINTER(ctypes.c_float)) for name in "xy")
        for at in range(12):
            y[at] = 2 * x[at]
        return True

    modes = trt.TensorIOMode
    trt.answers |= {
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.get_tensor_name": lambda _, index: "xy"[index],
        "ICudaEngine.get_tensor_mode": lambda _, name: modes.INPUT if name == "x" else modes.OUTPUT,
        "IExecutionContext.get_tensor_shape": (3, 4),
        "IExecutionContext.set_tensor_address": lambda _, name, memory: bool(
            addresses.update({name: memory}) or True
        ),
        "IExecutionContext.execute_async_v3": execute,
    }


def test_a_plan_is_run_on_the_device(trt, device, tmp_path):
    (tmp_path / "model.plan").write_bytes(PLAN)
    run = PlanRunner(trt, tmp_path / "model.plan")
    assert trt.called("Runtime.deserialize_cuda_engine") == [{"serialized_engine": PLAN}]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(run({"x": x}), 2 * x)
    assert trt.called("IExecutionContext.set_input_shape") == [{"name": "x", "shape": (3, 4)}]


def test_sizes_that_a_plan_was_not_built_for_are_refused(trt, device, tmp_path):
    (tmp_path / "model.plan").write_bytes(PLAN)
    run = PlanRunner(trt, tmp_path / "model.plan")
    trt.answers["IExecutionContext.set_input_shape"] = False
    with pytest.raises(CompileError, match=r"model\.plan: no reason given"):
        run({"x": np.zeros((99, 4), np.float32)})


@pytest.mark.parametrize(
    "member", ["Runtime.deserialize_cuda_engine", "ICudaEngine.create_execution_context"]
)
def test_a_plan_that_tensorrt_refuses_is_named(trt, device, tmp_path, member):
    (tmp_path / "model.plan").write_bytes(b"not a plan")
    trt.answers[member] = None
    with pytest.raises(CompileError, match=r"\[tensorrt\] .*model\.plan"):
        PlanRunner(trt, tmp_path / "model.plan")
