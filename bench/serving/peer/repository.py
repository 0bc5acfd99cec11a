"""Writes the peer's model repository: the same models behind Triton's Python backend.

What a team would write without recengine: `retrieval` (NumPy and torch lookups, user tower in ONNX
Runtime, faiss IndexFlatIP) and `ranking` (item rows, ranker in ONNX Runtime, top-k) as a Triton
ensemble `recommend` with the same wire contract.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from recengine.bundle import Manifest, read_manifest

HERE = Path(__file__).parent
MODELS = ("retrieval", "ranking")
NUMPY = "numpy==1.26.4"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What was tried for the peer; the defaults are the best found on 2 cores.

    Attributes:
        instances: Python processes per model.
        threads: of ONNX Runtime, faiss and torch in each process.
        max_batch_size: requests that one execution takes.
        queue_delay_us: how long Triton waits for a fuller batch.
        ragged: whether requests of different history lengths may share a batch.
    """

    instances: int = 1
    threads: int = 1
    max_batch_size: int = 64
    queue_delay_us: int = 0
    ragged: bool = True


def write_repository(folder: Path, bundle: Path, tuning: Tuning) -> Path:
    """Writes `retrieval`, `ranking` and `recommend` for a bundle; replaces what is there."""
    manifest = read_manifest(bundle)
    shutil.rmtree(folder, ignore_errors=True)
    for name in MODELS:
        version = folder / name / "1"
        version.mkdir(parents=True)
        shutil.copy(HERE / f"{name}.py", version / "model.py")
        shutil.copy(HERE / "user_features.py", version)
        _write(folder, _model(name, manifest, bundle, tuning))
    (folder / "recommend" / "1").mkdir(parents=True)
    _write(folder, _ensemble(manifest, tuning))
    return folder


def copy_backend(folder: Path) -> Path:
    """Puts the wheel's Python backend and this Python's stub side by side in `folder`/python."""
    server = _wheels() / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(server / "backends" / "python", folder / "python", dirs_exist_ok=True)
    shutil.copy(stub / "triton_python_backend_stub", folder / "python")
    return folder


def _wheels() -> Path:
    """Where the wheel nvidia-pytriton is installed."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def make_environment(folder: Path) -> Path:
    """A virtual environment for the peer: this one's packages, but NumPy 1.

    The Python backend of Triton 24.10 reads the array layout of NumPy 1; with NumPy 2 it works
    through DLPack only, which costs the peer 10 % more CPU time a request.
    """
    packages = folder / Path(sysconfig.get_path("platlib")).relative_to(sys.prefix)
    if not (packages / "numpy").is_dir():
        venv.create(folder, symlinks=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", str(packages), NUMPY], check=True)
        (packages / "recengine_bench.pth").write_text(sysconfig.get_path("platlib") + "\n")
    return folder


@contextmanager
def environment(venv_folder: Path) -> Iterator[None]:
    """Inside, a server that is started finds the stub's libraries and, by PATH, the packages."""
    carried = _wheels() / "nvidia_pytriton.libs"
    changed = {
        "LD_LIBRARY_PATH": f"{carried}:{sysconfig.get_config_var('LIBDIR')}",
        "PATH": f"{venv_folder.resolve() / 'bin'}:{os.environ.get('PATH', '')}",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    before = dict(os.environ)
    os.environ.update(changed)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _users(config: pb.ModelConfig, manifest: Manifest, ragged: bool) -> None:
    config.input.add(name="ids", data_type=pb.TYPE_INT64, dims=[-1], allow_ragged_batch=ragged)
    config.input.add(name="lengths", data_type=pb.TYPE_INT32, dims=[len(manifest.features) + 1])
    if manifest.dense_features:
        dims = [len(manifest.dense_features)]
        config.input.add(name="dense", data_type=pb.TYPE_FP32, dims=dims)


def _model(name: str, manifest: Manifest, bundle: Path, tuning: Tuning) -> pb.ModelConfig:
    config = pb.ModelConfig(name=name, backend="python", max_batch_size=tuning.max_batch_size)
    _users(config, manifest, tuning.ragged)
    candidates = [("candidate_rows", pb.TYPE_INT64), ("candidate_scores", pb.TYPE_FP32)]
    answer = [("item_ids", pb.TYPE_INT64), ("scores", pb.TYPE_FP32)]
    if name == "ranking":
        for tensor, kind in candidates:
            config.input.add(name=tensor, data_type=kind, dims=[-1])
    for tensor, kind in candidates if name == "retrieval" else answer:
        config.output.add(name=tensor, data_type=kind, dims=[-1])
    config.dynamic_batching.SetInParent()
    config.dynamic_batching.max_queue_delay_microseconds = tuning.queue_delay_us
    config.instance_group.add(count=tuning.instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    config.parameters["bundle"].string_value = str(bundle.resolve())
    config.parameters["threads"].string_value = str(tuning.threads)
    return config


def _ensemble(manifest: Manifest, tuning: Tuning) -> pb.ModelConfig:
    config = pb.ModelConfig(
        name="recommend", platform="ensemble", max_batch_size=tuning.max_batch_size
    )
    _users(config, manifest, ragged=False)
    config.output.add(name="item_ids", data_type=pb.TYPE_INT64, dims=[-1])
    config.output.add(name="scores", data_type=pb.TYPE_FP32, dims=[-1])
    users = {tensor.name: tensor.name for tensor in config.input}
    candidates = {name: name for name in ("candidate_rows", "candidate_scores")}
    answer = {name: name for name in ("item_ids", "scores")}
    for name, inputs, outputs in (
        ("retrieval", users, candidates),
        ("ranking", {**users, **candidates}, answer),
    ):
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        step.input_map.update(inputs)
        step.output_map.update(outputs)
    return config


def _write(folder: Path, config: pb.ModelConfig) -> None:
    (folder / config.name / "config.pbtxt").write_text(text_format.MessageToString(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    defaults = Tuning()
    parser.add_argument("--instances", type=int, default=defaults.instances)
    parser.add_argument("--threads", type=int, default=defaults.threads)
    parser.add_argument("--queue-delay-us", type=int, default=defaults.queue_delay_us)
    arguments = parser.parse_args()
    tuning = Tuning(
        instances=arguments.instances,
        threads=arguments.threads,
        queue_delay_us=arguments.queue_delay_us,
    )
    copy_backend(arguments.folder / "backends")
    make_environment(arguments.folder / "venv")
    write_repository(arguments.folder / "models", arguments.bundle, tuning)


if __name__ == "__main__":
    main()
