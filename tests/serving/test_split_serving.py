"""A split repository on a real server: the answers and refusals of the fused one."""

import shutil

import grpc
import numpy as np
import pytest
from raw_client import RawClient, make_request, read_response
from split_server import place_on_gpu, replace_backend, serve_split
from tensorrt_host import require_plan_server

from recengine.bundle import read_manifest
from recengine.client import RecommenderClient
from recengine.compile import compile_bundle
from recengine.compile.fidelity import load_reference, served, served_answer
from recengine.compile.split import STAGES
from recengine.serving.server import TritonServer

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MODELS = ("retrieval", "ranking", "recommend")
UNKNOWN_ID = 4242424242


PLACES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.cuda),
    pytest.param("tensorrt", marks=pytest.mark.tensorrt),
]


@pytest.fixture(scope="session", params=PLACES)
def split_repository(request, golden, tmp_path_factory):
    """With our stages on the CPU, or on a GPU, or all of it on a GPU: graphs as TensorRT plans."""
    repository = tmp_path_factory.mktemp("split") / "model_repository"
    if request.param == "tensorrt":
        require_plan_server()
        return compile_bundle(golden, repository, target="gpu")
    repository = replace_backend(compile_bundle(golden, repository, target="onnxruntime"))
    return repository if request.param == "cpu" else place_on_gpu(repository)


