import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from raw_client import RawClient, Traffic, make_request, read_response

from recengine.client._errors import classify
from recengine.errors import ServerError, ServerUnavailable
from recengine.serving.server import find_backends

SHED = "recengine: shed: "


def all_ok(futures):
    return [read_response(future.result()) for future in futures]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_served_retrieval_is_the_engines_to_the_bit(client, retrieval, users, tensors, batch):
    asked = users.batch(np.random.default_rng(batch), batch)
    served = client.infer("retrieval", tensors(asked), num_candidates=13)
    items, scores = retrieval.retrieve(asked, k=13)
    np.testing.assert_array_equal(served["item_ids"], items)
    np.testing.assert_array_equal(served["scores"], scores)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_served_ranking_is_the_engines_to_the_bit(client, ranking, users, tensors, batch):
    rng = np.random.default_rng(batch)
    asked, candidates = users.batch(rng, batch), users.candidates(rng, batch, 17)
    served = client.infer("ranking", tensors(asked) | candidates, k=9)
    items, scores = ranking.rank(asked, *candidates.values(), k=9)
    np.testing.assert_array_equal(served["item_ids"], items)
    np.testing.assert_array_equal(served["scores"], scores)


def test_the_ensemble_is_retrieval_then_ranking(client, retrieval, ranking, users, tensors):
    asked = users.batch(np.random.default_rng(0), 5)
    served = client.infer("recommend", tensors(asked), num_candidates=30, k=8)
    candidates, scores = retrieval.retrieve(asked, k=30)
    items, scores = ranking.rank(asked, candidates, scores, k=8)
    np.testing.assert_array_equal(served["item_ids"], items)
    np.testing.assert_array_equal(served["scores"], scores)


@pytest.mark.parametrize("model", ["retrieval", "recommend"])
def test_requests_batched_together_are_answered_as_each_alone(client, users, tensors, model):
    rng = np.random.default_rng(1)
    asked = [tensors(users.batch(rng, int(rng.integers(1, 4)))) for _ in range(200)]
    ks = [int(k) for k in rng.integers(1, 30, len(asked))]
    together = all_ok(
        [
            client.send(make_request(model, one, k=k, num_candidates=k))
            for one, k in zip(asked, ks, strict=True)
        ]
    )
    for one, k, answer in zip(asked, ks, together, strict=True):
        alone = client.infer(model, one, k=k, num_candidates=k)
        np.testing.assert_array_equal(answer["item_ids"], alone["item_ids"])
        np.testing.assert_array_equal(answer["scores"], alone["scores"])


def test_requests_of_different_candidate_counts_are_answered_as_each_alone(client, users, tensors):
    rng = np.random.default_rng(2)
    asked = [
        tensors(users.batch(rng, 2)) | users.candidates(rng, 2, int(rng.integers(0, 20)))
        for _ in range(100)
    ]
    together = all_ok([client.send(make_request("ranking", one)) for one in asked])
    for one, answer in zip(asked, together, strict=True):
        alone = client.infer("ranking", one)
        np.testing.assert_array_equal(answer["item_ids"], alone["item_ids"])
        np.testing.assert_array_equal(answer["scores"], alone["scores"])


def test_concurrent_requests_run_as_fewer_executions(client, users, tensors):
    asked = tensors(users.batch(np.random.default_rng(3), 1))
    before = client.statistics("retrieval")
    all_ok([client.send(make_request("retrieval", asked)) for _ in range(500)])
    after = client.statistics("retrieval")
    assert after.inference_count - before.inference_count == 500
    assert after.execution_count - before.execution_count < 500


def test_a_bad_request_does_not_spoil_those_batched_with_it(client, users, tensors):
    rng = np.random.default_rng(4)
    good = tensors(users.batch(rng, 2))
    bad = tensors(users.batch(rng, 2))
    bad["lengths"] = bad["lengths"] - 100
    futures = [client.send(make_request("recommend", bad if i % 3 else good)) for i in range(300)]
    expected = client.infer("recommend", good)
    for i, future in enumerate(futures):
        if i % 3:
            assert future.code() == grpc.StatusCode.INVALID_ARGUMENT
        else:
            answer = read_response(future.result())
            np.testing.assert_array_equal(answer["item_ids"], expected["item_ids"])


def test_a_user_with_nothing_known_gets_the_fallback_list(client, retrieval, users, tensors):
    asked = users.batch(np.random.default_rng(5), 3)
    asked.ids[:] = 4242424242
    served = client.infer("retrieval", tensors(asked), num_candidates=10)
    items, _ = retrieval.retrieve(asked, k=10)
    np.testing.assert_array_equal(served["item_ids"], items)
    assert (served["item_ids"] == served["item_ids"][0]).all()


def test_only_the_outputs_that_were_asked_for_are_sent(client, users, tensors):
    asked = tensors(users.batch(np.random.default_rng(6), 2))
    assert list(client.infer("recommend", asked, outputs=["scores"])) == ["scores"]
    assert list(client.infer("retrieval", asked, outputs=["item_ids"])) == ["item_ids"]


