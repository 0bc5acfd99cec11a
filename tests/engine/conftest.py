"""The golden bundle in the engine, in the NumPy oracle, and copies that a test may change."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from reference import Reference
from safetensors.numpy import load_file

from recengine.bundle import hash_file
from recengine.client.wire import WireUsers
from recengine.engine import Engine


@pytest.fixture(scope="session")
def engine(golden):
    return Engine(golden, threads=2)


@pytest.fixture(scope="session")
def oracle(golden):
    return Reference(golden)


@pytest.fixture(scope="session")
def golden_answers(golden):
    """The golden users and what the oracle answered when the bundle was made."""
    return load_file(golden / "reference.safetensors")


@pytest.fixture(scope="session")
def golden_users(golden_answers):
    return WireUsers(golden_answers["ids"], golden_answers["lengths"], golden_answers["dense"])


@pytest.fixture(scope="session")
def item_keys(oracle):
    return oracle.keys


class Copy:
    """A copy of the golden bundle, to be changed."""

    def __init__(self, directory: Path):
        self.directory = directory

    def manifest(self):
        return json.loads((self.directory / "manifest.json").read_text())

    def write_manifest(self, manifest):
        (self.directory / "manifest.json").write_text(json.dumps(manifest))

    def rehash(self, name):
        """Makes the manifest agree with a changed file, so that a reader looks into it."""
        manifest = self.manifest()
        manifest["files"][name] = hash_file(self.directory / name).model_dump()
        self.write_manifest(manifest)


@pytest.fixture
def copy(golden, tmp_path):
    return Copy(shutil.copytree(golden, tmp_path / "bundle"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
