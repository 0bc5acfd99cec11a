"""A catalog of which one search keeps two threads busy: what comes waits for the next batch."""

import grpc
import numpy as np
import pytest
from raw_client import RawClient, make_request, read_response

from bench.serving import synthetic
from recengine import Engine
from recengine.client.wire import WireUsers
from recengine.compile import compile_bundle
from recengine.serving.server import TritonServer

ITEMS = 200_000
USERS = 60


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    size = synthetic.Size(items=ITEMS, users=USERS, candidates=20, hidden=(8, 4))
    synthetic.write(folder / "bundle", size)
    with pytest.warns(UserWarning, match="has no reference answers"):
        return compile_bundle(folder / "bundle", folder / "repository")


@pytest.fixture(scope="module", params=[1, 2])
def large(repository, tmp_path_factory, request):
    log = tmp_path_factory.mktemp("log") / "log"
    threads = [f"--backend-config=recengine,threads={request.param}"]
    with (
        TritonServer(repository, log=log, arguments=threads) as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        yield client


def user(number):
    """The user's id, a history of three items, and two that are excluded."""
    rng = np.random.default_rng(number)
    ids = np.concatenate([[number % USERS], rng.integers(0, ITEMS, 5)])[None]
    return {"ids": ids, "lengths": np.array([[1, 3, 2]], np.int32)}


def test_searches_that_wait_run_together_and_answer_as_alone(large, repository):
    engine = Engine(repository / "retrieval" / "1")
    before = large.statistics("retrieval")
    futures = [large.send(make_request("retrieval", user(i))) for i in range(300)]
    for i, future in enumerate(futures):
        items, scores = engine.retrieve(WireUsers(**user(i), dense=None))
        answer = read_response(future.result())
        np.testing.assert_array_equal(answer["item_ids"], items)
        np.testing.assert_array_equal(answer["scores"], scores)
    after = large.statistics("retrieval")
    assert after.inference_count - before.inference_count == 300
    assert after.execution_count - before.execution_count < 300


def test_requests_one_after_another_all_find_a_thread(large):
    for i in range(300):
        assert (large.infer("retrieval", user(i))["item_ids"] >= 0).all()


def test_a_batch_that_is_refused_lets_the_next_begin(large):
    bad = user(0) | {"lengths": np.array([[1, 3, 99]], np.int32)}
    for _ in range(3):
        futures = [large.send(make_request("recommend", bad)) for _ in range(40)]
        assert {future.code() for future in futures} == {grpc.StatusCode.INVALID_ARGUMENT}
        assert (large.infer("recommend", user(1))["item_ids"] >= 0).all()
