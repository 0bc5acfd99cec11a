"""Lookups and searches on a GPU that are launched as graphs of the ones before."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from raw_client import RawClient, make_request, read_response
from split_server import compile_stages, place_on_gpu

from recengine import Engine
from recengine.client.wire import WireUsers
from recengine.compile.split import STAGES
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
def replays_of(server, read_metric):
    """How many of a model's calls were replays since the test began."""

    def read(model):
        return read_metric(server, "recengine_graph_replays_total", f'model="{model}"')

    before = {model: read(model) for model in STAGES}
    return lambda model: read(model) - before[model]


@pytest.fixture
def replays(replays_of):
    return lambda: replays_of(MODEL)


@pytest.fixture(scope="module")
def engines(repository):
    """The same stages on the CPU."""
    return {model: Engine(repository / model / "1") for model in STAGES}


@pytest.fixture(scope="module")
def engine(engines):
    return engines[MODEL]


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


@pytest.fixture
def make_inputs(users, tensors):
    """Inputs of any stage, of users with all the ids that a feature may have."""

    def make(seed, batch, candidates):
        rng = np.random.default_rng(seed)
        lists = [
            rng.choice(keys, (batch, length))
            for keys, length in zip(users.vocabularies, users.max_lengths, strict=True)
        ]
        lengths = np.tile(np.array([*users.max_lengths, 0], np.int32), (batch, 1))
        dense = rng.normal(size=(batch, users.num_dense)).astype(np.float32)
        asked = WireUsers(np.concatenate(lists, axis=1), lengths, dense)
        named = tensors(asked) | users.candidates(rng, batch, candidates)
        named["graph_scores"] = rng.normal(size=(batch, candidates)).astype(np.float32)
        return asked, named

    return make


CANDIDATES = ("candidates", "candidate_scores")


def look_up(client, named, model, names):
    request = make_request(model, {name: named[name] for name in names})
    return read_response(client.send(request).result())


def assert_looked_up(found, expected):
    np.testing.assert_allclose(found["sparse"], expected["sparse"], rtol=1e-6, atol=1e-6)
    if "items" in expected:
        np.testing.assert_array_equal(found["items"], expected["items"])
        np.testing.assert_array_equal(found["item_scores"], expected["candidate_scores"])


@pytest.mark.parametrize("batch", [2, 19])  # not those of the warm-up
@pytest.mark.parametrize("model", ["retrieval_lookup", "ranking_lookup"])
def test_lookups_of_a_shape_are_replays_from_the_second_on_with_their_own_answers(
    client, engines, make_inputs, replays_of, batch, model
):
    names = ("ids", "lengths", "dense", *(CANDIDATES if model == "ranking_lookup" else ()))
    for seed in range(6):
        asked, named = make_inputs(seed, batch, candidates=7)
        found = look_up(client, named, model, names)
        given = [named[name] for name in names[3:]]
        engine = engines[model]
        assert_looked_up(
            found, (engine.look_up_candidates if given else engine.look_up)(asked, *given)
        )
    assert replays_of(model) == 5


def test_lookups_of_few_and_many_ids_and_candidates_are_answered_as_on_the_cpu(
    client, engines, users, tensors, replays_of
):
    rng = np.random.default_rng(0)
    for _ in range(120):
        batch, count = (int(rng.choice(any_of)) for any_of in ([1, 3, 6], [0, 1, 9]))
        asked = users.batch(rng, batch)
        named = tensors(asked) | users.candidates(rng, batch, count)
        if count > 1:
            named["candidates"][:, 1] = -1
        found = look_up(client, named, "ranking_lookup", ("ids", "lengths", "dense", *CANDIDATES))
        given = [named[name] for name in CANDIDATES]
        assert_looked_up(found, engines["ranking_lookup"].look_up_candidates(asked, *given))
    assert replays_of("ranking_lookup") > 60


def test_lookups_in_tables_with_a_cache_are_replays(
    repository, tmp_path, engines, make_inputs, read_metric
):
    arguments = ["--backend-config=recengine,gpu-table-bytes=700"]
    with (
        TritonServer(repository, arguments=arguments, log=tmp_path / "log") as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        for seed in range(20):
            asked, named = make_inputs(seed, 5, candidates=7)
            found = look_up(client, named, "retrieval_lookup", ("ids", "lengths", "dense"))
            assert_looked_up(found, engines["retrieval_lookup"].look_up(asked))
            time.sleep(0.1)  # rows of the cache change every second
        replays = read_metric(server, "recengine_graph_replays_total", 'model="retrieval_lookup"')
    assert replays >= 18


def test_order_is_one_kernel_and_no_graph(client, engines, make_inputs, replays_of):
    names = ("ids", "lengths", *CANDIDATES, "graph_scores")
    for seed in range(4):
        asked, named = make_inputs(seed, 3, candidates=9)
        asked.ids[seed % 3] = UNKNOWN_ID
        request = make_request("ranking_order", {name: named[name] for name in names}, k=5)
        found = read_response(client.send(request).result())
        users = WireUsers(asked.ids, asked.lengths, None)
        given = [named[name] for name in names[2:]]
        item_ids, scores = engines["ranking_order"].order(users, *given, k=5)
        np.testing.assert_array_equal(found["item_ids"], item_ids)
        np.testing.assert_array_equal(found["scores"], scores)
    assert replays_of("ranking_order") == 0
