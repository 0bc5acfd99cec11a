"""The Triton backends that a model repository needs, and where a server finds them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from recengine.errors import ServerError

if TYPE_CHECKING:
    from recengine.plans import Plan

CONTAINER = "nvcr.io/nvidia/tritonserver:26.06-py3"
"""Has the stock backends; the first release with all fixes that were published until then."""

STOCK = {"onnxruntime": "onnxruntime", "gpu": "tensorrt"}
"""The stock backend that runs the dense graphs of a target."""

OURS = "recengine"
"""The name of our own backend."""

_ASK_TENSORRT = (
    "import ctypes, glob; "
    "n = ctypes.CDLL(glob.glob('/usr/lib/*-linux-gnu/libnvinfer.so.[0-9][0-9]')[0]); "
    "print(*[n['getInferLib' + p + 'Version']() for p in ('Major', 'Minor', 'Patch', 'Build')], "
    "sep='.')"
)
_PLATFORMS = {"tensorrt_plan": "tensorrt", "onnxruntime_onnx": "onnxruntime"}


def read_configs(repository: Path) -> dict[str, pb.ModelConfig]:
    """The configs of a repository's models that can be read, by the names of their folders."""
    configs = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        config = pb.ModelConfig()
        try:
            text_format.Parse(path.read_text(), config, allow_unknown_field=True)
        except (text_format.ParseError, UnicodeDecodeError):
            continue  # the server says what is wrong with it
        configs[path.parent.name] = config
    return configs


def needed_backends(repository: Path) -> dict[str, str]:
    """Backends that a repository's models name and do not bring, each with the first that does."""
    needed: dict[str, str] = {}
    for model, config in read_configs(repository).items():
        backend = config.backend or _PLATFORMS.get(config.platform)
        if backend and not any((repository / model).rglob(f"libtriton_{backend}.so")):
            needed.setdefault(backend, model)
    return needed


def server_backends(tritonserver: Path) -> Path:
    """Where a server's own backends lie, as NVIDIA lays it out: bin/tritonserver, backends/."""
    return tritonserver.resolve().parent.parent / "backends"


@contextmanager
def backend_directory(repository: Path, tritonserver: Path, ours: Path) -> Iterator[Path]:
    """A directory with every backend that a repository needs, for as long as the server runs.

    That is `ours`, unless models need backends of the server, too: then one with links to both.

    Raises:
        ServerError: the stock backend of a target is in neither; the message says where it is.
    """
    stock = server_backends(tritonserver)
    found = {OURS: ours}
    for backend, model in needed_backends(repository).items():
        if (ours / backend).is_dir():
            found[backend] = ours
        elif (stock / backend).is_dir():
            found[backend] = stock
        elif backend in STOCK.values():
            raise ServerError(
                f"[serve] model {model} needs the backend {backend}: not in {ours} and not in "
                f"{stock}, of {tritonserver}. The NGC container has the stock backends:\n"
                f"{container_command(repository, ours, gpu=backend == STOCK['gpu'])}"
            )
    if stock not in found.values():
        yield ours
        return
    with TemporaryDirectory(prefix="recengine-backends-") as links:
        for backend, directory in found.items():
            (Path(links) / backend).symlink_to((directory / backend).resolve())
        yield Path(links)


def container_command(repository: Path, ours: Path, *, gpu: bool) -> str:
    """The command that serves a repository in the NGC container, endpoints on loopback.

    Our backend and the OpenVINO that it is linked to are mounted where it looks for them. It gets
    the first GPU alone: on each that it saw Triton would make instances, and plans are for one.
    Where there are TensorRT plans, shell comments below say which TensorRT the container must have.
    """
    from recengine.plans import plans, server_arguments  # not for those who only look for backends

    openvino = util.find_spec("openvino")
    libraries = Path((openvino and openvino.origin) or "openvino").parent / "libs"
    mounts = {
        repository.resolve(): "/models",
        ours / OURS: f"/opt/tritonserver/backends/{OURS}",
        libraries: "/opt/openvino/libs",
    }
    run = ["docker", "run", "--rm", *(["--gpus=device=0"] if gpu else [])]
    arguments = [
        *run,
        *(f"--publish=127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002)),
        *(f"--volume={source}:{target}:ro" for source, target in mounts.items()),
        *(CONTAINER, "tritonserver", "--model-repository=/models", *server_arguments(repository)),
    ]
    lines = [shlex.join(arguments)]
    found = {plan.tensorrt: plan for _, plan in plans(repository)}
    for plan in found.values():
        lines += _about_tensorrt(plan, repository, run)
    return "\n".join(lines)


def _about_tensorrt(plan: Plan, repository: Path, run: list[str]) -> Iterator[str]:
    """What the container must have; NVIDIA says it only of images with TensorRT-LLM."""
    from recengine.plans import rebuild_command

    ask = [*run, CONTAINER, "python3", "-c", _ASK_TENSORRT]
    later = " or a later version" if plan.version_compatible else ""
    yield f"# TensorRT {plan.tensorrt} built the plans: the container must have it{later}."
    yield "# Which one this tag has is not known here; the container says it:"
    yield f"#   {shlex.join(ask)}"
    yield "# Where that differs, the server refuses the plans. Take the tag of a release that has"
    yield "# it, or install the version that the container has, on this GPU, and compile again:"
    yield f"#   pip install tensorrt-cu13==VERSION && {rebuild_command(repository)}"
