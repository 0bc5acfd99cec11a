"""Both clients against a real server."""

import asyncio
import contextlib
import dataclasses
import http.server
import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from recengine import Engine
from recengine.bundle import MANIFEST, load_tensor, read_manifest
from recengine.client import RecommenderClient, WireUsers, pack_users
from recengine.client.aio import RecommenderClient as AsyncRecommenderClient
from recengine.compile import compile_bundle
from recengine.errors import (
    AccessDenied,
    DeadlineExceeded,
    InputError,
    ServerError,
    ServerUnavailable,
)
from recengine.serving.server import TritonServer

TIMEOUT = 10.0  # s; the machine may be busy
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


@pytest.fixture(scope="module")
def with_means(golden, tmp_path_factory):
    """A server of the golden bundle, whose training knew means of the dense features."""
    folder = tmp_path_factory.mktemp("means")
    bundle = shutil.copytree(golden, folder / "bundle")
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["provenance"]["dense_means"] = {"age": 0.5, "activity": -1.25}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    repository = compile_bundle(bundle, folder / "model_repository")
    with TritonServer(repository, log=folder / "log") as server:
        yield server.endpoints.grpc


def test_unknown_dense_features_are_the_means_of_training(make_client, with_means, engine, users):
    sparse = [{key: user[key] for key in user if key not in ("age", "activity")} for user in users]
    filled = [{**user, "age": 0.5, "activity": -1.25} for user in sparse]
    expected = engine.recommend(pack_users(engine.schema, filled))
    with make_client(with_means, timeout=TIMEOUT) as client:
        equal(client.recommend(sparse), expected)
        equal(client.recommend([{**user, "age": None} for user in sparse]), expected)


def test_a_cold_user_gets_the_fallback_list(make_client, with_means, golden, users):
    fallback = read_manifest(golden).retrieval.fallback
    keys = load_tensor(golden, read_manifest(golden).retrieval.index.keys)
    popular = keys[load_tensor(golden, fallback.rows)].tolist()
    with make_client(with_means, timeout=TIMEOUT) as client:
        for user in ({}, {"age": 2.0, "activity": 0.5}):
            answer = client.retrieve([user, users[0]], k=10)
            assert answer.item_ids[0].tolist() == popular[:10]
            assert client.recommend(user).item_ids[0].tolist() == popular[:10]


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
        ({"timeout": "1"}, r"\[timeout\] expected seconds above 0, found '1'"),
        ({"headers": {"Token": 1}}, r"\[headers\] 'Token': expected str, found int"),
        ({"headers": {"Token": b"x"}}, r"\[headers\] 'Token': expected str, found bytes"),
        ({"headers": {"a-bin": "x"}}, r"\[headers\] 'a-bin': expected bytes, found str"),
        ({"headers": {"a": "x\n"}}, r"\[headers\] 'a': expected printable ASCII, found '\\n'"),
        (
            {"headers": {"a": "h\u00e9"}},
            r"\[headers\] 'a': expected printable ASCII, found '\u00e9'",
        ),
        ({"headers": {"a b": "x"}}, r"\[headers\] expected a name of letters, .* found 'a b'"),
        ({"headers": {1: "x"}}, r"\[headers\] expected a name of letters, .* found 1"),
        ({"headers": [("a", "x")]}, r"\[headers\] expected a mapping, found list"),
        ({"exclude": [["x"]]}, "'exclude': expected an int64 id, found str 'x'"),
        ({"exclude": [[1], [2]]}, "expected one list of item ids per user, 1, found 2"),
    ],
)
def test_bad_arguments_are_not_sent(client, users, arguments, message):
    with pytest.raises(InputError, match=message):
        client.recommend(users[:1], **arguments)


