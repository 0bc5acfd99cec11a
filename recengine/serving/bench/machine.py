"""The machine that a result comes from."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

_PACKAGES = ("recengine", "openvino", "nvidia-pytriton", "tritonclient", "numpy")


def describe_machine() -> dict[str, str | int | float]:
    """CPU model, cores that this process may use, memory, kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "system": platform.system(),
    }


def machine_name() -> str:
    """A short name for result files: "amd-epyc-2core"."""
    model = re.sub(r"\(.*?\)|@.*|\b(cpu|processor|\d+-core)\b", " ", _cpu_model().lower())
    words = re.findall(r"[a-z0-9]+", model)
    return "-".join([*words, f"{len(os.sched_getaffinity(0))}core"])


def describe_versions(packages: tuple[str, ...] = ()) -> dict[str, str]:
    """Versions of Python and of the packages that a serving number depends on."""
    versions = {"python": platform.python_version()}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
