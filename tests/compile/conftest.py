"""Copies of the golden bundle that a test may change."""

import shutil

import pytest
from safetensors.numpy import load_file, save_file

from recengine.bundle import read_manifest, write_bundle


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
        return tmp_path / "changed"

    return make
