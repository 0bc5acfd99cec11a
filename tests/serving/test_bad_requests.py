import grpc
import numpy as np
import pytest
from malformed import (
    CLEAR,
    INVALID,
    USER_TENSORS,
    Flood,
    Mutator,
    allowed_growth_mib,
    assert_extreme_shapes_are_refused,
    assert_wrong_dtypes_are_refused,
    assert_wrong_ranks_are_refused,
    replaced,
    resident_mib,
)
from raw_client import RawClient, make_request, read_response

from recengine.serving.server import TritonServer

MODELS = ("retrieval", "ranking", "recommend")
EXTREME_IDS = (-(2**63), -(2**53) - 1, -51, -1, 0, 1, 51, 2**31, 2**53 + 1, 2**63 - 1)
BATCH = 2


@pytest.fixture
def valid(users, tensors):
    """A good request's tensors, of a model."""

    def make(model, batch=BATCH, seed=0):
        rng = np.random.default_rng(seed)
        named = tensors(users.batch(rng, batch))
        return named | users.candidates(rng, batch, 5) if model == "ranking" else named

    return make


def tensor_names(model):
    return (*USER_TENSORS, "candidates", "candidate_scores") if model == "ranking" else USER_TENSORS


EACH_TENSOR = [(model, name) for model in MODELS for name in tensor_names(model)]


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_a_wrong_dtype_is_refused(client, valid, model, name):
    assert_wrong_dtypes_are_refused(client, model, valid(model), name)


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_a_wrong_rank_is_refused(client, valid, model, name):
    assert_wrong_ranks_are_refused(client, model, valid(model), name)


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_extreme_shapes_are_refused_with_and_without_bytes(client, valid, model, name):
    assert_extreme_shapes_are_refused(client, model, valid(model, batch=1), name)


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_a_byte_size_that_is_not_the_shapes_is_refused(client, valid, model, name):
    tensors = valid(model)
    raw = tensors[name].tobytes()
    for wrong in (b"", raw[:-1], raw + b"\0", raw * 2):
        code, _ = client.refusal(replaced(model, tensors, name, raw=wrong))
        assert code == INVALID


@pytest.mark.parametrize("model", MODELS)
def test_batch_sizes_that_disagree_are_refused(client, valid, model):
    two, three = valid(model, batch=2), valid(model, batch=3)
    for name in two:
        assert client.refusal(make_request(model, two | {name: three[name]}))[0] == INVALID


@pytest.mark.parametrize("model", MODELS)
def test_an_empty_batch_and_one_too_large_are_refused(client, valid, model):
    empty = {name: array[:0] for name, array in valid(model).items()}
    assert client.refusal(make_request(model, empty))[0] == INVALID
    assert client.refusal(make_request(model, valid(model, batch=65)))[0] == INVALID


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("length", [-1, -5, -(2**31)])
def test_a_negative_length_is_refused_by_name(client, valid, model, length):
    tensors = valid(model)
    tensors["lengths"][1, 2] = length
    code, message = client.refusal(make_request(model, tensors))
    assert code == INVALID
    assert "lengths[1, 2]" in message
    assert f"expected a length >= 0, found {length}" in message


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lengths", [(2**31 - 1,) * 4, (1, 2**31 - 1, 0, 0), (0, 0, 0, 10**6)])
def test_lengths_beyond_the_ids_are_refused_by_name(client, valid, model, lengths):
    tensors = valid(model)
    tensors["lengths"][1] = lengths
    width = tensors["ids"].shape[1]
    code, message = client.refusal(make_request(model, tensors))
    assert code == INVALID
    assert f"lengths[1]: expected a sum of at most {width}" in message
    assert f"found {sum(lengths)}" in message


@pytest.mark.parametrize("model", MODELS)
def test_ids_behind_the_lengths_are_ignored(client, valid, model):
    tensors = valid(model)
    wider = np.concatenate([tensors["ids"], np.full((BATCH, 3), 7)], axis=1)
    answer = client.infer(model, tensors | {"ids": wider})
    np.testing.assert_array_equal(answer["item_ids"], client.infer(model, tensors)["item_ids"])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("recommend", "k"),
        ("recommend", "num_candidates"),
        ("ranking", "k"),
        ("retrieval", "num_candidates"),
    ],
)
@pytest.mark.parametrize("value", [0, -1, 65, 2**31, 2**63 - 1, -(2**63), "5", 5.0, True])
def test_a_size_out_of_range_or_of_the_wrong_type_is_refused_by_name(
    client, valid, model, name, value
):
    code, message = client.refusal(make_request(model, valid(model), **{name: value}))
    assert code == INVALID
    assert f"parameter {name}: expected 1 to 64, found" in message
    if type(value) is int:
        assert message.endswith(f"found {value}")


