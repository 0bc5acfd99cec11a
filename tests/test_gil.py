"""Native calls let other Python threads run."""

import ctypes
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from recengine import Engine, ops
from recengine.client.wire import WireUsers

LEAST = 3  # the first may come before the call has begun
RNG = np.random.default_rng(0)


def ticks_during(call):
    """How often another thread ran while `call` did; it sleeps for 1 ms in between."""
    ticks, done = [], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        while not ticks:
            time.sleep(0.001)
        begin = time.perf_counter()
        call()
        end = time.perf_counter()
    finally:
        done.set()
        thread.join()
    return sum(begin < at < end for at in ticks)


def vectors(rows):
    return RNG.standard_normal((rows, 64), np.float32)


def pool():
    tables = [ops.EmbeddingTable.from_array(vectors(50_000), "fp32")]
    rows = RNG.integers(0, 50_000, 4_000_000)
    lengths = np.full((40_000, 1), 100, np.int32)
    return lambda: ops.embedding_bag(tables, rows, lengths, pooling="sum", threads=1)


def search():
    index, queries = ops.ItemIndex(vectors(200_000)), vectors(4096)
    return lambda: ops.cosine_topk(index, queries, 100, threads=1)


def retrieve(golden):
    engine, users = Engine(golden, threads=1), many_users(golden)
    return lambda: engine.retrieve(users)


def recommend(golden):
    engine, users = Engine(golden, threads=1), many_users(golden)
    return lambda: engine.recommend(users)


def many_users(golden):
    tensors = load_file(golden / "reference.safetensors")
    names = ("ids", "lengths", "dense")
    return WireUsers(*(np.tile(tensors[name], (4000, 1)) for name in names))


def test_a_call_that_holds_the_gil_would_be_seen():
    held = ctypes.PyDLL(None).usleep
    assert ticks_during(lambda: held(100_000)) < LEAST
    assert ticks_during(lambda: time.sleep(0.1)) >= LEAST


@pytest.mark.parametrize("make", [pool, search], ids=lambda make: make.__name__)
def test_operations_let_other_threads_run(make):
    assert ticks_during(make()) >= LEAST


@pytest.mark.parametrize("make", [retrieve, recommend], ids=lambda make: make.__name__)
def test_an_engine_lets_other_threads_run(golden, make):
    assert ticks_during(make(golden)) >= LEAST
