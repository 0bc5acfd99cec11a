"""Both clients against a real server."""

import asyncio
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from recengine import Engine
from recengine.bundle import load_tensor, read_manifest
from recengine.client import RecommenderClient, WireUsers, pack_users
from recengine.client.aio import RecommenderClient as AsyncRecommenderClient
from recengine.errors import (
    AccessDenied,
    DeadlineExceeded,
    InputError,
    ServerError,
    ServerUnavailable,
)
from recengine.serving.server import TritonServer, find_backends, find_tritonserver

TIMEOUT = 10.0  # s; the machine may be busy
_SELF_SIGNED = [
    *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
    *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
]
SECRET = {"Triton-GRPC-Protocol-Recommender": "let-me-in"}


class Driven:
    """The asyncio client under a loop of its own, so that one test serves both."""

    def __init__(self, url, **options):
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(self._make(url, options))

    async def _make(self, url, options):
        return AsyncRecommenderClient(url, **options)

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    @property
    def schema(self):
        return self._loop.run_until_complete(self._client.schema())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[RecommenderClient, Driven], ids=["sync", "async"])
def make_client(request):
    return request.param


@pytest.fixture
def client(make_client, golden_server):
    with make_client(golden_server.endpoints.grpc, timeout=TIMEOUT) as client:
        yield client


@pytest.fixture(scope="module")
def engine(golden):
    return Engine(golden)


@pytest.fixture(scope="module")
def items(golden):
    index = read_manifest(golden).retrieval.index
    return load_tensor(golden, index.keys).tolist()


@pytest.fixture(scope="module")
def users(items):
    return [
        {"user_id": 103, "history": items[4:9], "country": "fr", "age": 0.5, "activity": 1},
        {"history": items[:40], "country": ["jp"], "age": -1, "activity": 0.25},
        {"user_id": 5, "country": "atlantis", "age": 0, "activity": 0},
    ]


@pytest.fixture(scope="module")
def exclude(items):
    return [items[4:9], [], items[:2]]


def equal(answer, expected):
    item_ids, scores = expected
    assert answer.item_ids.tolist() == item_ids.tolist()
    np.testing.assert_allclose(answer.scores, scores, rtol=1e-5, atol=1e-6)


def test_named_features_get_the_answer_of_the_engine_in_process(client, engine, users, exclude):
    wire = pack_users(engine.schema, users, exclude)
    equal(client.recommend(users, exclude=exclude), engine.recommend(wire))
    equal(
        client.recommend(users, k=3, num_candidates=8, exclude=exclude),
        engine.recommend(wire, k=3, num_candidates=8),
    )


def test_a_lone_user_is_a_batch_of_one(client, engine, users, exclude):
    answer = client.recommend(users[0], exclude=exclude[0])
    equal(answer, engine.recommend(pack_users(engine.schema, users[:1], exclude[:1])))
    assert len(answer) == 1
    assert [item for item, _ in answer[0]] == answer.item_ids[0].tolist()


def test_packed_users_are_sent_as_they_are(client, engine, users):
    wire = pack_users(engine.schema, users)
    equal(client.recommend(wire), engine.recommend(wire))
    with pytest.raises(InputError, match="packed users carry their excluded items"):
        client.recommend(wire, exclude=[[1]] * len(users))


def test_retrieve_and_rank_are_the_two_halves(client, engine, users):
    wire = pack_users(engine.schema, users)
    candidates = client.retrieve(users, k=12)
    equal(candidates, engine.retrieve(wire, k=12))
    ranked = client.rank(users, candidates.item_ids, candidates.scores, k=5)
    equal(ranked, engine.rank(wire, candidates.item_ids, candidates.scores, k=5))


def test_padding_is_left_out_when_iterating(client, users, items):
    answer = client.recommend(users[:2], exclude=[items[5:], items])
    assert answer.item_ids.shape == (2, 10)
    assert [len(pairs) for pairs in answer] == [5, 0]


def test_the_schema_is_the_served_one(client, engine):
    assert client.schema == engine.schema


def test_many_threads_share_one_client(golden_server, engine, users):
    expected = engine.recommend(pack_users(engine.schema, users[:1]))
    with (
        RecommenderClient(golden_server.endpoints.grpc, timeout=TIMEOUT) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        for answer in pool.map(lambda _: client.recommend(users[0]), range(200)):
            equal(answer, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"histroy": [1]}, "user 0: unknown feature 'histroy'"),
        ({"user_id": "ann"}, "user 0, 'user_id': expected an int64 id, found str 'ann'"),
        ({"age": float("nan")}, "user 0, 'age': expected a finite float32"),
    ],
)
def test_a_user_that_does_not_fit_the_schema_is_not_sent(client, users, change, message):
    with pytest.raises(InputError, match=message):
        client.recommend(users[0] | change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, r"\[k\] expected 1 to 64, found 0"),
        ({"k": 65}, r"\[k\] expected 1 to 64, found 65"),
        ({"k": 2.5}, r"\[k\] expected an integer, found float"),
        ({"num_candidates": -1}, r"\[num_candidates\] expected 1 to 64, found -1"),
        ({"timeout": 0}, r"\[timeout\] expected seconds above 0, found 0"),
        ({"exclude": [["x"]]}, "'exclude': expected an int64 id, found str 'x'"),
        ({"exclude": [[1], [2]]}, "expected one list of item ids per user, 1, found 2"),
    ],
)
def test_bad_arguments_are_not_sent(client, users, arguments, message):
    with pytest.raises(InputError, match=message):
        client.recommend(users[:1], **arguments)


