"""Runs a TensorRT plan in this process: the fidelity gate asks what will be served."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from recengine._cuda_driver import Driver
from recengine.compile.plan_builder import make_log, reason
from recengine.engine import Floats, GraphInputs
from recengine.errors import CompileError

_DEFAULT_STREAM = 0


class PlanRunner:
    """A plan with one output, on the GPU that TensorRT takes by default.

    Args:
        trt: the module `tensorrt`.
        path: the plan. It was built here: a version-compatible one brings code, which is run.

    Raises:
        CompileError: TensorRT refuses the plan.
        DeviceError: there is no GPU.
    """

    def __init__(self, trt: Any, path: Path) -> None:
        self._name = path
        self._driver = Driver()
        self._driver.use_primary_context()
        self._log = make_log(trt)
        self._runtime = trt.Runtime(self._log)
        self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise CompileError(f"[tensorrt] {path}: {reason(self._log)}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise CompileError(f"[tensorrt] {path}: {reason(self._log)}")
        names = [self._engine.get_tensor_name(at) for at in range(self._engine.num_io_tensors)]
        mode = trt.TensorIOMode.OUTPUT
        (self._output,) = (n for n in names if self._engine.get_tensor_mode(n) == mode)

    def __call__(self, inputs: GraphInputs) -> Floats:
        """The graph's output, fp32; sizes may be any that the plan was built for.

        Raises:
            CompileError: TensorRT refuses the sizes or fails.
            DeviceError: there is no memory on the GPU.
        """
        with ExitStack() as memory:
            for name, values in inputs.items():
                address = memory.enter_context(self._driver.buffer(values.nbytes))
                self._driver.upload(address, values)
                self._require(self._context.set_input_shape(name, values.shape))
                self._require(self._context.set_tensor_address(name, address))
            output = np.empty(tuple(self._context.get_tensor_shape(self._output)), np.float32)
            address = memory.enter_context(self._driver.buffer(output.nbytes))
            self._require(self._context.set_tensor_address(self._output, address))
            self._require(self._context.execute_async_v3(_DEFAULT_STREAM))
            self._driver.download(address, output)
        return output

    def _require(self, done: bool) -> None:
        if not done:
            raise CompileError(f"[tensorrt] {self._name}: {reason(self._log)}")
