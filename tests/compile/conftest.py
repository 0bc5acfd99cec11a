"""Copies of the golden bundle that a test may change."""

import shutil
import sys

import pytest
from safetensors.numpy import load_file, save_file
from strict_tensorrt import GPU, PLAN, TIMINGS, VERSIONS, StrictTensorRT, load_network

from recengine.bundle import read_manifest, write_bundle
from recengine.compile import tensorrt


@pytest.fixture
def bundle(golden):
    return golden


@pytest.fixture
def changed_bundle(bundle, tmp_path):
    """A copy of the bundle after `change(tensors)` of one file, its hashes right again."""

    def make(file=None, change=None, **update):
        staging = shutil.copytree(bundle, tmp_path / "staging")
        if file is not None:
            tensors = load_file(staging / file)
            change(tensors)
            save_file(tensors, staging / file)
        manifest = read_manifest(staging).model_copy(update=update)
        write_bundle(staging, manifest, tmp_path / "changed")
        for path in (tmp_path / "changed").iterdir():
            path.chmod(0o644)  # a test may change it further
        return tmp_path / "changed"

    return make


@pytest.fixture
def bundle_copy(bundle, tmp_path):
    """The same files in a folder of their own: timings are kept beside it."""
    return shutil.copytree(bundle, tmp_path / "work" / "bundle")


@pytest.fixture(params=VERSIONS)
def trt(request, monkeypatch):
    """The bindings of one version, and a GPU to build on."""
    module = StrictTensorRT(request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt, "current_gpu", lambda: GPU)
    module.answers |= {
        "Builder.build_serialized_network": PLAN,
        "ITimingCache.serialize": TIMINGS,
        "IBuilderConfig.add_optimization_profile": 0,
        "OnnxParser.parse": lambda parser, model: load_network(module, model),
    }
    for name in ("name", "dtype", "shape"):
        module.answers[f"ITensor.{name}"] = lambda tensor, name=name: vars(tensor)["is"][name]
    return module
