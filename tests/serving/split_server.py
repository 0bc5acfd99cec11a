"""Serves a split repository with a tritonserver that has no ONNX Runtime backend."""

import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from bench.serving.peer.repository import copy_backend, environment
from recengine.compile import compile_bundle
from recengine.compile.split import STAGES
from recengine.serving.server import TritonServer, find_backends

MODEL = Path(__file__).with_name("onnx_model.py")


def compile_stages(bundle, repository):
    """The models that our backend runs, alone: others have no backend in every server."""
    compile_bundle(bundle, repository, target="onnxruntime")
    for model in repository.iterdir():
        if model.name not in STAGES:
            shutil.rmtree(model)
    return repository


def replace_backend(repository):
    """The graphs' models run in the Python backend, with the same ONNX Runtime as in the gate."""
    for graph in repository.glob("*/*/model.onnx"):
        shutil.copy(MODEL, graph.with_name("model.py"))
        config = graph.parents[1] / "config.pbtxt"
        text = config.read_text()
        config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
    return repository


def place_on_gpu(repository):
    """Our stages run on the GPU, with more time for requests: an emulated one is slow."""
    more_time = 'parameters { key: "recengine.default_timeout_us" value { string_value: "%d" } }\n'
    for model in STAGES:
        config = repository / model / "config.pbtxt"
        text = config.read_text().replace("kind: KIND_CPU", "kind: KIND_GPU")
        config.write_text(text + more_time % 100_000_000)
    return repository


@contextmanager
def serve_split(repository, folder, **options):
    """A server of a repository that `replace_backend` changed; `folder` is its own."""
    backends = copy_backend(folder / "backends")
    (backends / "recengine").symlink_to(find_backends() / "recengine")
    with (
        environment(Path(os.environ.get("RECENGINE_VENV", sys.prefix))),
        TritonServer(
            repository, backend_directory=backends, log=folder / "tritonserver.log", **options
        ) as server,
    ):
        yield server