def test_excluded_items_may_be_sets_or_none(client, engine, users, exclude):
    alike = [set(exclude[0]), None, frozenset(exclude[2])]
    expected = engine.recommend(pack_users(engine.schema, users, exclude))
    equal(client.recommend(users, exclude=alike), expected)
    expected = engine.recommend(pack_users(engine.schema, users[:1], exclude[:1]))
    equal(client.recommend(users[0], exclude=set(exclude[0])), expected)


def test_what_grpc_takes_as_a_header_is_taken(client, users):
    headers = {"Authorization": "Bearer a.b-c=", "empty": "", "trace-bin": b"\n\xff"}
    assert len(client.recommend(users, headers=headers, timeout=np.float32(TIMEOUT))) == 3


def test_a_batch_beyond_the_servers_is_not_sent(client, users):
    with pytest.raises(InputError, match="expected at most 64 users per request, found 66"):
        client.recommend(users * 22)


@pytest.mark.parametrize(
    ("candidates", "scores", "message"),
    [
        ([1.5], [0.5], r"\[candidates\] user 0: expected an int64 id, found float 1.5"),
        (["a"], [0.5], r"\[candidates\] user 0: expected an int64 id, found str 'a'; the schema"),
        ([1, True, None], [0] * 3, r"\[candidates\] user 0: expected an int64 id, found bool True"),
        (None, [0.5], r"\[candidates\] user 0: expected an int64 id, found NoneType None"),
        (
            [1, 2**63],
            [0, 0],
            r"\[candidates\] user 0: expected an id in int64, found 9223372036854",
        ),
        (
            [2**63, -1],
            [0, 0],
            r"\[candidates\] user 0: expected an id in int64, found 9223372036854",
        ),
        (np.uint64([2**64 - 5]), [0], r"expected an id in int64, found 18446744073709551611"),
        ([[1, 2], [3]], [[0, 0], [0]], r"\[candidates\] expected rows of one length, found list"),
        ([[1], [2]], [[0], [0]], r"\[candidates\] expected int64 \[1, n\], found int64 \[2, 1\]"),
        (
            np.zeros((1, 1, 1), int),
            [0],
            r"\[candidates\] expected int64 \[1, n\], found int64 \[1, 1,",
        ),
        (list(range(65)), [0.0] * 65, r"\[candidates\] expected at most 64 per user, found 65"),
        (
            [1, 2],
            [0.5],
            r"\[candidate_scores\] expected float32 \[1, 2\] as candidates, found float64",
        ),
        ([1], ["x"], r"\[candidate_scores\] expected float32 \[1, 1\] as candidates, found str"),
        ([1], ["0.5"], r"\[candidate_scores\] expected float32 \[1, 1\] as candidates, found str"),
        (
            [1],
            [None],
            r"\[candidate_scores\] expected float32 \[1, 1\] as candidates, found object",
        ),
        ([[1, 2]], [[1, 2], [3]], r"\[candidate_scores\] expected rows of one length, found list"),
        (
            [1, 2],
            [0, np.nan],
            r"\[candidate_scores\] user 0, candidate 1: expected a finite float32",
        ),
        ([1, 2], [1e39, 0], r"candidate 0: expected a finite float32, found inf"),
    ],
)
def test_bad_candidates_are_not_sent(client, users, candidates, scores, message):
    with pytest.raises(InputError, match=message):
        client.rank(users[0], candidates, scores)


def test_scores_of_empty_slots_may_be_anything(client, engine, users, items):
    candidates, scores = [[items[3], -1, -1]], np.float32([[0.5, np.nan, -np.inf]])
    answer = client.rank(users[:1], candidates, scores, k=3)
    wire = pack_users(engine.schema, users[:1])
    equal(answer, engine.rank(wire, candidates, np.float32([[0.5, 0, 0]]), k=3))


