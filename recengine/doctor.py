"""What this machine has for recengine, and what it lacks."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from recengine.errors import DeviceError, RecengineError

PRODUCTION_VERSION = (2, 70)
"""The server of NGC release 26.06, the first with all fixes that were published until then."""

_ENTRY_POINTS = (
    "TRITONBACKEND_Initialize",
    "TRITONBACKEND_ModelInitialize",
    "TRITONBACKEND_ModelFinalize",
    "TRITONBACKEND_ModelInstanceInitialize",
    "TRITONBACKEND_ModelInstanceFinalize",
    "TRITONBACKEND_ModelInstanceExecute",
)
_SERVER_START_S = 20.0


class Level(enum.Enum):
    """How a finding is meant."""

    OK = "ok"
    NOTE = "note"  # fine as it is; something optional is not there
    PROBLEM = "problem"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    name: str
    found: str
    level: Level = Level.OK


def examine(tritonserver: Path | None = None) -> Iterator[Finding]:
    """Looks at the installation, one finding after the other.

    Args:
        tritonserver: the server binary; None to look for one as `recengine serve` does.
    """
    yield Finding("recengine", _version("recengine") or "not installed, run from a source tree")
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    yield _cpu()
    yield from _packages(("numpy", "tritonclient"), Level.PROBLEM, "")
    yield from _packages(("openvino", "onnx", "pydantic"), Level.NOTE, "serve")
    yield from _packages(("torch", "lightning"), Level.NOTE, "train")
    yield _backend()
    yield _server(tritonserver)
    yield from _stock_backends(tritonserver)
    yield _cuda()
    yield _gpu()
    yield _tensorrt()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages(names: Iterable[str], absent: Level, extra: str) -> Iterator[Finding]:
    hint = f": pip install 'recengine[{extra}]'" if extra else ""
    for name in names:
        version = _version(name)
        yield Finding(name, version) if version else Finding(name, f"missing{hint}", absent)


def _cpu() -> Finding:
    try:
        from recengine import ops

        return Finding("cpu", f"{ops.default_isa()}, {ops.usable_cores()} cores for this process")
    except (ImportError, RecengineError) as error:
        return Finding("cpu", f"the native module does not run: {error}", Level.PROBLEM)


def _backend() -> Finding:
    from recengine.serving.server import find_backends

    try:
        path = find_backends() / "recengine" / "libtriton_recengine.so"
        library = ctypes.CDLL(str(path), mode=os.RTLD_LAZY)
    except (OSError, RecengineError) as error:
        return Finding("backend", str(error), Level.PROBLEM)
    missing = [name for name in _ENTRY_POINTS if not hasattr(library, name)]
    stray = [name for name in _exported(path) if not name.startswith("TRITONBACKEND_")]
    if missing:
        return Finding("backend", f"{path} does not export {missing[0]}", Level.PROBLEM)
    if stray:
        return Finding("backend", f"{path} also exports {stray[0]}", Level.PROBLEM)
    return Finding("backend", str(path))


def _exported(library: Path) -> list[str]:
    """Dynamic symbols of a library; none where binutils are not installed."""
    nm = shutil.which("nm")
    if nm is None:
        return []
    output = _output([nm, "-D", "--defined-only", str(library)])
    return [line.split()[-1].partition("@")[0] for line in output.splitlines() if line]


def _server(tritonserver: Path | None) -> Finding:
    from recengine.serving.server import find_tritonserver

    try:
        binary = find_tritonserver(tritonserver)
    except RecengineError as error:
        return Finding("tritonserver", str(error), Level.PROBLEM)
    version = server_version(binary)
    if version is None:
        return Finding("tritonserver", f"{binary} does not start", Level.PROBLEM)
    found = f"{version}, {binary}"
    if tuple(map(int, version.split(".")[:2])) < PRODUCTION_VERSION:
        note = "for development only; production wants the NGC container 26.06 (2.70) or later"
        return Finding("tritonserver", f"{found}; {note}", Level.NOTE)
    return Finding("tritonserver", found)


def _stock_backends(tritonserver: Path | None) -> Iterator[Finding]:
    """What runs the graphs of targets that our backend does not run alone."""
    from recengine.serving.backends import STOCK, server_backends
    from recengine.serving.server import find_tritonserver

    try:
        directory = server_backends(find_tritonserver(tritonserver))
    except RecengineError:
        return  # told already
    for target, backend in STOCK.items():
        if (directory / backend).is_dir():
            yield Finding(f"target {target}", str(directory / backend))
        else:
            missing = f"this tritonserver has no {backend} backend; the NGC container has it"
            yield Finding(f"target {target}", missing, Level.NOTE)


def server_version(binary: Path) -> str | None:
    """Version of a tritonserver, which only its start-up log tells; None when it does not start."""
    silent = [f"--allow-{endpoint}=false" for endpoint in ("http", "grpc", "metrics")]
    with tempfile.TemporaryDirectory() as empty:
        command = [str(binary), "--model-control-mode=explicit", *silent]
        with subprocess.Popen(
            [*command, f"--model-repository={empty}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as server:
            watchdog = threading.Timer(_SERVER_START_S, server.kill)
            watchdog.start()
            try:
                assert server.stdout is not None
                lines = (re.search(r"server_version\W+([\d.]+)", line) for line in server.stdout)
                return next((match[1] for match in lines if match), None)
            finally:
                watchdog.cancel()
                server.kill()


def _cuda() -> Finding:
    try:
        from recengine import ops

        if not ops.cuda_built():
            return Finding(
                "cuda",
                "not in this build; the target gpu needs them: install with "
                "`-C cmake.define.RECENGINE_CUDA=ON`",
                Level.NOTE,
            )
        return Finding("cuda", "; ".join(ops.cuda_devices()) or "built, no GPU found")
    except (ImportError, RecengineError) as error:
        return Finding("cuda", str(error), Level.PROBLEM)


def _gpu() -> Finding:
    from recengine.gpu import current_gpu

    try:
        gpu = current_gpu()
    except DeviceError as error:
        return Finding("gpu", f"{error}; the targets cpu and onnxruntime need none", Level.NOTE)
    facts = f"compute capability {gpu.compute_capability}, driver {gpu.driver}, CUDA {gpu.cuda}"
    return Finding("gpu", f"{gpu.name}, {facts}")


def _tensorrt() -> Finding:
    from recengine.gpu import LIBRARIES, tensorrt_version

    for library in LIBRARIES:
        with contextlib.suppress(DeviceError):
            return Finding("tensorrt", f"{tensorrt_version(library)}, {library}")
    for package in ("tensorrt-cu13", "tensorrt-cu12"):
        if version := _version(package):
            found = f"{version}, the package {package}: compiles; serving needs the server's own"
            return Finding("tensorrt", found)
    missing = f"no {' or '.join(LIBRARIES)}; the target gpu compiles and serves with it"
    return Finding("tensorrt", missing, Level.NOTE)


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
