"""Searches on a GPU that are launched as graphs of the ones before."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from raw_client import RawClient, make_request, read_response
from split_server import compile_stages, place_on_gpu

from recengine import Engine
from recengine.client.wire import WireUsers
from recengine.serving.server import TritonServer

pytestmark = pytest.mark.cuda

MODEL = "retrieval_topk"
DIM = 8
UNKNOWN_ID = 4242424242


@pytest.fixture(scope="module")
def repository(golden, tmp_path_factory):
    return place_on_gpu(compile_stages(golden, tmp_path_factory.mktemp("gpu") / "repository"))


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    with TritonServer(repository, log=tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with RawClient(server.endpoints.grpc) as connected:
        yield connected


@pytest.fixture
def replays(server, read_metric):
    """How many searches were replays since the test began."""

    def read():
        return read_metric(server, "recengine_graph_replays_total", f'model="{MODEL}"')

    before = read()
    return lambda: read() - before


@pytest.fixture(scope="module")
def engine(repository):
    """The same stage on the CPU."""
    return Engine(repository / MODEL / "1")


@pytest.fixture
def make_users(users):
    def make(seed, batch, excluded, unknown=0):
        """Users of whom something is known, but for the last `unknown` ones, and their vectors."""
        rng = np.random.default_rng(seed)
        asked = users.batch(rng, batch)
        ids = np.full((batch, asked.ids.shape[1] + excluded + 1), -1)
        for row, lengths, raw in zip(ids, asked.lengths, asked.ids, strict=True):
            lengths[-1] = 0
            if lengths.sum() == 0:
                lengths[0], raw[0] = 1, rng.choice(users.vocabularies[0])
            count = lengths.sum()
            row[:count] = raw[:count]
            row[count : count + excluded] = rng.choice(users.items, excluded)
            lengths[-1] = excluded
        ids[batch - unknown :] = UNKNOWN_ID
        vectors = rng.normal(size=(batch, DIM)).astype(np.float32)
        return WireUsers(ids, asked.lengths, None), vectors

    return make


def ask(client, tensors, asked, vectors, k):
    named = {name: tensors(asked)[name] for name in ("ids", "lengths")}
    request = make_request(MODEL, named | {"user": vectors}, num_candidates=k)
    return read_response(client.send(request).result())


def assert_answered(found, engine, asked, vectors, k):
    item_ids, scores = engine.search(asked, vectors, k)
    np.testing.assert_array_equal(found["item_ids"], item_ids)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("k", [1, 19])  # not those of the warm-up
@pytest.mark.parametrize("excluded", [0, 2])
def test_searches_of_a_shape_are_replays_from_the_second_on_with_their_own_answers(
    client, engine, tensors, make_users, replays, batch, k, excluded
):
    for seed in range(6):
        asked, vectors = make_users(seed, batch, excluded)
        assert_answered(ask(client, tensors, asked, vectors, k), engine, asked, vectors, k)
    assert replays() == 5


def test_searches_of_many_shapes_are_answered_as_on_the_cpu(
    client, engine, tensors, make_users, replays
):
    rng = np.random.default_rng(0)
    for seed in range(200):
        batch, k, excluded = (int(rng.choice(any_of)) for any_of in ([1, 2, 5], [4, 30], [0, 1, 9]))
        asked, vectors = make_users(seed, batch, excluded, unknown=int(rng.integers(0, 2)))
        assert_answered(ask(client, tensors, asked, vectors, k), engine, asked, vectors, k)
    shapes = 3 * 2 * 3 * 2  # by batch, k, excluded and unknown
    assert replays() >= 200 - shapes


def test_more_shapes_than_a_slot_keeps_are_answered(client, engine, tensors, make_users, replays):
    shapes = [(batch, k) for batch in range(1, 10) for k in range(1, 31)]
    for seed, (batch, k) in enumerate([*shapes, *shapes[:20], *shapes[:20]]):
        asked, vectors = make_users(seed, batch, excluded=0)
        assert_answered(ask(client, tensors, asked, vectors, k), engine, asked, vectors, k)
    assert replays() >= 20


def test_a_replay_refuses_a_vector_that_is_not_finite(client, engine, tensors, make_users, replays):
    for seed in range(4):
        asked, vectors = make_users(seed, 2, excluded=0)
        vectors[1, 3] = np.nan
        named = {name: tensors(asked)[name] for name in ("ids", "lengths")} | {"user": vectors}
        _, message = client.refusal(make_request(MODEL, named, num_candidates=37))
        assert "user 1: expected a finite user vector" in message
    asked, vectors = make_users(9, 2, excluded=0)
    assert_answered(ask(client, tensors, asked, vectors, 37), engine, asked, vectors, 37)
    assert replays() == 1  # refused requests are not counted


def test_searches_at_once_are_answered_as_on_the_cpu(client, engine, tensors, make_users, replays):
    def call(seed):
        asked, vectors = make_users(seed, 1 + seed % 2, excluded=0)
        return asked, vectors, ask(client, tensors, asked, vectors, 10)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(call, range(200)))
    for asked, vectors, found in answers:
        assert_answered(found, engine, asked, vectors, 10)
    assert replays() > 0
