"""What an engine on a GPU has beside the answers that test_stages.py compares."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from places import StagesOnGpu
from test_engine import assert_same, random_users

from bench.serving import synthetic
from recengine import DeviceEngine, Engine, ops
from recengine.client.wire import WireUsers
from recengine.errors import DeviceError, InputError

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def on_gpu(golden):
    return DeviceEngine(golden)


def test_arrays_of_the_host_are_refused_by_name(on_gpu, golden_users):
    batch = len(golden_users.ids)
    items, scores = np.zeros((batch, 2), np.int64), np.zeros((batch, 2), np.float32)
    with pytest.raises(InputError, match="user: expected an array on cuda:0, found one on the CPU"):
        on_gpu.search(golden_users, np.ones((batch, 8), np.float32))
    with pytest.raises(InputError, match=r"candidates: expected an array on cuda:0"):
        on_gpu.look_up_candidates(golden_users, items, scores)
    with pytest.raises(InputError, match="graph_scores: expected an array on cuda:0"):
        on_gpu.order(golden_users, ops.to_device(items), ops.to_device(scores), scores)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_arrays_of_another_type_are_refused_by_name(on_gpu, golden_users, dtype):
    vectors = ops.to_device(np.ones((len(golden_users.ids), 8), dtype))
    with pytest.raises(InputError, match="user: expected <f4"):
        on_gpu.search(golden_users, vectors)


def test_sizes_and_devices_that_are_not_there_are_refused(on_gpu, golden, golden_users):
    vectors = ops.to_device(np.ones((len(golden_users.ids), 8), np.float32))
    with pytest.raises(InputError, match="k: expected 1 to 64, found 65"):
        on_gpu.search(golden_users, vectors, 65)
    with pytest.raises(InputError, match="device: expected at least 0, found -1"):
        DeviceEngine(golden, -1)
    with pytest.raises(DeviceError, match="cuda"):
        DeviceEngine(golden, 63)


def test_searches_are_the_cpus_to_the_bit(engine, golden, oracle, rng):
    users = random_users(rng, oracle, 64)
    vectors = rng.normal(size=(64, 8)).astype(np.float32)
    assert_same(StagesOnGpu(golden).search(users, vectors), engine.search(users, vectors), rtol=0)


def test_calls_from_many_threads_answer_as_each_alone(golden, oracle, rng):
    stages = StagesOnGpu(golden)
    users = [random_users(rng, oracle, 7) for _ in range(12)]
    vectors = rng.normal(size=(12, 7, 8)).astype(np.float32)

    def call(i):
        candidates = stages.search(users[i], vectors[i], 5)
        inputs = stages.look_up_candidates(users[i], *candidates)
        return [*candidates, *inputs.values(), stages.look_up(users[i])["sparse"]]

    alone = [call(i) for i in range(12)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(call, range(12)))
    for expected, found in zip(alone, together, strict=True):
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.fixture
def bundle(tmp_path):
    """One whose tables no engine has that outlives its test."""
    size = synthetic.Size(items=300, users=500, candidates=5, hidden=(8, 4), row_type="int8")
    synthetic.write(tmp_path / "bundle", size)
    return tmp_path / "bundle"


def test_engines_whose_files_hold_the_same_rows_share_tables(bundle, tmp_path):
    (tmp_path / "copy").mkdir()
    for file in bundle.iterdir():  # no links: what counts is what a file holds
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    first = DeviceEngine(bundle)
    tables = first.memory.device_tables
    assert tables > 0
    assert first.memory.device_shared == 0
    second = DeviceEngine(tmp_path / "copy")
    assert (second.memory.device_tables, second.memory.device_shared) == (tables, tables)
    del first
    assert DeviceEngine(bundle).memory.device_shared == tables


def test_tables_go_with_the_last_engine_that_has_them(bundle):
    for _ in range(2):
        assert DeviceEngine(bundle).memory.device_shared == 0


def test_tables_of_which_the_same_part_is_held_are_shared(bundle):
    whole = DeviceEngine(bundle)
    first, other = (DeviceEngine(bundle, table_bytes=held) for held in (4_000, 5_000))
    assert whole.memory.device_tables != first.memory.device_tables > 0
    for engine in (whole, first, other):
        assert engine.memory.device_shared == 0
    second = DeviceEngine(bundle, table_bytes=4_000)
    assert second.memory.device_shared == second.memory.device_tables
    assert second.memory == first.memory._replace(device_shared=second.memory.device_tables)


@pytest.mark.parametrize("table_bytes", [None, 4_000])
def test_a_shared_table_outlives_the_engine_that_loaded_it(bundle, table_bytes):
    users = WireUsers(
        ids=np.arange(60).reshape(30, 2), lengths=np.tile(np.int32([1, 1, 0]), (30, 1)), dense=None
    )
    expected = Engine(bundle).look_up(users)["sparse"]
    first = DeviceEngine(bundle, table_bytes=table_bytes)
    second = DeviceEngine(bundle, table_bytes=table_bytes)
    assert second.memory.device_shared > 0
    del first
    end = time.monotonic() + 1.5  # hot rows are chosen anew every second
    while time.monotonic() < end:
        found = second.look_up(users)["sparse"].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_engines_that_load_at_the_same_time_share_tables(bundle):
    with ThreadPoolExecutor(4) as threads:
        engines = list(threads.map(DeviceEngine, [bundle] * 4))
    memories = [engine.memory for engine in engines]
    assert sum(memory.device_tables - memory.device_shared for memory in memories) == (
        memories[0].device_tables
    )


@pytest.mark.parametrize("table_bytes", [1, 700, 4_000, 1 << 30])
def test_tables_that_do_not_fit_are_looked_up_to_the_same_bits(golden, oracle, rng, table_bytes):
    whole, part = StagesOnGpu(golden), StagesOnGpu(golden, table_bytes=table_bytes)
    users = random_users(rng, oracle, 30)
    candidates = rng.choice([*oracle.keys, -1, 12345], size=(30, 9))
    scores = rng.normal(size=candidates.shape).astype(np.float32)
    expected = [whole.look_up(users), whole.look_up_candidates(users, candidates, scores)]
    for _ in range(3):
        found = [part.look_up(users), part.look_up_candidates(users, candidates, scores)]
        for one, other in zip(expected, found, strict=True):
            for name in one:
                np.testing.assert_array_equal(other[name], one[name])
        time.sleep(0.6)  # the rows that are held may become others in between


def test_a_budget_of_nothing_is_refused(golden):
    with pytest.raises(InputError, match="table_bytes: expected at least 1, found 0"):
        DeviceEngine(golden, table_bytes=0)
