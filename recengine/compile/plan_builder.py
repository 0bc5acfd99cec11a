"""TensorRT's builder, from an ONNX model to a plan: one path for TensorRT 10 and 11."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx

from recengine.bundle import Graph, GraphTensor
from recengine.compile.timing_cache import read_timing_cache, write_timing_cache
from recengine.errors import CompileError
from recengine.plans import HardwareCompatibility, SizeRange

Axes = Mapping[str, SizeRange]
Progress = Callable[[str], None]


class PlanBuilder:
    """One strongly typed network on its way to a plan.

    Args:
        trt: the module `tensorrt`.
        name: what messages call the graph.
        progress: is told what the builder does, a line at a time.
    """

    def __init__(self, trt: Any, name: str, progress: Progress | None = None) -> None:
        self._trt = trt
        self._name = name
        self._log = make_log(trt)
        self._builder = trt.Builder(self._log)
        # TensorRT 11 knows only strongly typed networks and ignores the flag.
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(typed)
        self._config = self._builder.create_builder_config()
        self._monitor = _make_monitor(trt, name, progress)
        self._config.progress_monitor = self._monitor

    def parse(self, model: onnx.ModelProto, entry: Graph) -> None:
        """Reads the model.

        Raises:
            CompileError: the parser refuses a node, or inputs and outputs are not the manifest's.
        """
        parser = self._trt.OnnxParser(self._network, self._log)
        if not parser.parse(model.SerializeToString()):
            errors = [parser.get_error(at) for at in range(parser.num_errors)]
            where = "; ".join(
                f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors
            )
            raise CompileError(f"[tensorrt] {self._name}: {where}")
        network = self._network
        self._expect("input", entry.inputs, network.num_inputs, network.get_input)
        self._expect("output", entry.outputs, network.num_outputs, network.get_output)

    def limit(self, workspace_bytes: int, optimization_level: int) -> None:
        """Sets what the build and the plan may take."""
        self._config.set_memory_pool_limit(self._trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        self._config.builder_optimization_level = optimization_level

    def allow(
        self, *, tf32: bool, version_compatible: bool, hardware_compatibility: HardwareCompatibility
    ) -> None:
        """Sets how the plan may compute, and where it may run."""
        flag = self._trt.BuilderFlag
        if tf32:
            self._config.set_flag(flag.TF32)
        else:
            self._config.clear_flag(flag.TF32)  # TensorRT's default is on
        if version_compatible:
            self._config.set_flag(flag.VERSION_COMPATIBLE)
        level = getattr(self._trt.HardwareCompatibilityLevel, hardware_compatibility.upper())
        self._config.hardware_compatibility_level = level

    def set_sizes(self, inputs: list[GraphTensor], axes: Axes) -> None:
        """Sets the sizes that the plan takes.

        Raises:
            CompileError: TensorRT makes no profile of them.
        """
        profile = self._builder.create_optimization_profile()
        for tensor in inputs:
            shapes = [_shape(tensor, axes, size) for size in ("min", "opt", "max")]
            profile.set_shape(tensor.name, *shapes)
        if self._config.add_optimization_profile(profile) < 0:
            raise CompileError(f"[tensorrt] {self._name}: sizes {dict(axes)}: {reason(self._log)}")

    def run(self, cache: Path) -> bytes:
        """Builds the plan with the timings of earlier builds, and keeps those of this one.

        Raises:
            CompileError: TensorRT cannot build it; the message is what it logged.
        """
        self._use_timings(read_timing_cache(cache))
        plan = self._builder.build_serialized_network(self._network, self._config)
        if self._monitor.cancelled:
            raise KeyboardInterrupt
        if plan is None:
            raise CompileError(f"[tensorrt] {self._name}: {reason(self._log)}")
        write_timing_cache(cache, bytes(self._config.get_timing_cache().serialize()))
        return bytes(plan)

    def _use_timings(self, stored: bytes) -> None:
        """Takes a stored cache; TensorRT refuses one of another version or GPU, then a new one."""
        for content in (stored, b""):
            timings = self._config.create_timing_cache(content)
            if timings is not None and self._config.set_timing_cache(timings, False):
                return
        raise CompileError(f"[tensorrt] {self._name}: timing cache: {reason(self._log)}")

    def _expect(
        self, kind: str, expected: list[GraphTensor], count: int, get: Callable[[int], Any]
    ) -> None:
        """Every tensor of the manifest is in the network, fp32, with the same static dims."""
        found = {tensor.name: tensor for tensor in map(get, range(count))}
        names = [tensor.name for tensor in expected]
        if sorted(names) != sorted(found):
            raise CompileError(
                f"[tensorrt] {self._name}: expected {kind}s {names}, found {list(found)}"
            )
        for tensor in expected:
            dims = [-1 if isinstance(dim, str) else dim for dim in tensor.dims]
            has = found[tensor.name]
            if has.dtype != self._trt.DataType.FLOAT or list(has.shape) != dims:
                raise CompileError(
                    f"[tensorrt] {self._name}: {kind} {tensor.name}: expected FLOAT {dims}, "
                    f"found {has.dtype} {list(has.shape)}"
                )


def _shape(tensor: GraphTensor, axes: Axes, size: str) -> tuple[int, ...]:
    return tuple(getattr(axes[dim], size) if isinstance(dim, str) else dim for dim in tensor.dims)


def make_log(trt: Any) -> Any:
    """A logger that keeps errors: TensorRT says there why a call returned nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            levels = trt.ILogger.Severity
            if severity in (levels.ERROR, levels.INTERNAL_ERROR):
                self.errors.append(msg)

    return Log()


def reason(log: Any) -> str:
    """The errors that a logger of `make_log` has kept."""
    return "; ".join(log.errors) or "no reason given"


def _make_monitor(trt: Any, name: str, progress: Progress | None) -> Any:
    """Tells of the builder's outer phases; an interrupt from the keyboard cancels the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if progress is not None and not parent_phase:
                progress(f"{name}: {phase_name}, {num_steps} steps")

        def phase_finish(self, phase_name: str) -> None:
            """Has no news: the next phase says that it starts."""

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                return not self.cancelled
            except KeyboardInterrupt:  # must not pass through the builder
                self.cancelled = True
                return False

    return Monitor()
