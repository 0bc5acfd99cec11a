"""Engines whose tensors are copied into memory."""

import os
from pathlib import Path

import numpy as np
import pytest

from bench.serving import synthetic
from recengine.client.wire import WireUsers
from recengine.engine import Engine
from recengine.errors import BundleError

ITEMS = 20_000
USERS = 60
TENSORS = "index.safetensors"


@pytest.fixture
def bundle(tmp_path):
    size = synthetic.Size(items=ITEMS, users=USERS, candidates=20, hidden=(8, 4))
    synthetic.write(tmp_path / "bundle", size)
    (tmp_path / "bundle" / TENSORS).chmod(0o644)  # tests damage it
    return tmp_path / "bundle"


@pytest.fixture
def users():
    rng = np.random.default_rng(0)
    ids = np.column_stack([np.arange(30), rng.integers(0, ITEMS, (30, 5))])
    return WireUsers(ids=ids, lengths=np.tile(np.int32([1, 3, 2]), (30, 1)), dense=None)


def assert_same(found, expected):
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_tensors_of_two_megabytes_and_more_are_copied(bundle):
    sizes = {file.name: file.stat().st_size for file in bundle.iterdir()}
    del sizes["manifest.json"]
    large = sum(n for name, n in sizes.items() if name.endswith(".safetensors") and n >= 2 << 20)
    assert large > ITEMS * 64 * 4
    mapped, resident = Engine(bundle).memory, Engine(bundle, resident=True).memory
    assert mapped == (sum(sizes.values()), 0, 0, 0, 0)
    assert resident[:2] == (sum(sizes.values()) - large, large)
    assert 0 <= resident.huge <= large


def test_answers_are_those_of_a_mapped_engine_and_need_no_file(bundle, users):
    expected = Engine(bundle, threads=1).recommend(users)
    engines = [Engine(bundle, threads=n, resident=True) for n in (1, 2)]
    # A mapped engine would end with SIGBUS.
    os.truncate(bundle / TENSORS, 0)
    for engine in engines:
        assert_same(engine.recommend(users), expected)
    del engines[0]
    assert_same(engines[0].recommend(users), expected)


def anonymous_bytes():
    """What the process has in memory that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) << 10


def test_engines_share_a_copy(tmp_path):
    size = synthetic.Size(items=100_000, users=USERS, candidates=20, hidden=(8, 4))
    synthetic.write(tmp_path / "bundle", size)
    engines = [Engine(tmp_path / "bundle", threads=1, resident=True)]
    grown = {False: 0, True: 0}
    # By turns: what an engine allocates besides varies.
    for resident in [False, True] * 8:
        before = anonymous_bytes()
        engines.append(Engine(tmp_path / "bundle", threads=1, resident=resident))
        grown[resident] += anonymous_bytes() - before
    assert grown[True] < grown[False] + 4 * engines[-1].memory.resident


def test_a_copy_is_verified(bundle):
    data = bytearray((bundle / TENSORS).read_bytes())
    data[-1] ^= 1
    (bundle / TENSORS).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{TENSORS}: chunk \d+: expected SHA-256"):
        Engine(bundle, resident=True)
