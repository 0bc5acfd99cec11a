"""The GPU that a bench runs on, and what it can do at most, measured in the same run."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from recengine._cuda_driver import Driver
from recengine.gpu import Gpu, current_gpu

RUNS = 5
CALLS = 10  # between two synchronisations
COPIED_BYTES = 1 << 30
MATMUL_SIZE = 8192


@dataclasses.dataclass(frozen=True)
class Limits:
    """Best of some runs.

    Attributes:
        copy_bytes_per_s: bytes read plus bytes written by a copy within the GPU's memory.
        matmul_flops: floating-point operations per second of torch's product of square matrices,
            by "bf16" and "fp32" (without TF32); empty without torch.
    """

    copy_bytes_per_s: float
    matmul_flops: Mapping[str, float]

    def copy_share(self, num_bytes: float, ms: float) -> float:
        """The rate of a call that must move so many bytes, as a share of the copy's."""
        return num_bytes / (ms / 1e3) / self.copy_bytes_per_s


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a bench knows of its GPU, and how it waits for all that was put on it."""

    gpu: Gpu
    limits: Limits
    synchronize: Callable[[], None]


def file_name(gpu: Gpu) -> str:
    """A short name for result files: "nvidia-h200"."""
    return "-".join(re.findall(r"[a-z0-9]+", gpu.name.lower()))


def measure_machine(torch: Any | None) -> Machine:
    """The first GPU.

    Args:
        torch: the module, where it has CUDA.

    Raises:
        DeviceError: there is no driver or no GPU, or the driver fails.
    """
    driver = Driver()
    driver.use_primary_context()

    def synchronize() -> None:
        driver.call("cuCtxSynchronize")

    limits = Limits(
        measure_copy(driver, COPIED_BYTES),
        {} if torch is None else measure_matmul(torch, "cuda", MATMUL_SIZE, synchronize),
    )
    return Machine(current_gpu(), limits, synchronize)


def measure_copy(driver: Driver, num_bytes: int) -> float:
    """Bytes per second, read and written, of copies of `num_bytes` from one buffer to another."""
    size, stream = ctypes.c_size_t(num_bytes), ctypes.c_void_p()
    with driver.buffer(num_bytes) as source, driver.buffer(num_bytes) as target:
        addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)

        def copy() -> None:
            driver.call("cuMemcpyDtoDAsync_v2", *addresses, size, stream)

        seconds = best_seconds(copy, CALLS, lambda: driver.call("cuCtxSynchronize"))
    return 2 * num_bytes / seconds


def measure_matmul(
    torch: Any, device: str, size: int, synchronize: Callable[[], None]
) -> dict[str, float]:
    """Operations per second of a product of random [size, size] matrices, by type."""
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        pair = [torch.randn(size, size, device=device, dtype=dtype) for _ in range(2)]
        seconds = best_seconds(functools.partial(torch.mm, *pair), CALLS, synchronize)
        rates[name] = 2 * size**3 / seconds
    return rates


def best_seconds(run: Callable[[], object], calls: int, synchronize: Callable[[], None]) -> float:
    """Of a call, over RUNS times `calls` calls back to back."""
    run()
    best = float("inf")
    for _ in range(RUNS):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best / calls