def test_candidates_may_be_any_integers(client, engine, users):
    wire, scores = pack_users(engine.schema, users[:1]), [0.25, 0.5, 0.75]
    expected = engine.rank(wire, [[0, 5, 7]], [scores])
    for candidates in (
        [0, 5, 7],
        [np.int64(0), 5, np.uint8(7)],
        np.array([[0, 5, 7]], object),
        np.array([0, 5, 7], np.int32),
        np.array([[0, 5, 7]], np.uint64),
    ):
        equal(client.rank(wire, candidates, scores), expected)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("ids", lambda a: a.astype(np.float64), r"int64 \[batch, width\], found float64 \[3, "),
        ("ids", lambda a: a.astype(np.uint64), r"int64 \[batch, width\], found uint64 \[3, "),
        ("ids", lambda a: a.astype(">i8"), r"int64 \[batch, width\], found >i8 \[3, "),
        ("ids", lambda a: a[0], r"int64 \[batch, width\], found int64 \[\d+\]"),
        ("ids", lambda a: a.tolist(), r"int64 \[batch, width\], found list"),
        ("lengths", lambda a: a.astype(np.int64), r"int32 \[3, 4\], found int64 \[3, 4\]"),
        ("lengths", lambda a: a[:2], r"int32 \[3, 4\], found int32 \[2, 4\]"),
        ("lengths", lambda a: a[:, 1:], r"int32 \[3, 4\], found int32 \[3, 3\]"),
        ("lengths", lambda a: a[0], r"int32 \[3, 4\], found int32 \[4\]"),
        ("dense", lambda a: a.astype(np.float64), r"float32 \[3, 2\], found float64 \[3, 2\]"),
        ("dense", lambda a: a[:, :1], r"float32 \[3, 2\], found float32 \[3, 1\]"),
        ("dense", lambda a: None, r"float32 \[3, 2\], found NoneType"),
    ],
)
def test_packed_users_that_do_not_fit_the_schema_are_not_sent(
    client, engine, users, name, edit, message
):
    wire = pack_users(engine.schema, users)
    bad = dataclasses.replace(wire, **{name: edit(getattr(wire, name))})
    for call in (client.recommend, client.retrieve, lambda bad: client.rank(bad, [[1]], [[0]])):
        with pytest.raises(InputError, match=rf"^\[users\] {name}: expected {message}"):
            call(bad)


def test_an_empty_packed_batch_is_not_sent(client, engine, users):
    wire = pack_users(engine.schema, users)
    with pytest.raises(InputError, match="expected at least one user, found none"):
        client.recommend(WireUsers(wire.ids[:0], wire.lengths[:0], wire.dense[:0]))


@pytest.mark.parametrize("users", [None, 5, {}.keys(), (user for user in [{}])])
def test_what_is_no_batch_of_users_is_not_sent(client, users):
    with pytest.raises(InputError, match=r"^\[users\] expected a sequence of users, found \w+$"):
        client.recommend(users)


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


def test_a_name_that_is_not_found_is_waited_for_until_the_deadline(make_client, users):
    # Names in .onion exist in no DNS, and resolvers do not ask for them (RFC 7686).
    with make_client("no-such-host.onion:8001", timeout=0.5) as client:
        start = time.monotonic()
        with pytest.raises(ServerUnavailable, match=r"resol.* no-such-host\.onion:8001"):
            client.recommend(users)
        assert 0.3 < time.monotonic() - start < 2
        assert not client.ready()


def test_a_port_that_is_no_number_is_refused(make_client, users):
    with (
        make_client("dns:///127.0.0.1:grpc", timeout=TIMEOUT) as client,
        pytest.raises(InputError, match=r"Failed to parse port in name: 127\.0\.0\.1:grpc"),
    ):
        client.recommend(users)


def test_a_closed_client_says_so(make_client, golden_server, users):
    with make_client(golden_server.endpoints.grpc, timeout=TIMEOUT) as client:
        client.recommend(users)
        client.close()
        for call in (
            lambda: client.recommend(users),
            lambda: client.retrieve(users),
            lambda: client.rank(users[0], [1], [0]),
            client.ready,
            lambda: client.schema,
        ):
            with pytest.raises(ServerUnavailable, match=r"^\[recommend\] this client is closed$"):
                call()
        client.close()


