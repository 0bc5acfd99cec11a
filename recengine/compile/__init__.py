"""Compiles a bundle into a Triton model repository, behind the fidelity gate."""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from recengine import ops
from recengine._files import locked, sync
from recengine.bundle import (
    FidelityBounds,
    FidelityRow,
    Manifest,
    Target,
    latest_version,
    read_manifest,
    verify,
    versions,
    write_manifest,
)
from recengine.compile import onnxruntime
from recengine.compile.fidelity import Answer, gate, load_reference
from recengine.compile.fused import Fused
from recengine.compile.lowering import BOUNDS
from recengine.compile.plan_builder import Progress
from recengine.compile.repository import (
    CONFIG,
    MAX_BATCH,
    Requests,
    contract_of,
    expected_requests,
    write_configs,
)
from recengine.compile.split import Split
from recengine.compile.tensorrt import PlanOptions, TensorRT
from recengine.compile.version_directory import Model
from recengine.errors import BundleError, CompileError, DeviceError, RecengineError

MEASURED: tuple[Model, ...] = ("retrieval", "ranking")
"""The models whose version directories have a manifest with what the gate measured."""


class Layout(Protocol):
    """The models of a repository.

    Attributes:
        composing: names of the models that compute, in the order in which they are published.
        ensembles: names of the ensembles over them.
    """

    composing: tuple[str, ...]
    ensembles: tuple[str, ...]

    def stage(self, bundle: Path, staging: Path) -> None:
        """Writes a version directory `staging`/<model> for every model.

        Raises:
            CompileError: a graph could not be compiled.
        """

    def answer(self, staging: Path, num_candidates: int | None, k: int | None) -> Answer:
        """Loads the staged directories in process, as a server would, to run them.

        Args:
            staging: where `stage` wrote them.
            num_candidates: how many to retrieve; None: what a request gets that does not say.
            k: how many to answer; None: the same.

        Raises:
            BundleError: our engine refuses a directory.
            CompileError: the runtime of the graphs refuses one.
        """

    def configs(
        self, requests: Requests, version: int, kept: Iterable[int]
    ) -> dict[str, pb.ModelConfig]:
        """The Triton configuration of every model, by name; ensembles last.

        Composing models that name their versions also serve those `kept`.
        """


def compile_bundle(
    bundle: Path,
    out: Path,
    *,
    target: Target = "cpu",
    max_batch: int = MAX_BATCH,
    change_schema: bool = False,
    bounds: FidelityBounds | None = None,
    plans: PlanOptions | None = None,
    progress: Progress | None = None,
) -> Path:
    """Adds a version of a bundle to a Triton model repository.

    The repository gets the models retrieval, ranking and recommend (their ensemble). For the target
    cpu, retrieval and ranking run all of their stages at once; for the others they are ensembles,
    too, of a model for each stage. The version has the next free number, so that a live server can
    load it over the one it serves; versions that stand are left alone. Nothing is published unless
    what was compiled loads and answers the warm-up request here, and passes the fidelity gate.

    config.pbtxt is one for all versions. Where a bundle has other features, in another order, or
    other string keys than the newest version, clients of that version would be refused or misread,
    and it could not be served again: such a bundle is refused, unless `change_schema` says that
    this is meant. The way back is then to compile the old bundle, with `change_schema`, too.

    Args:
        bundle: directory that export wrote.
        out: the model repository; made when it is not there.
        target: what to compile for: cpu is OpenVINO in our backend, onnxruntime the stock ONNX
            Runtime backend on a CPU, gpu the stock TensorRT backend.
        max_batch: the most users of a request, and of requests that run together.
        change_schema: take a bundle whose requests are not those of the newest version.
        bounds: how far the answers may be from eager PyTorch; None: what is usual for the target
            and its precision.
        plans: how the plans of the target gpu are built.
        progress: is told what takes long, a line at a time.

    Returns:
        The repository.

    Raises:
        BundleError: a file of the bundle is missing or changed, or our engine refuses the bundle.
        CompileError: a graph could not be compiled or run, the fidelity gate refused the result,
            the repository is of another target or its requests are others, or a size is not one
            that a request can have.
        DeviceError: the target is gpu and there is none.
    """
    bundle, out = Path(bundle), Path(out)
    manifest = verify(bundle)
    plans = plans or PlanOptions()
    requests = expected_requests(
        bundle, manifest, max_batch=max_batch, usual_candidates=plans.usual_candidates
    )
    if bounds is None:
        bounds = BOUNDS[plans.precision if target == "gpu" else "fp32"]
    layout, rows = _layout(bundle, manifest, target, requests, bounds, plans, progress)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), _staging(out) as staging:
        _require_same_models(out, manifest, target)
        if not change_schema:
            _require_same_requests(out, manifest)
        layout.stage(bundle, staging)
        rows += _gate(bundle, manifest, layout, staging, requests, bounds)
        for model in MEASURED:
            own = "retrieval" if model == "retrieval" else "recommend"
            fidelity = [row for row in rows if row.stage == own]
            part = read_manifest(staging / model)
            write_manifest(staging / model, part.model_copy(update={"fidelity": fidelity}))
        _publish(staging, out, layout, requests)
    return out


def _layout(
    bundle: Path,
    manifest: Manifest,
    target: Target,
    requests: Requests,
    bounds: FidelityBounds,
    plans: PlanOptions,
    progress: Progress | None,
) -> tuple[Layout, list[FidelityRow]]:
    """The models to write, and what was measured of their graphs already."""
    if target == "cpu":
        return Fused(manifest), []
    if target == "onnxruntime":
        return Split(manifest, target, onnxruntime), []
    if not ops.cuda_built():
        warnings.warn(
            "[compile] target gpu: this recengine has no CUDA parts, and its backend cannot serve "
            "what is compiled; build it with `-C cmake.define.RECENGINE_CUDA=ON`",
            stacklevel=3,
        )
    compiler = TensorRT(bundle, manifest, requests, plans, bounds, progress)
    return Split(manifest, target, compiler), compiler.fidelity