@pytest.mark.parametrize("model", MODELS)
def test_extreme_ids_are_unknown_or_known_but_never_an_error(client, valid, users, model):
    tensors = valid(model)
    for id_ in EXTREME_IDS:
        tensors["ids"][:] = id_
        if model == "ranking":
            tensors["candidates"][:] = id_
        items = client.infer(model, tensors)["item_ids"]
        known = set(users.items.tolist()) | {-1, id_}
        assert set(items.ravel().tolist()) <= known


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_dense_value_that_is_not_finite_is_refused_by_name(client, valid, model, value):
    tensors = valid(model)
    tensors["dense"][1, 0] = value
    code, message = client.refusal(make_request(model, tensors))
    assert code == INVALID
    assert "dense[1, 0]" in message
    assert "expected a finite value" in message


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("value", [-0.0, 1e-45, -1e-40, np.float32(1e-38)])
def test_tiny_dense_values_are_answered_with_finite_scores(client, valid, model, value):
    tensors = valid(model)
    tensors["dense"][:] = value
    answer = client.infer(model, tensors, k=3, num_candidates=3)
    assert np.isfinite(answer["scores"][answer["item_ids"] != -1]).all()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("value", [3.4e38, -3.4e38])
def test_values_that_overflow_inside_a_graph_are_an_error_not_an_answer(
    client, valid, model, value
):
    tensors = valid(model)
    tensors["dense"][:] = value
    future = client.send(make_request(model, tensors))
    if future.exception() is None:
        answer = read_response(future.result())
        assert np.isfinite(answer["scores"][answer["item_ids"] != -1]).all()
    else:
        assert future.code() in (INVALID, grpc.StatusCode.INTERNAL)
        assert "finite" in future.details()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_candidate_score_that_is_not_finite_is_refused_by_name(client, valid, value):
    tensors = valid("ranking")
    tensors["candidate_scores"][1, 3] = value
    code, message = client.refusal(make_request("ranking", tensors))
    assert code == INVALID
    assert "candidate_scores[1, 3]: expected a finite score" in message
    tensors["candidates"][1, 3] = -1  # an empty slot may hold anything
    client.infer("ranking", tensors)


def test_more_candidates_than_a_request_may_have_are_refused_by_name(client, valid, users):
    tensors = valid("ranking")
    tensors["candidates"] = np.resize(users.items, (BATCH, 65))
    tensors["candidate_scores"] = np.zeros((BATCH, 65), np.float32)
    code, message = client.refusal(make_request("ranking", tensors))
    assert code == INVALID
    assert "candidates: expected at most 64 per user, found 65" in message


@pytest.mark.alone
def test_a_hundred_thousand_malformed_requests_leave_the_server_healthy(
    golden_repository, tmp_path, valid, monkeypatch
):
    # One arena: what then grows is a leak, not the allocator.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    good = [make_request(model, valid(model, seed=seed)) for model in MODELS for seed in range(8)]
    mutator = Mutator(0, good)
    with (
        TritonServer(golden_repository, log=tmp_path / "log") as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        expected = read_response(client.send(good[-1]).result())
        flood = Flood(client, in_flight=64)
        for number in range(100_000):
            if number % 1000 == 0:
                answer = read_response(client.send(good[-1]).result())
                np.testing.assert_array_equal(answer["item_ids"], expected["item_ids"])
            if number == 50_000:  # allocators and gRPC have seen it all
                before_mib = resident_mib(server.pid)
            flood.send(mutator.request())
        flood.wait()
        assert resident_mib(server.pid) - before_mib < allowed_growth_mib(server.pid)
        np.testing.assert_array_equal(
            read_response(client.send(good[-1]).result())["scores"], expected["scores"]
        )
    assert flood.codes.total() == 100_000
    assert set(flood.codes) <= CLEAR
    assert flood.codes[INVALID] > 50_000
    assert flood.messages["empty"] == 0
    assert flood.slowest_s < 1
