"""The compiler of the target gpu: TensorRT plans, built on the GPU that will run them.

Networks are strongly typed: the precision is what the graph says, see recengine.compile.lowering.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

from recengine._files import sync
from recengine.bundle import FidelityBounds, Graph, Manifest, Retrieval, hash_file
from recengine.compile.graph_signature import BATCH_AXIS
from recengine.compile.lowering import lower_graphs
from recengine.compile.plan_builder import Axes, PlanBuilder, Progress
from recengine.compile.plan_runner import PlanRunner
from recengine.compile.repository import Requests, stages
from recengine.compile.timing_cache import timing_cache_path
from recengine.errors import CompileError
from recengine.gpu import current_gpu
from recengine.plans import (
    PLAN,
    RECORD,
    HardwareCompatibility,
    Plan,
    Precision,
    SizeRange,
)

_USUAL_BATCH = 16


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """How plans are built.

    Attributes:
        precision: of matrix products and what is cheap around them.
        usual_batch: the batch that kernels are chosen for; any from 1 to the largest runs. None:
            16, or the largest if that is less.
        usual_candidates: the number of candidates that kernels are chosen for and CUDA graphs
            captured; any from 1 to the most that retrieval may find runs. None: as many as it
            finds.
        workspace_bytes: GPU memory that one kernel may use as scratch.
        optimization_level: 0 (fast build) to 5 (fast plan), as TensorRT counts.
        tf32: whether products in fp32 may round what they read to 10 bits.
        version_compatible: the plan also runs with later TensorRT versions, somewhat slower. It
            then carries code of its own, which the server must be told to trust.
        hardware_compatibility: which other GPUs the plan runs on, somewhat slower.
    """

    precision: Precision = "fp32"
    usual_batch: int | None = None
    usual_candidates: int | None = None
    workspace_bytes: int = 1 << 30
    optimization_level: int = 3
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"


class TensorRT:
    """See `recengine.compile.split.GraphCompiler`.

    Args:
        bundle: directory that holds the graphs. Kernel timings are kept beside it for later builds.
        manifest: its manifest.
        requests: what the plans are made for.
        options: how to build.
        bounds: how far the graphs' answers may be from eager PyTorch; None: what is usual for the
            precision.
        progress: is told what the builder does, a line at a time.

    Attributes:
        fidelity: what the graphs answer on the CPU beside eager PyTorch, before they are compiled.

    Raises:
        CompileError: TensorRT is not installed, or the graphs lose too much in this precision.
        DeviceError: there is no GPU.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        requests: Requests,
        options: PlanOptions,
        bounds: FidelityBounds | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._trt = _tensorrt()
        self._gpu = current_gpu()
        self._requests = requests
        self._options = options
        self._progress = progress
        self._models, self.fidelity = lower_graphs(bundle, manifest, options.precision, bounds)

    def convert(self, bundle: Path, manifest: Manifest, name: str, destination: Path) -> None:
        """Writes `destination`/model.plan, and plan.json, which says where it runs.

        Raises:
            CompileError: TensorRT does not take the graph or cannot build it, or its inputs and
                outputs are not those of the manifest.
        """
        entry = manifest.graphs[name]
        axes = axes_of(entry, stages(manifest)[0], self._requests, self._options.usual_batch)
        builder = PlanBuilder(self._trt, name, self._progress)
        builder.parse(self._models[name], entry)
        builder.limit(self._options.workspace_bytes, self._options.optimization_level)
        builder.allow(
            tf32=self._options.tf32,
            version_compatible=self._options.version_compatible,
            hardware_compatibility=self._options.hardware_compatibility,
        )
        builder.set_sizes(entry.inputs, axes)
        plan = builder.run(timing_cache_path(bundle, self._trt.__version__, self._gpu))
        (destination / PLAN).write_bytes(plan)
        record = self._record(destination / PLAN, axes).model_dump_json(indent=2)
        (destination / RECORD).write_text(record + "\n")
        for path in (destination / PLAN, destination / RECORD, destination):
            sync(path)

    def load(self, directory: Path) -> PlanRunner:
        """The plan on this machine's GPU.

        Raises:
            CompileError: TensorRT refuses it.
            DeviceError: there is no memory on the GPU.
        """
        return PlanRunner(self._trt, directory / PLAN)

    def _record(self, path: Path, axes: Axes) -> Plan:
        return Plan(
            file=hash_file(path),
            tensorrt=self._trt.__version__,
            gpu=self._gpu.name,
            compute_capability=self._gpu.compute_capability,
            driver=self._gpu.driver,
            cuda=self._gpu.cuda,
            precision=self._options.precision,
            axes=dict(axes),
            tf32=self._options.tf32,
            version_compatible=self._options.version_compatible,
            hardware_compatibility=self._options.hardware_compatibility,
        )


def axes_of(
    graph: Graph, retrieval: Retrieval, requests: Requests, usual_batch: int | None = None
) -> dict[str, SizeRange]:
    """Sizes of a graph's dynamic axes: the batch, and of a ranker the candidates.

    Raises:
        CompileError: the usual batch is not one that the repository's models take.
    """
    largest = requests.max_batch
    usual = min(_USUAL_BATCH, largest) if usual_batch is None else usual_batch
    if not 1 <= usual <= largest:
        raise CompileError(f"[tensorrt] usual batch: expected 1 to {largest}, found {usual}")
    batch = SizeRange(min=1, opt=usual, max=largest)
    candidates = SizeRange(min=1, opt=requests.usual_candidates, max=retrieval.max_candidates)
    names = {dim for tensor in graph.inputs for dim in tensor.dims if isinstance(dim, str)}
    return {name: batch if name == BATCH_AXIS else candidates for name in sorted(names)}


def _tensorrt() -> Any:
    try:
        return importlib.import_module("tensorrt")
    except ImportError:
        raise CompileError(
            "[tensorrt] not installed: on the GPU host run `pip install tensorrt-cu13==VERSION` "
            "with the version of the server's TensorRT, or compile in the server's container"
        ) from None