def _require_same_models(out: Path, manifest: Manifest, target: Target) -> None:
    """A model that this compile does not write would be served on, whatever it is.

    Raises:
        CompileError: the repository is of another target, or its graphs have other names.
    """
    for found in _newest(out).values():
        if found.target != target:
            raise CompileError(
                f"[compile] {out}: expected an empty folder or a repository of target {target}, "
                f"found one of target {found.target}"
            )
    if target == "cpu":
        return
    for name in MEASURED:
        if not versions(out / name):
            continue
        found = read_manifest(latest_version(out / name))
        old, new = (getattr(one, name).graph for one in (found, manifest))
        if old != new:
            raise CompileError(
                f"[compile] {out}: expected a repository whose {name} graph is {new}, found {old}"
            )


def _require_same_requests(out: Path, manifest: Manifest) -> None:
    """All versions of a model have one config, and clients go from one to the next unasked.

    Raises:
        CompileError: requests of the newest version are not those of the bundle; says how.
    """
    ours = contract_of(manifest)
    for version, newest in _newest(out).items():
        theirs = contract_of(newest)
        changes = [
            f"{name}: expected {theirs[name]}, found {ours[name]}"
            for name in ours
            if ours[name] != theirs[name]
        ]
        if changes:
            raise CompileError(
                f"[compile] {out}: expected a bundle with the requests of {version}; "
                f"{'; '.join(changes)}. It could not be served again, and clients that do not read "
                "the schema anew would be misread: compile into another repository, or with "
                "--change-schema (change_schema=True)"
            )


def _newest(out: Path) -> dict[str, Manifest]:
    """Newest manifests of retrieval, by model/version.

    A split repository has two: a killed compile may have added to its first model alone.
    """
    models = [out / name for name in ("retrieval_lookup", "retrieval") if versions(out / name)]
    newest = [latest_version(model) for model in models]
    try:
        return {f"{path.parent.name}/{path.name}": read_manifest(path) for path in newest}
    except BundleError as error:
        raise CompileError(
            f"[compile] {out}: its newest version is damaged; rename it to failed-<version> in all "
            f"models first: {error}"
        ) from None


def _gate(
    bundle: Path,
    manifest: Manifest,
    layout: Layout,
    staging: Path,
    requests: Requests,
    bounds: FidelityBounds,
) -> list[FidelityRow]:
    """Does what a server does before it is ready, then compares answers where there are any."""
    reference = None if manifest.reference is None else load_reference(bundle, manifest.reference)
    try:
        answer = layout.answer(staging, *(reference.sizes if reference else (None, None)))
        for batch in requests.warmup_batches:
            answer(requests.users(batch))
    except (CompileError, DeviceError):
        raise
    except BundleError as error:
        raise BundleError(f"{bundle}: {error}") from None
    except RecengineError as error:  # a graph that fails, or what it answers is not finite
        raise CompileError(f"[compile] {bundle}: warm-up request: {error}") from None
    if reference is None:
        warnings.warn(
            f"[compile] {bundle}: has no reference answers; what is served runs, but its answers "
            "are not checked",
            stacklevel=3,
        )
        return []
    return gate(reference, answer, "engine", bounds)


def _publish(staging: Path, out: Path, layout: Layout, requests: Requests) -> None:
    """Renames the staged directories to one version number that no model has or had.

    The ensembles come last: the config of a split repository's ensemble names the version of its
    steps, so that it goes from one whole version to the next in one step. Until all have gone, the
    steps keep what they name, too, so that a server starts on whatever a killed compile leaves.
    """
    models = (*layout.composing, *layout.ensembles)
    version = 1 + max((n for model in models for n in _numbers(out / model)), default=0)
    for model in layout.composing:
        _publish_model(staging, out, model, version)
    if kept := _named_by_ensembles(out, layout):
        write_configs(out, layout.configs(requests, version, kept), requests)
    write_configs(out, layout.configs(requests, version, ()), requests)
    for model in layout.ensembles:
        _publish_model(staging, out, model, version)


def _numbers(model: Path) -> list[int]:
    """Of a model's versions and of those that failed: see `recengine.serving.last_good`."""
    failed = (re.match(r"failed-([1-9][0-9]*)", path.name) for path in model.glob("failed-*"))
    return [*versions(model), *(int(name[1]) for name in failed if name)]


def _named_by_ensembles(out: Path, layout: Layout) -> list[int]:
    """Versions of steps that the ensembles of a repository name, if they do."""
    versions = set()
    for path in (out / model / CONFIG for model in layout.ensembles):
        if path.exists():
            config = text_format.Parse(path.read_text(), pb.ModelConfig())
            versions |= {step.model_version for step in config.ensemble_scheduling.step}
    return sorted(version for version in versions if version > 0)


def _publish_model(staging: Path, out: Path, model: str, version: int) -> None:
    (out / model).mkdir(exist_ok=True)
    (staging / model).rename(out / model / str(version))
    sync(out / model)


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A directory on the repository's file system that Triton does not look at."""
    parent = repository / "retrieval"
    parent.mkdir(exist_ok=True)
    for leftover in parent.glob(".staging-*"):  # of a compile that was killed
        shutil.rmtree(leftover)
    try:
        with tempfile.TemporaryDirectory(prefix=".staging-", dir=parent) as staging:
            yield Path(staging)
    finally:
        with suppress(OSError):  # it stays, unless the first compile was refused
            parent.rmdir()
