"""The machine that a result comes from."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

_PACKAGES = ("recengine", "openvino", "nvidia-pytriton", "tritonclient", "numpy")


def describe_machine() -> dict[str, str | int | float]:
    """CPU model and its vector instructions, cores that this process may use, memory, kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpuinfo("model name"),
        "vectors": _vectors(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "system": platform.system(),
    }


def machine_name() -> str:
    """A short name for result files: "amd-epyc-avx2-2core"."""
    model = _cpuinfo("model name").lower()
    model = re.sub(r"\(.*?\)|@.*|\b(cpu|processor|\d+-core)\b", " ", model)
    words = re.findall(r"[a-z0-9]+", model)
    return "-".join([*words, *_vectors().split("_"), f"{len(os.sched_getaffinity(0))}core"])


def describe_versions(packages: tuple[str, ...] = ()) -> dict[str, str]:
    """Versions of Python and of the packages that a serving number depends on."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _vectors() -> str:
    """What tells generations of a CPU apart whose model a cloud hides."""
    flags = _cpuinfo("flags").split()
    known = {
        "amx_int8": "amx_int8",
        "avx512_vnni": "avx512_vnni",
        "avx512f": "avx512",
        "avx2": "avx2",
    }
    return next((name for flag, name in known.items() if flag in flags), "novector")


def _cpuinfo(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return platform.machine()
