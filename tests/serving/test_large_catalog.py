"""A catalog of which one search keeps two threads busy: what comes waits for the next batch."""

import os
import re
import signal
import time

import grpc
import numpy as np
import pytest
from raw_client import RawClient, Traffic, make_request, read_response

from bench.serving import synthetic
from recengine import Engine
from recengine.client.wire import WireUsers
from recengine.compile import compile_bundle
from recengine.compile.version_directory import CODES
from recengine.errors import ServerError
from recengine.serving.server import TritonServer

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ITEMS = 600_000
USERS = 60
MAX_BATCH_SIZE = 64
BATCHES = 60  # about what the queue holds
PATIENT = {"timeout": 60_000_000}  # microseconds


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    size = synthetic.Size(items=ITEMS, users=USERS, candidates=20, hidden=(8, 4))
    synthetic.write(folder / "bundle", size)
    with pytest.warns(UserWarning, match="has no reference answers"):
        return compile_bundle(folder / "bundle", folder / "repository")


@pytest.fixture(scope="module", params=[(1, "true"), (2, "false")])
def large(repository, tmp_path_factory, request):
    log = tmp_path_factory.mktemp("log") / "log"
    settings = dict(zip(("threads", "resident"), request.param, strict=True))
    arguments = [f"--backend-config=recengine,{name}={value}" for name, value in settings.items()]
    with (
        TritonServer(repository, log=log, arguments=arguments) as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        client.server = server
        yield client
    copied = re.findall(r"retrieval version 1: .* (\d+) MiB of tensors in memory", log.read_text())
    megabytes = ITEMS * 64 * 4 >> 20
    assert [int(count) >= megabytes for count in copied] == [True] * (
        settings["resident"] == "true"
    )


def test_codes_are_copied_unless_told_otherwise(repository):
    version = repository / "retrieval" / "1"
    codes = (version / CODES).stat().st_size
    sizes = [Engine(version, resident=wanted).memory.resident for wanted in (None, False, True)]
    assert sizes[:2] == [codes, 0]
    assert sizes[2] > ITEMS * 64 * 4


def test_resident_is_one_of_three(repository, tmp_path):
    arguments = ["--backend-config=recengine,resident=yes"]
    message = "resident: expected false, codes or true, found 'yes'"
    with (
        pytest.raises(ServerError, match=message),
        TritonServer(repository, log=tmp_path / "log", arguments=arguments),
    ):
        pass


def user(number):
    """The user's id, a history of three items, and two that are excluded."""
    rng = np.random.default_rng(number)
    ids = np.concatenate([[number % USERS], rng.integers(0, ITEMS, 5)])[None]
    return {"ids": ids, "lengths": np.array([[1, 3, 2]], np.int32)}


def test_searches_that_wait_run_together_and_answer_as_alone(large, repository):
    engine = Engine(repository / "retrieval" / "1")
    before = large.statistics("retrieval")
    futures = [large.send(make_request("retrieval", user(i), **PATIENT)) for i in range(300)]
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


def test_a_server_that_was_held_up_does_not_refuse_what_it_can_do(large):
    request = make_request("retrieval", user(0), timeout=2_000_000)
    with Traffic(large, request):  # one of these is being computed, or most likely
        for _ in range(4):
            time.sleep(0.1)
            os.kill(large.server.pid, signal.SIGSTOP)
            try:
                futures = [large.send(request) for _ in range(60)]
                time.sleep(0.4)
            finally:
                os.kill(large.server.pid, signal.SIGCONT)
            for future in futures:
                assert (read_response(future.result())["item_ids"] >= 0).all()


@pytest.mark.alone
def test_a_crowd_after_lone_requests_is_answered_if_its_batch_can_be(large):
    """A lone search reads the whole catalog; a batch does so once for all of its requests."""

    def timed(request):
        begin = time.monotonic()
        assert (read_response(large.send(request).result())["item_ids"] >= 0).all()
        return time.monotonic() - begin

    full = {name: np.repeat(rows, MAX_BATCH_SIZE, axis=0) for name, rows in user(0).items()}
    batch_s = np.median([timed(make_request("retrieval", full, **PATIENT)) for _ in range(9)])
    timeout = int(4e6 * batch_s) + 20_000  # with what the crowd takes to come
    crowd = [make_request("retrieval", user(i), timeout=timeout) for i in range(MAX_BATCH_SIZE)]
    for _ in range(5):  # the machine may be held up as long as that: once more then
        for i in range(100):
            timed(make_request("retrieval", user(i), **PATIENT))
        errors = [future.exception() for future in [large.send(request) for request in crowd]]
        if errors == [None] * MAX_BATCH_SIZE:
            break
    assert errors == [None] * MAX_BATCH_SIZE


def test_who_can_wait_is_not_refused_for_one_who_cannot(large):
    """A batch that would be late for one that waits begins without the others; they go next."""
    begin = time.monotonic()
    large.infer("retrieval", user(0))
    lone_us = 1e6 * (time.monotonic() - begin)
    patient, hurried = [], []
    for i in range(1200):
        patient.append(large.send(make_request("retrieval", user(i), **PATIENT)))
        if i % 8 == 0:
            timeout = int(lone_us * (1 + i % 50 / 10))
            hurried.append(large.send(make_request("retrieval", user(i), timeout=timeout)))
    assert [future.exception() for future in patient] == [None] * len(patient)
    assert {error.code() for future in hurried if (error := future.exception())} <= {UNAVAILABLE}


def test_what_is_late_when_it_was_retrieved_is_not_ranked(large):
    """Triton tells the ranking step the whole timeout again; the retrieval step, what is left."""
    full = {name: np.repeat(rows, MAX_BATCH_SIZE, axis=0) for name, rows in user(0).items()}
    request = make_request("recommend", full, timeout=300_000)
    for _ in range(5):  # until one is held up while its items are searched for
        futures = [large.send(request) for _ in range(30)]
        time.sleep(0.02)
        os.kill(large.server.pid, signal.SIGSTOP)
        try:
            time.sleep(0.4)
        finally:
            os.kill(large.server.pid, signal.SIGCONT)
        errors = [future.exception() for future in futures]
        assert {error and error.code() for error in errors} <= {None, UNAVAILABLE}
        # What a step itself has waited too long for says how long it might have.
        late = [error for error in errors if error and "deadline of 0 us" in error.details()]
        if late:
            break
    assert late
    assert (large.infer("recommend", user(1))["item_ids"] >= 0).all()


def test_a_batch_that_is_refused_lets_the_next_begin(large):
    bad = user(0) | {"lengths": np.array([[1, 3, 99]], np.int32)}
    for _ in range(3):
        futures = [large.send(make_request("recommend", bad)) for _ in range(40)]
        assert {future.code() for future in futures} == {grpc.StatusCode.INVALID_ARGUMENT}
        assert (large.infer("recommend", user(1))["item_ids"] >= 0).all()


def finished(client):
    """How many requests were computed, and how many ended otherwise."""
    stats = client.statistics("retrieval").inference_stats
    return stats.success.count, stats.fail.count


def wait_until_finished(client, requests):
    """A request is counted after it is answered; those that Triton dropped itself never are."""
    deadline = time.monotonic() + 2
    while sum(finished(client)) < requests and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.fixture
def waiting(large, read_metric):
    """How many rows wait in our queue."""
    return lambda: read_metric(large.server, "recengine_waiting_rows", 'model="retrieval"')


@pytest.fixture
def crowd(large, waiting):
    """Sends full batches, and what follows them, until the waiting rows are as wanted."""
    full = {name: np.repeat(rows, MAX_BATCH_SIZE, axis=0) for name, rows in user(0).items()}

    def send(wanted, follow=lambda: []):
        # A fast machine may serve them before a busy one has looked: once more then.
        for _ in range(5):
            before = finished(large)
            busy = [large.send(make_request("retrieval", full, **PATIENT)) for _ in range(BATCHES)]
            behind = follow()
            while not busy[-1].done():
                if wanted(rows := waiting()):
                    return busy, behind, rows, before
            for future in busy + behind:
                future.result()
            wait_until_finished(large, sum(before) + len(busy + behind))
        pytest.fail("nothing waited")

    return send


def test_what_waits_is_a_metric(crowd, waiting):
    assert waiting() == 0
    busy, _, rows, _ = crowd(lambda rows: rows > 0)  # the first ones may find a free thread
    assert rows <= (len(busy) - 1) * MAX_BATCH_SIZE
    for future in busy:
        future.result()
    assert waiting() == 0


def test_what_is_cancelled_while_it_waits_is_not_computed(large, crowd):
    def singles():
        return [large.send(make_request("retrieval", user(i), **PATIENT)) for i in range(20)]

    # What Triton has not handed over yet it drops itself: wait until our queue has it.
    busy, single, _, (computed, refused) = crowd(lambda rows: rows % MAX_BATCH_SIZE, singles)
    for future in single:
        future.cancel()
    assert not busy[-1].done(), "nothing waited any more"
    for future in busy:
        future.result()
    wait_until_finished(large, computed + refused + len(busy + single))
    assert finished(large)[0] - computed == len(busy)
    assert finished(large)[1] > refused, "Triton dropped all before our queue"
