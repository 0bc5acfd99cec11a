"""Whether TensorRT plans run here: what they were built with, beside what this machine has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recengine.bundle import FileEntry, hash_file, latest_version, versions
from recengine.errors import BundleError, DeviceError
from recengine.gpu import Gpu, current_gpu, tensorrt_version

PLAN = "model.plan"
"""The file that Triton's TensorRT backend loads."""

RECORD = "plan.json"
"""The file beside it that says where and how it was built."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]

_AMPERE = 8
_GPU_POOL_BYTES = 512 << 20  # several batches of the widest tensor, the candidates' rows


class SizeRange(BaseModel):
    """Sizes of a dynamic axis that a plan takes, and the one that its kernels are chosen for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min: Annotated[int, Field(gt=0)]
    opt: Annotated[int, Field(gt=0)]
    max: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _in_order(self) -> SizeRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"expected min <= opt <= max, found {self.min}, {self.opt}, {self.max}"
            )
        return self


class Plan(BaseModel):
    """Where and how a TensorRT plan was built; `check_plan` says where it runs.

    compute_capability, driver and cuda as in `Gpu`; axes: sizes by the name of a dynamic axis.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    file: FileEntry
    tensorrt: str
    gpu: str
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$")]
    driver: str | None
    cuda: str
    precision: Precision
    axes: dict[str, SizeRange]
    tf32: bool
    version_compatible: bool
    hardware_compatibility: HardwareCompatibility


def check_plan(name: str, plan: Plan, tensorrt: str, gpu: Gpu) -> None:
    """Refuses a plan that was built for another TensorRT or GPU than those here.

    A plan runs with the very version that built it; a version-compatible one also with later ones,
    of the next major version at most. It runs on a GPU of the same name; a hardware-compatible one
    also on others of the same compute capability, or on Ampere and later.

    Args:
        name: what the message calls the plan.
        plan: its record.
        tensorrt: version that will load it, as "10.16.1.11".
        gpu: what it will run on.

    Raises:
        DeviceError: saying what it was built for, what is here, and how to build it anew.
    """
    if not _version_fits(plan, tensorrt):
        compatible = " or later" if plan.version_compatible else ""
        _refuse(name, plan, f"TensorRT {plan.tensorrt}{compatible}", f"TensorRT {tensorrt}")
    if not _gpu_fits(plan, gpu):
        expected = {
            "none": f"{plan.gpu} ({plan.compute_capability})",
            "same_compute_capability": f"a GPU of compute capability {plan.compute_capability}",
            "ampere_plus": "a GPU of compute capability 8.0 or later",
        }[plan.hardware_compatibility]
        _refuse(name, plan, expected, f"{gpu.name} ({gpu.compute_capability})")


def _version_fits(plan: Plan, tensorrt: str) -> bool:
    if not plan.version_compatible:
        return plan.tensorrt == tensorrt
    built, here = _numbers(plan.tensorrt), _numbers(tensorrt)
    return built <= here and here[0] - built[0] <= 1


def _gpu_fits(plan: Plan, gpu: Gpu) -> bool:
    if plan.hardware_compatibility == "ampere_plus":
        return _numbers(gpu.compute_capability)[0] >= _AMPERE
    if plan.hardware_compatibility == "same_compute_capability":
        return plan.compute_capability == gpu.compute_capability
    return (plan.gpu, plan.compute_capability) == (gpu.name, gpu.compute_capability)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _refuse(name: str, plan: Plan, expected: str, found: str) -> None:
    raise DeviceError(
        f"[gpu] {name}: built for {expected}, found {found}; run `recengine compile BUNDLE "
        f"--target gpu --precision {plan.precision} --out REPOSITORY` on this machine"
    )


def plans(repository: Path) -> Iterator[tuple[Path, Plan]]:
    """The plans among the newest versions of a model repository, with their directories.

    Raises:
        BundleError: a record is damaged.
    """
    for model in sorted(path for path in repository.iterdir() if versions(path)):
        directory = latest_version(model)
        record = directory / RECORD
        if not record.exists():
            continue
        try:
            yield directory, Plan.model_validate_json(record.read_bytes())
        except ValidationError as error:
            raise BundleError(f"{record}: {error.errors()[0]['msg']}") from None


def check_repository(repository: Path) -> None:
    """Refuses a repository with a plan that this machine cannot run; see `check_plan`.

    Raises:
        DeviceError: a plan does not fit, or there is no GPU or TensorRT for it.
        BundleError: a plan or its record is missing or damaged.
    """
    for directory, plan in plans(repository):
        path = directory / PLAN
        if not path.is_file() or hash_file(path, plan.file.chunk_bytes) != plan.file:
            raise BundleError(f"{path}: missing or changed; {RECORD} has another size or SHA-256")
        check_plan(str(path), plan, _tensorrt_here(plan), current_gpu())


def server_arguments(repository: Path) -> list[str]:
    """What a tritonserver must be told to serve the plans of a repository.

    What steps of an ensemble give each other stays on the GPU as long as the server's pool there
    has room; by default that is 64 MiB. A version-compatible plan brings code of its own, which
    TensorRT runs only where it is told to.

    Raises:
        BundleError: a record is damaged.
    """
    found = [plan for _, plan in plans(repository)]
    arguments = [f"--cuda-memory-pool-byte-size=0:{_GPU_POOL_BYTES}"] if found else []
    if any(plan.version_compatible for plan in found):
        arguments.append("--backend-config=tensorrt,version-compatible=true")
    return arguments


def _tensorrt_here(plan: Plan) -> str:
    """The version of the library that loads this plan: its own major, else the next."""
    major = _numbers(plan.tensorrt)[0]
    try:
        return tensorrt_version(f"libnvinfer.so.{major}")
    except DeviceError as missing:
        with contextlib.suppress(DeviceError):
            return tensorrt_version(f"libnvinfer.so.{major + 1}")
        raise missing
