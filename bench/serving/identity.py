"""Builds the identity backend and a repository that serves it: the floor of serving numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from bench.compiler import compile_cpp

MODEL = "identity"
ENSEMBLE = "identity_ensemble"
"""Two identity steps: what Triton's ensemble costs when its models cost nothing."""
ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("identity.cc")


def build(folder: Path) -> Path:
    """Compiles libtriton_identity.so into `folder`, unless it is newer than its source."""
    library = folder / f"libtriton_{MODEL}.so"
    if library.exists() and library.stat().st_mtime > SOURCE.stat().st_mtime:
        return library
    flags = ["-shared", "-fPIC", "-fvisibility=hidden", "-I", str(ROOT / "csrc")]
    return compile_cpp(SOURCE, library, flags)


def write_repository(folder: Path) -> Path:
    """Builds the backend into the model's own directory, where Triton looks first."""
    model = folder / MODEL
    (model / "1").mkdir(parents=True, exist_ok=True)
    build(model)
    config = pb.ModelConfig(name=MODEL, backend=MODEL, max_batch_size=64)
    config.input.add(name="x", data_type=pb.TYPE_INT64, dims=[-1])
    config.output.add(name="y", data_type=pb.TYPE_INT64, dims=[-1])
    config.dynamic_batching.SetInParent()
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    (model / "config.pbtxt").write_text(text_format.MessageToString(config))
    ensemble = folder / ENSEMBLE
    (ensemble / "1").mkdir(parents=True, exist_ok=True)
    (ensemble / "config.pbtxt").write_text(text_format.MessageToString(_ensemble_config()))
    return folder


def _ensemble_config() -> pb.ModelConfig:
    config = pb.ModelConfig(name=ENSEMBLE, platform="ensemble", max_batch_size=64)
    config.input.add(name="x", data_type=pb.TYPE_INT64, dims=[-1])
    config.output.add(name="y", data_type=pb.TYPE_INT64, dims=[-1])
    for source, target in (("x", "between"), ("between", "y")):
        step = config.ensemble_scheduling.step.add(model_name=MODEL, model_version=-1)
        step.input_map["x"] = source
        step.output_map["y"] = target
    return config


def write_input_data(path: Path, width: int = 32) -> None:
    """One request of the size of a user's ids, for perf_analyzer."""
    tensor = {"content": list(range(width)), "shape": [width]}
    path.write_text(json.dumps({"data": [{"x": tensor}]}))


if __name__ == "__main__":
    print(write_repository(Path(sys.argv[1])))