def test_a_client_closed_under_a_call_says_so(users):
    with silent_address() as address, ThreadPoolExecutor(1) as pool:
        client = RecommenderClient(address, timeout=TIMEOUT)
        waiting = pool.submit(client.recommend, users)
        time.sleep(0.2)
        client.close()
        with pytest.raises(ServerUnavailable, match="this client is closed"):
            waiting.result()


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:8001", "127.0.0.1", "localhost", "127.0.0.1:99999", "127.0.0.1:0"),
        *(":8001", "", "127.0.0.1:", "127.0.0.1:grpc", " 127.0.0.1:8001", "::1:8001", None),
    ],
)
def test_a_url_that_is_no_host_and_port_is_refused(make_client, url):
    with pytest.raises(InputError, match=rf"^\[url\] expected host:port, found {url!r}$"):
        make_client(url)


@pytest.mark.parametrize("form", ["{}", "localhost:{port}", "dns:///{}", "ipv4:{}"])
def test_a_url_may_be_what_grpc_resolves(make_client, golden_server, form):
    url = golden_server.endpoints.grpc
    with make_client(form.format(url, port=url.rpartition(":")[2]), timeout=TIMEOUT) as client:
        assert client.ready()


@pytest.mark.parametrize("url", ["unix:/run/recengine", "[::1]:8001", "ipv6:[::1]:8001"])
def test_other_urls_of_grpc_are_taken(make_client, url):
    with make_client(url, timeout=0.1) as client:
        assert not client.ready()


@pytest.mark.parametrize("name", ["root_certificates", "private_key", "certificate_chain"])
def test_a_file_of_tls_that_is_not_there_is_named(make_client, tmp_path, name):
    message = rf"^\[{name}\] {tmp_path}/none: No such file or directory$"
    with pytest.raises(InputError, match=message):
        make_client("127.0.0.1:8001", ssl=True, **{name: str(tmp_path / "none")})


@contextlib.contextmanager
def silent_address():
    """Address of a host that drops whatever comes: its queue of connections is full."""
    with socket.socket() as listener, contextlib.ExitStack() as queue:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_host_that_drops_packets_costs_no_more_than_the_deadline(make_client, users):
    with silent_address() as address, make_client(address, timeout=0.5) as client:
        start = time.monotonic()
        with pytest.raises((DeadlineExceeded, ServerUnavailable)):
            client.recommend(users)
        assert time.monotonic() - start < 2
        assert not client.ready()


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


def test_no_call_fails_while_a_server_is_stopped_and_started(
    make_client, golden_repository, tmp_path, users
):
    def calls():
        answers = [client.recommend(users)]
        while not done.is_set():
            answers.append(client.recommend(users, timeout=60.0))
        return answers

    done, log = threading.Event(), tmp_path / "log"
    with TritonServer(golden_repository, log=log) as server, ThreadPoolExecutor(1) as pool:
        client = make_client(server.endpoints.grpc, timeout=TIMEOUT)
        client.recommend(users)
        with client:
            calling = pool.submit(calls)
            try:
                time.sleep(0.2)
                server.stop()  # by SIGTERM
                port = int(server.endpoints.grpc.rpartition(":")[2])
                with TritonServer(golden_repository, grpc_port=port, log=log):
                    done.set()
                    answers = calling.result()
            finally:
                done.set()
                wait([calling])
    assert all(answer.item_ids.tolist() == answers[0].item_ids.tolist() for answer in answers)