@pytest.fixture(scope="session")
def split_server(split_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    if any(split_repository.rglob("plan.json")):
        serve = TritonServer(split_repository, log=folder / "tritonserver.log")
    else:
        serve = serve_split(split_repository, folder)
    with serve as server:
        yield server


@pytest.fixture(scope="session")
def split(split_server):
    with RawClient(split_server.endpoints.grpc) as client:
        yield client


@pytest.fixture
def reference_users(golden):
    return load_reference(golden, read_manifest(golden).reference).users


def assert_same(found, expected):
    np.testing.assert_array_equal(found["item_ids"], expected["item_ids"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)


def assert_answers_alike(split, client, model, tensors, **parameters):
    asked = make_request(model, tensors, **parameters)
    assert_same(
        read_response(split.send(asked).result()), read_response(client.send(asked).result())
    )


def with_candidates(model, named, users, rng, count):
    batch = len(named["ids"])
    return named | users.candidates(rng, batch, count) if model == "ranking" else named


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "parameters", [{}, {"k": 3}, {"num_candidates": 64}, {"num_candidates": 4, "k": 6}]
)
def test_reference_users_are_answered_as_by_the_fused_models(
    split, client, reference_users, users, tensors, model, parameters
):
    named = with_candidates(
        model, tensors(reference_users), users, np.random.default_rng(0), count=17
    )
    assert_answers_alike(split, client, model, named, **parameters)


def test_the_public_client_and_the_gate_see_what_eager_pytorch_answered(split_server, golden):
    reference = load_reference(golden, read_manifest(golden).reference)
    with RecommenderClient(split_server.endpoints.grpc, timeout=20) as client:
        found = served_answer(client, reference)(reference.users)
    for stage, expected in reference.expected.items():
        np.testing.assert_array_equal(found[stage].items, expected.items)
        np.testing.assert_allclose(found[stage].scores, expected.scores, rtol=1e-5, atol=1e-6)


def test_the_served_gate_stores_its_rows_with_the_public_models(
    split_server, split_repository, tmp_path
):
    repository = shutil.copytree(split_repository, tmp_path / "repository")
    rows = served(split_server.endpoints.grpc, repository)
    assert [(row.stage, row.path) for row in rows] == [
        ("retrieval", "served"),
        ("recommend", "served"),
    ]
    for model, row in zip(("retrieval", "ranking"), rows, strict=True):
        *compiled, stored = read_manifest(repository / model / "1").fidelity
        assert stored == row
        assert [known.path for known in compiled] in (["engine"], ["onnx", "engine"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_random_users_with_excluded_items_are_answered_as_by_the_fused_models(
    split, client, users, tensors, model, batch
):
    rng = np.random.default_rng(batch)
    named = with_candidates(model, tensors(users.batch(rng, batch)), users, rng, count=9)
    assert_answers_alike(split, client, model, named)


@pytest.mark.parametrize("model", MODELS)
def test_users_with_nothing_known_get_the_fallback(split, client, users, tensors, model):
    rng = np.random.default_rng(1)
    asked = users.batch(rng, 6)
    asked.ids[::2] = UNKNOWN_ID
    asked.lengths[4] = 0
    named = with_candidates(model, tensors(asked), users, rng, count=9)
    assert_answers_alike(split, client, model, named)


@pytest.mark.parametrize("count", [0, 1, 64])
def test_empty_slots_and_lists_are_ranked_as_by_the_fused_model(
    split, client, users, tensors, count
):
    rng = np.random.default_rng(2)
    named = with_candidates("ranking", tensors(users.batch(rng, 3)), users, rng, 50)
    named["candidates"] = np.resize(named["candidates"], (3, count))
    named["candidate_scores"] = np.resize(named["candidate_scores"], (3, count))
    named["candidates"][:, ::3] = -1
    named["candidate_scores"][:, ::3] = np.nan
    assert_answers_alike(split, client, "ranking", named, k=7)


def test_requests_of_any_shape_sent_at_once_are_answered_as_each_alone(split, users, tensors):
    rng = np.random.default_rng(3)
    asked = []
    for i in range(150):
        model = MODELS[i % 3]
        named = tensors(users.batch(rng, int(rng.integers(1, 4))))
        named = with_candidates(model, named, users, rng, int(rng.integers(0, 20)))
        k = int(rng.integers(1, 30))
        asked.append(make_request(model, named, k=k, num_candidates=k))
    futures = [split.send(request) for request in asked]
    for request, future in zip(asked, futures, strict=True):
        assert_same(read_response(future.result()), read_response(split.send(request).result()))


def lying_lengths(tensors):
    tensors["lengths"][1, 1] += 1000


def negative_length(tensors):
    tensors["lengths"][1, 2] = -1


def dense_not_finite(tensors):
    tensors["dense"][1, 0] = np.nan


def dense_too_narrow(tensors):
    tensors["dense"] = tensors["dense"][:, :1].copy()


def lengths_too_narrow(tensors):
    tensors["lengths"] = tensors["lengths"][:, :3].copy()


def one_user_less(tensors):
    tensors["ids"] = tensors["ids"][:1].copy()


def ids_of_another_type(tensors):
    tensors["ids"] = tensors["ids"].astype(np.int32)


def no_dense(tensors):
    del tensors["dense"]


def score_not_finite(tensors):
    if "candidate_scores" in tensors:
        tensors["candidate_scores"][1, 3] = np.inf
    else:
        dense_not_finite(tensors)


SPOILED = [
    lying_lengths,
    negative_length,
    dense_not_finite,
    dense_too_narrow,
    lengths_too_narrow,
    one_user_less,
    ids_of_another_type,
    no_dense,
    score_not_finite,
]


def reason(message):
    """What stands behind the name of the model or stage, which is not the same in both."""
    return message.rpartition("[r")[2].partition("] ")[2]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("spoil", SPOILED)
def test_a_bad_request_is_refused_as_by_the_fused_models(
    split, client, users, tensors, model, spoil
):
    rng = np.random.default_rng(4)
    named = with_candidates(model, tensors(users.batch(rng, 2)), users, rng, 5)
    spoil(named)
    expected = client.refusal(make_request(model, named))
    code, message = split.refusal(make_request(model, named))
    assert code == expected[0]
    # Otherwise it is the server's own; about a missing one it counts optional inputs, too.
    if expected[1].startswith("[") and spoil is not no_dense:
        assert reason(message) == reason(expected[1])


@pytest.mark.parametrize("value", [0, -1, 65, 2**63 - 1, "5", 5.0, True])
@pytest.mark.parametrize(
    ("model", "name", "last"),
    [
        ("retrieval", "num_candidates", "retrieval_topk"),
        ("recommend", "num_candidates", "retrieval_topk"),
        ("ranking", "k", "ranking_order"),
        ("recommend", "k", "ranking_order"),
    ],
)
def test_a_size_out_of_range_is_refused_by_the_stage_that_reads_it(
    split, users, tensors, model, name, last, value
):
    rng = np.random.default_rng(5)
    named = with_candidates(model, tensors(users.batch(rng, 2)), users, rng, 5)
    code, message = split.refusal(make_request(model, named, **{name: value}))
    assert code == INVALID
    assert f"[{last}] parameter {name}: expected 1 to 64, found" in message


def test_every_stage_is_in_the_statistics(split, users, tensors):
    named = tensors(users.batch(np.random.default_rng(6), 2))
    before = {model: split.statistics(model).inference_stats.success.count for model in STAGES}
    for _ in range(5):
        split.infer("recommend", named)
    for model, count in before.items():
        assert split.statistics(model).inference_stats.success.count - count == 5


def test_only_the_outputs_that_were_asked_for_are_sent(split, users, tensors):
    named = tensors(users.batch(np.random.default_rng(7), 2))
    assert list(split.infer("recommend", named, outputs=["scores"])) == ["scores"]
    named |= users.candidates(np.random.default_rng(7), 2, 5)
    assert list(split.infer("ranking_lookup", named, outputs=["items"])) == ["items"]
