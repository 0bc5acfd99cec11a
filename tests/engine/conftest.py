"""The golden bundle in the engine, in the NumPy oracle, and copies that a test may change."""

import shutil

import numpy as np
import pytest
from bundle_copy import Copy
from reference import Reference
from safetensors.numpy import load_file

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


@pytest.fixture
def copy(golden, tmp_path):
    return Copy(shutil.copytree(golden, tmp_path / "bundle"))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