def test_k_beyond_the_candidates_is_padded(client, users, tensors):
    asked = tensors(users.batch(np.random.default_rng(7), 1))
    served = client.infer("recommend", asked, num_candidates=4, k=6)
    assert (served["item_ids"][0, 4:] == -1).all()
    assert np.isneginf(served["scores"][0, 4:]).all()


def test_every_request_is_in_the_statistics_with_sane_durations(client, users, tensors):
    asked = tensors(users.batch(np.random.default_rng(8), 1))
    bad = asked | {"lengths": asked["lengths"] - 100}
    before = client.statistics("retrieval").inference_stats
    for _ in range(10):
        client.infer("retrieval", asked)
        client.refusal(make_request("retrieval", bad))
    after = client.statistics("retrieval").inference_stats
    assert after.success.count - before.success.count == 10
    assert after.fail.count - before.fail.count == 10
    for name in ("queue", "compute_input", "compute_infer", "compute_output"):
        spent_ns = getattr(after, name).ns - getattr(before, name).ns
        assert 0 <= spent_ns < 60e9, name


def test_after_cancelled_requests_the_next_is_answered(client, golden_server, users, tensors):
    """That those which wait are not computed, test_large_catalog.py shows."""
    asked = tensors(users.batch(np.random.default_rng(9), 32))
    os.kill(golden_server.pid, signal.SIGSTOP)
    try:
        futures = [client.send(make_request("recommend", asked)) for _ in range(100)]
        time.sleep(0.2)
        for future in futures:
            future.cancel()
    finally:
        os.kill(golden_server.pid, signal.SIGCONT)
    assert all(future.cancelled() for future in futures)
    assert client.infer("recommend", asked)["item_ids"].shape[0] == 32


def set_parameter(repository, model, name, value):
    path = repository / model / "config.pbtxt"
    parameter = f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'
    path.write_text(path.read_text() + parameter)


def burst(client, request, count):
    """Sends at once; the number answered and the messages of those refused as unavailable."""
    refused = []
    for future in [client.send(request) for _ in range(count)]:
        error = future.exception()
        if error is not None:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            refused.append(error.details())
    return count - len(refused), refused


@pytest.mark.parametrize(
    ("reason", "message", "limit", "parameters"),
    [
        ("queue_full", "queue full (64 rows)", "64", {}),
        ("deadline", "deadline of 300 us cannot be met", "100000", {"timeout": 300}),
    ],
)
@pytest.mark.alone
def test_overload_is_shed_at_once_counted_and_forgotten(
    own_repository, serve, users, tensors, read_metric, reason, message, limit, parameters
):
    set_parameter(own_repository, "retrieval", "recengine.max_queue_rows", limit)
    asked = tensors(users.batch(np.random.default_rng(10), 64))
    one_thread = ["--backend-config=recengine,threads=1"]
    with serve(arguments=one_thread) as server, RawClient(server.endpoints.grpc) as client:
        request = make_request("retrieval", asked, **parameters)
        answered, refused = burst(client, request, 2000)
        assert answered > 0
        assert refused
        assert set(refused) == {SHED + message}
        assert read_metric(server, "recengine_shed_total", f'reason="{reason}"') == len(refused)
        assert client.statistics("retrieval").inference_stats.fail.count == len(refused)
        time.sleep(0.1)
        begin = time.monotonic()
        client.infer("retrieval", asked)
        assert time.monotonic() - begin < 0.1


@pytest.mark.alone
def test_warm_up_is_never_shed_and_a_configured_deadline_holds_for_requests_without_one(
    own_repository, serve, users, tensors
):
    set_parameter(own_repository, "retrieval", "recengine.default_timeout_us", "300")
    asked = tensors(users.batch(np.random.default_rng(11), 64))
    one_thread = ["--backend-config=recengine,threads=1"]
    with serve(arguments=one_thread) as server, RawClient(server.endpoints.grpc) as client:
        _, refused = burst(client, make_request("recommend", asked), 2000)
        # Until a call was timed nobody knows what waits too long: the queue may fill up first.
        assert any(f"{SHED}deadline of 300 us cannot be met" in message for message in refused)
        assert all(SHED in message for message in refused)


def computed_ns(pid):
    """How long each of our threads, and each that it started, has run."""
    found = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if (path / "comm").read_text() == "recengine\n":
                found[path.name] = int((path / "schedstat").read_text().split()[0])
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_instances_of_all_models_share_the_threads(own_repository, serve, users, tensors, count):
    for model in ("retrieval", "ranking"):
        path = own_repository / model / "config.pbtxt"
        text = path.read_text()
        assert "count: 1" in text
        path.write_text(text.replace("count: 1", f"count: {count}"))
    asked = make_request("recommend", tensors(users.batch(np.random.default_rng(15), 64)))
    two_threads = ["--backend-config=recengine,threads=2"]
    with (
        serve(arguments=two_threads) as server,
        RawClient(server.endpoints.grpc) as client,
        Traffic(client, asked),
    ):
        before = computed_ns(server.pid)
        time.sleep(1)
        spent = [ns - before.get(thread, 0) for thread, ns in computed_ns(server.pid).items()]
    assert 1 <= sum(ns > 0.01 * sum(spent) for ns in spent) <= 2


