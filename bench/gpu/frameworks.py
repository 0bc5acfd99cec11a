"""The frameworks that are compared, where they are installed and find a GPU; and their arrays."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from recengine import ops


@dataclasses.dataclass(frozen=True)
class Frameworks:
    """Modules, None where they cannot be used, and why not, by name."""

    torch: Any | None = None
    faiss: Any | None = None
    jax: Any | None = None
    absent: dict[str, str] = dataclasses.field(default_factory=dict)
    device: str = "cuda"  # torch's name of where its arrays are

    def to_gpu(self, values: npt.NDArray[Any]) -> Any:
        """An array of torch, or without torch one of recengine."""
        if self.torch is None:
            return ops.to_device(values)
        return self.torch.from_numpy(values).to(self.device)


def to_host(values: Any) -> npt.NDArray[Any]:
    """What a GPU's array holds, once the work that makes it is done."""
    return values.numpy() if isinstance(values, ops.DeviceArray) else np.asarray(values.cpu())


def find_frameworks() -> Frameworks:
    """Those that find a GPU."""
    # By default jax takes three quarters of the GPU's memory when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    finds_gpu: dict[str, Callable[[Any], bool]] = {
        "torch": lambda torch: bool(torch.cuda.is_available()),
        "faiss": lambda faiss: hasattr(faiss, "GpuIndexFlatIP") and faiss.get_num_gpus() > 0,
        "jax": lambda jax: jax.default_backend() == "gpu",
    }
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for name, usable in finds_gpu.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            absent[name] = "not installed"
            continue
        if usable(module):
            found[name] = module
        else:
            absent[name] = "installed without a GPU"
    return Frameworks(**found, absent=absent)