def test_a_call_waits_for_a_model_that_is_loaded_again(
    make_client, golden_repository, tmp_path, users
):
    with (
        TritonServer(
            golden_repository, model_control="explicit", load_models=["*"], log=tmp_path / "log"
        ) as server,
        make_client(server.endpoints.grpc, timeout=60.0) as client,
        InferenceServerClient(server.endpoints.grpc) as admin,
        ThreadPoolExecutor(1) as pool,
    ):
        before = client.recommend(users)
        admin.unload_model("recommend")
        with pytest.raises(ServerUnavailable, match="has no available versions"):
            client.recommend(users, timeout=0.3)
        waiting = pool.submit(client.recommend, users)
        time.sleep(0.2)
        assert not waiting.done()
        admin.load_model("recommend")
        assert waiting.result().item_ids.tolist() == before.item_ids.tolist()


@pytest.fixture(scope="module")
def secured(grpc_tls, golden_repository, tmp_path_factory):
    """Address of a server that wants TLS and, for inference, a header."""
    log = tmp_path_factory.mktemp("secured") / "log"
    arguments = [*grpc_tls, "--grpc-restricted-protocol=inference:recommender=let-me-in"]
    with TritonServer(golden_repository, arguments=arguments, log=log) as server:
        yield server.endpoints.grpc


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


@contextlib.contextmanager
def distant(address, delay):
    """Address from which `address` is `delay` seconds away, each way."""
    host, _, port = address.rpartition(":")
    sockets = []

    def forward(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(delay)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection((host, int(port)))
                sockets.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=forward, args=pair, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for one in sockets:
                one.close()


def test_a_distant_server_with_tls_is_reached(make_client, secured, certificate, users):
    tls = {"ssl": True, "root_certificates": str(certificate / "cert.pem"), "timeout": TIMEOUT}
    with distant(secured, 0.1) as address, make_client(address, headers=SECRET, **tls) as client:
        assert len(client.recommend(users)) == len(users)


WRONG_PORT = r"is it the gRPC port, and does it want TLS\?"


def test_a_client_without_tls_is_told_what_may_be_wrong(make_client, secured, users):
    with (
        make_client(secured, timeout=0.5) as client,
        pytest.raises(ServerUnavailable, match=WRONG_PORT),
    ):
        client.recommend(users)


@pytest.mark.parametrize("ssl", [False, True])
def test_a_client_at_the_http_port_is_told_what_may_be_wrong(
    make_client, golden_server, users, ssl
):
    with (
        make_client(golden_server.endpoints.http, ssl=ssl, timeout=0.5) as client,
        pytest.raises(ServerUnavailable, match=WRONG_PORT),
    ):
        client.recommend(users)


def fails_at_once(client, users, message):
    start = time.monotonic()
    with client, pytest.raises(ServerUnavailable, match=message):
        client.recommend(users)
    assert time.monotonic() - start < TIMEOUT / 2


def test_tls_at_a_port_without_is_final(make_client, golden_server, users):
    client = make_client(golden_server.endpoints.grpc, ssl=True, timeout=TIMEOUT)
    fails_at_once(client, users, "this port speaks no TLS: connect without ssl")


def test_a_port_of_another_protocol_is_final(make_client, users):
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.BaseHTTPRequestHandler
    ) as other:
        serving = threading.Thread(target=other.serve_forever)
        serving.start()
        try:
            client = make_client(f"127.0.0.1:{other.server_port}", timeout=TIMEOUT)
            fails_at_once(client, users, "this port speaks HTTP/1, not gRPC")
        finally:
            other.shutdown()
            serving.join()


def test_an_unknown_certificate_is_not_trusted(make_client, secured, users):
    client = make_client(secured, ssl=True, timeout=TIMEOUT)
    fails_at_once(client, users, "root_certificates do not vouch for the server's certificate")


def test_a_certificate_of_another_host_is_not_trusted(make_client, secured, certificate, users):
    client = make_client(
        secured,
        ssl=True,
        root_certificates=str(certificate / "cert.pem"),
        channel_args={"grpc.ssl_target_name_override": "other.example"},
        timeout=TIMEOUT,
    )
    fails_at_once(client, users, "Hostname Verification Check failed")
