"""Whether TensorRT plans run here: what they were built with, beside what this machine has."""

from __future__ import annotations

import contextlib
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from recengine.bundle import FileEntry, newest_with, read_record, verify_file
from recengine.errors import DeviceError
from recengine.gpu import Gpu, current_gpu, tensorrt_version

PLAN = "model.plan"
"""The file that Triton's TensorRT backend loads."""

RECORD = "plan.json"
"""The file beside it that says where and how it was built."""

Precision = Literal["fp32", "fp16", "bf16", "int8"]
HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]

_AMPERE = 8
_BATCH_AXIS = "batch"
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


def check_plan(
    name: str, plan: Plan, tensorrt: str, gpu: Gpu, *, rebuild: str = "recengine compile"
) -> None:
    """Refuses a plan that was built for another TensorRT, GPU or driver than those here.

    A plan runs with the very version that built it; a version-compatible one also with later ones,
    of the next major version at most. It runs on a GPU of the same name; a hardware-compatible one
    also on others of the same compute capability, or on Ampere and later. It runs with a driver
    for the same major version of CUDA as the one it was built with, or a later one; an older
    minor version is a warning. What its TensorRT itself needs may be older, but is not recorded:
    the libraries do not tell which CUDA they are for, and by NVIDIA's support matrix (TensorRT
    11.4) a plan depends on platform, version and GPU.

    Args:
        name: what the message calls the plan.
        plan: its record.
        tensorrt: version that will load it, as "10.16.1.11".
        gpu: what it will run on.
        rebuild: what the message says to run; see `rebuild_command`.

    Raises:
        DeviceError: saying what it was built for, what is here, and how to build it anew.
    """
    if not _version_fits(plan, tensorrt):
        compatible = " or later" if plan.version_compatible else ""
        expected = f"TensorRT {plan.tensorrt}{compatible}"
        _refuse(name, expected, f"TensorRT {tensorrt}", rebuild)
    if not _gpu_fits(plan, gpu):
        expected = {
            "none": f"{plan.gpu} ({plan.compute_capability})",
            "same_compute_capability": f"a GPU of compute capability {plan.compute_capability}",
            "ampere_plus": "a GPU of compute capability 8.0 or later",
        }[plan.hardware_compatibility]
        _refuse(name, expected, f"{gpu.name} ({gpu.compute_capability})", rebuild)
    if _numbers(gpu.cuda)[0] < _numbers(plan.cuda)[0]:
        _refuse(name, f"a driver for CUDA {_numbers(plan.cuda)[0]} or later", _driver(gpu), rebuild)
    if _numbers(gpu.cuda) < _numbers(plan.cuda):
        warnings.warn(
            f"[gpu] {name}: built where the driver was {_driver(plan)}, found {_driver(gpu)}; "
            f"if it does not load, update the driver or run `{rebuild}` on this machine",
            stacklevel=2,
        )


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


def _refuse(name: str, expected: str, found: str, rebuild: str) -> None:
    raise DeviceError(
        f"[gpu] {name}: built for {expected}, found {found}; run `{rebuild}` on this machine"
    )


def _driver(found: Plan | Gpu) -> str:
    return f"{found.driver or 'unknown'} (CUDA {found.cuda})"


def rebuild_command(repository: Path) -> str:
    """The command that compiles a repository as its plans were; BUNDLE is to be filled in.

    What has no effect on where a plan runs is not recorded, and not in it: scratch memory and
    optimisation level.

    Raises:
        BundleError: a record is damaged.
    """
    options: dict[str, str | int | bool] = {}
    for _, plan in plans(repository):
        options |= {
            "precision": plan.precision,
            "tf32": plan.tf32,
            "version-compatible": plan.version_compatible,
            "hardware-compatibility": plan.hardware_compatibility,
        }
        for axis, sizes in plan.axes.items():
            if axis == _BATCH_AXIS:
                options |= {"max-batch": sizes.max, "usual-batch": sizes.opt}
            else:
                options["usual-candidates"] = sizes.opt
    given = (f"--{name}={value}" for name, value in options.items() if not isinstance(value, bool))
    flags = (f"--{name}" for name, value in options.items() if value is True)
    return shlex.join(
        ["recengine", "compile", "BUNDLE", "--target=gpu", *given, *flags, f"--out={repository}"]
    )


def plans(repository: Path) -> Iterator[tuple[Path, Plan]]:
    """The plans among the newest versions of a model repository, with their directories.

    Raises:
        BundleError: a record is damaged.
    """
    for directory in newest_with(repository, RECORD):
        yield directory, read_plan(directory)


def read_plan(directory: Path) -> Plan:
    """The record of the plan in a version directory.

    Raises:
        BundleError: it is damaged.
    """
    return read_record(Plan, directory / RECORD)


def verify_plan(directory: Path) -> Plan:
    """`read_plan`, then the size and SHA-256 of the plan.

    Raises:
        BundleError: the plan or its record is missing or damaged.
    """
    plan = read_plan(directory)
    verify_file(directory / PLAN, plan.file, RECORD)
    return plan


def check_repository(repository: Path) -> None:
    """Refuses a repository with a plan that this machine cannot run; see `check_plan`.

    Raises:
        DeviceError: a plan does not fit, or there is no GPU or TensorRT for it.
        BundleError: a plan or its record is missing or damaged.
    """
    for directory, plan in plans(repository):
        verify_plan(directory)
        here = _tensorrt_here(plan), current_gpu()
        check_plan(str(directory / PLAN), plan, *here, rebuild=rebuild_command(repository))


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