def test_loading_a_new_version_over_a_live_one_loses_nothing(own_repository, serve, users, tensors):
    asked = tensors(users.batch(np.random.default_rng(12), 4))
    names = ("retrieval", "ranking", "recommend")
    with (
        serve(model_control="explicit", load_models=names) as server,
        RawClient(server.endpoints.grpc) as client,
        Traffic(client, make_request("recommend", asked)) as traffic,
    ):
        for version in range(2, 12):
            for name in names:
                shutil.copytree(own_repository / name / "1", own_repository / name / str(version))
                client.load(name)
        assert client.statistics("retrieval").version == "11"
        before = traffic.answers
        while traffic.answers == before and not traffic.errors:
            time.sleep(0.01)
    assert traffic.errors == []
    assert traffic.answers > 100


def test_a_broken_new_version_is_refused_and_the_live_one_serves_on(
    own_repository, serve, users, tensors
):
    asked = tensors(users.batch(np.random.default_rng(13), 4))
    models = ("retrieval", "ranking", "recommend")
    with (
        serve(model_control="explicit", load_models=models) as server,
        RawClient(server.endpoints.grpc) as client,
        Traffic(client, make_request("recommend", asked)) as traffic,
    ):
        broken = shutil.copytree(own_repository / "ranking" / "1", own_repository / "ranking" / "2")
        flip_a_byte(weights(broken))
        with pytest.raises(grpc.RpcError, match=r"\.bin: .*SHA-256"):
            client.load("ranking")
        client.infer("recommend", asked)
    assert traffic.errors == []


def weights(directory):
    return next(directory.glob("*.bin"))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_the_only_version_being_damaged_stops_the_start_and_the_error_names_the_file(
    own_repository, serve
):
    path = weights(own_repository / "retrieval" / "1")
    flip_a_byte(path)
    with pytest.raises(ServerError, match=re.escape(f"{path.name}: ") + ".*SHA-256"):
        serve().start()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            'name: "lengths"\n  data_type: TYPE_INT32',
            'name: "lengths"\n  data_type: TYPE_INT64',
            "input lengths: expected TYPE_INT32, found TYPE_INT64",
        ),
        ('name: "candidates"', 'name: "candidate_ids"', "input candidates is missing"),
        ("max_batch_size: 64", "max_batch_size: 0", "max_batch_size: expected at least 1"),
        ('name: "item_ids"', 'name: "items"', "output item_ids is missing"),
    ],
)
def test_a_config_that_does_not_fit_the_version_is_refused(
    own_repository, serve, before, after, message
):
    path = own_repository / "ranking" / "config.pbtxt"
    text = path.read_text()
    assert before in text
    # Without the ensemble and warm-up, whose own checks would speak first.
    shutil.rmtree(own_repository / "recommend")
    path.write_text(re.sub(r"model_warmup \{(.|\n)*?\n\}\n", "", text.replace(before, after)))
    with pytest.raises(ServerError, match=re.escape("[ranking] config.pbtxt: ") + ".*" + message):
        serve().start()


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_queue_limit_that_is_no_number_is_refused(own_repository, serve, value):
    set_parameter(own_repository, "ranking", "recengine.max_queue_rows", value)
    with pytest.raises(ServerError, match=r"max_queue_rows: expected an integer >= 1, found"):
        serve().start()


def test_what_was_accepted_is_answered_before_a_terminated_server_ends(serve, users, tensors):
    asked = tensors(users.batch(np.random.default_rng(14), 16))
    server = serve().start()
    with RawClient(server.endpoints.grpc) as client:
        futures = [
            client.send(make_request("recommend", asked, timeout=60_000_000)) for _ in range(200)
        ]
        futures[0].result()
        assert server.stop() == 0
        answers = [(future.code(), future.details() or "") for future in futures]
    assert answers[0][0] == grpc.StatusCode.OK
    # Those that came too late are refused as such; none is lost or answered with an error of ours.
    assert {code for code, _ in answers} <= {
        grpc.StatusCode.OK,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.NOT_FOUND,
    }
    assert not any(SHED in message for _, message in answers)
    for code, message in answers:
        if code != grpc.StatusCode.OK:
            assert type(classify(str(code), message, "recommend").error) is ServerUnavailable


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils")
def test_the_backend_exports_nothing_but_tritons_entry_points():
    library = find_backends() / "recengine" / "libtriton_recengine.so"
    lines = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True).splitlines()
    names = [line.split()[-1] for line in lines]
    assert "TRITONBACKEND_ModelInstanceExecute" in names
    assert [name for name in names if not name.startswith("TRITONBACKEND_")] == []