def test_a_batch_beyond_the_servers_is_not_sent(client, users):
    with pytest.raises(InputError, match="expected at most 64 users per request, found 66"):
        client.recommend(users * 22)


def test_bad_candidates_are_not_sent(client, users):
    with pytest.raises(InputError, match=r"\[candidates\] expected int64 \[1, n\], found float64"):
        client.rank(users[0], [1.5], [0.5])
    with pytest.raises(InputError, match=r"\[candidate_scores\] expected \[1, 2\]"):
        client.rank(users[0], [1, 2], [0.5])
    with pytest.raises(InputError, match=r"\[candidates\] expected at most 64 per user, found 65"):
        client.rank(users[0], list(range(65)), [0.0] * 65)


def test_what_the_server_refuses_is_an_input_error_with_its_words(client, engine, users):
    wire = pack_users(engine.schema, users[:1])
    bad = WireUsers(wire.ids, wire.lengths + 100, wire.dense)
    with pytest.raises(InputError, match=r"^\[recommend\] INVALID_ARGUMENT: .*lengths"):
        client.recommend(bad)


def test_no_answer_within_the_deadline_is_said_so(client, users):
    assert client.schema  # read before, so that the deadline is the request's own
    with pytest.raises(DeadlineExceeded):
        client.recommend(users, timeout=1e-5)


def test_an_unknown_model_is_named(make_client, golden_server, users):
    with make_client(golden_server.endpoints.grpc, model="nothing", timeout=TIMEOUT) as client:
        assert not client.ready()
        with pytest.raises(ServerError, match=r"^\[nothing\] NOT_FOUND: .*unknown model"):
            client.recommend(users)


def test_ready_tells_whether_somebody_is_there(client, make_client):
    assert client.ready()
    with make_client("127.0.0.1:1") as nobody:
        assert not nobody.ready()


def test_nobody_there_is_server_unavailable_within_the_deadline(make_client, users):
    with make_client("127.0.0.1:1", timeout=0.3) as client:
        start = time.monotonic()
        with pytest.raises(ServerUnavailable, match="failed to connect"):
            client.recommend(users)
        assert time.monotonic() - start < 2


def test_a_url_with_a_scheme_is_refused(make_client):
    with pytest.raises(InputError, match=r"expected host:port, found 'http://127\.0"):
        make_client("http://127.0.0.1:8001")


@pytest.mark.alone
def test_a_call_waits_for_a_server_that_restarts(make_client, golden_repository, tmp_path, users):
    log = tmp_path / "log"
    with TritonServer(golden_repository, log=log) as server:
        address = server.endpoints.grpc
        client = make_client(address, timeout=TIMEOUT)
        before = client.recommend(users)
    port = int(address.rpartition(":")[2])
    with client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.recommend, users, timeout=30.0)
        with TritonServer(golden_repository, grpc_port=port, log=log):
            ready = time.monotonic()
            after = waiting.result()
            assert time.monotonic() - ready < 1.0
    assert after.item_ids.tolist() == before.item_ids.tolist()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    subprocess.run(
        [openssl, *_SELF_SIGNED, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def secured(certificate, golden_repository, tmp_path_factory):
    """Address of a server that wants TLS and, for inference, a header."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    log = tmp_path_factory.mktemp("secured") / "log"
    with log.open("w") as sink:
        server = subprocess.Popen(
            [
                find_tritonserver(),
                f"--model-repository={golden_repository}",
                f"--backend-directory={find_backends()}",
                "--allow-http=false",
                "--allow-metrics=false",
                "--grpc-address=127.0.0.1",
                f"--grpc-port={address.rpartition(':')[2]}",
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={certificate / 'cert.pem'}",
                f"--grpc-server-key={certificate / 'key.pem'}",
                "--grpc-restricted-protocol=inference:recommender=let-me-in",
            ],
            stdout=sink,
            stderr=sink,
        )
    try:
        deadline = time.monotonic() + 30
        with RecommenderClient(
            address, ssl=True, root_certificates=str(certificate / "cert.pem")
        ) as client:
            while not client.ready():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def test_tls_and_headers_reach_the_server(make_client, secured, certificate, engine, users):
    tls = {"ssl": True, "root_certificates": str(certificate / "cert.pem"), "timeout": TIMEOUT}
    expected = engine.recommend(pack_users(engine.schema, users))
    with make_client(secured, headers=SECRET, **tls) as client:
        equal(client.recommend(users), expected)
    with make_client(secured, **tls) as client:
        equal(client.recommend(users, headers=SECRET), expected)
        start = time.monotonic()
        with pytest.raises(AccessDenied, match="This protocol is restricted"):
            client.recommend(users)
        assert time.monotonic() - start < TIMEOUT / 2  # not retried until the deadline


def test_a_server_with_tls_is_not_there_for_a_client_without(make_client, secured, users):
    with make_client(secured, timeout=0.5) as client, pytest.raises(ServerUnavailable):
        client.recommend(users)


def test_an_unknown_certificate_is_not_trusted(make_client, secured, users):
    with (
        make_client(secured, ssl=True, timeout=0.5) as client,
        pytest.raises(ServerUnavailable, match=r"(?i)ssl|certificate|handshake"),
    ):
        client.recommend(users)
