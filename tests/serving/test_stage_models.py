"""The single stages of a split repository, asked by clients directly."""

import re
import shutil
import time

import grpc
import numpy as np
import pytest
from malformed import (
    CLEAR,
    INVALID,
    Flood,
    Mutator,
    assert_extreme_shapes_are_refused,
    assert_wrong_dtypes_are_refused,
    assert_wrong_ranks_are_refused,
)
from places import StagesOnGpu
from raw_client import RawClient, make_request, read_answer, read_response
from split_server import compile_stages, place_on_gpu

from recengine.bundle import load_tensor, read_manifest
from recengine.compile.split import STAGES
from recengine.engine import Engine
from recengine.errors import ServerError
from recengine.serving.server import TritonServer

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ITEM_DIMS = "  dims: -1\n  dims: 12\n"
BATCH, NUM_CANDIDATES, DIM = 2, 5, 8
USERS = ("ids", "lengths")
CANDIDATES = ("candidates", "candidate_scores")
INPUTS = {
    "retrieval_lookup": (*USERS, "dense"),
    "retrieval_topk": (*USERS, "user", "deadline"),
    "ranking_lookup": (*USERS, "dense", *CANDIDATES, "deadline"),
    "ranking_order": (*USERS, *CANDIDATES, "graph_scores", "deadline"),
}
EACH_TENSOR = [(model, name) for model, names in INPUTS.items() for name in names]


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def split_repository(request, golden, tmp_path_factory):
    """The stages alone, on the CPU or on a GPU."""
    repository = compile_stages(golden, tmp_path_factory.mktemp("stages") / "model_repository")
    return repository if request.param == "cpu" else place_on_gpu(repository)


@pytest.fixture(scope="session")
def stages(split_repository, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "tritonserver.log"
    with (
        TritonServer(split_repository, log=log) as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        yield client


@pytest.fixture(scope="session")
def engines(split_repository):
    """The same stages in process, on the same device."""
    on_gpu = "KIND_CPU" not in (split_repository / "retrieval_topk" / "config.pbtxt").read_text()
    load = StagesOnGpu if on_gpu else Engine
    return {model: load(split_repository / model / "1") for model in STAGES}


@pytest.fixture
def valid(users, tensors):
    """A good request's tensors, of a stage."""

    def make(model, batch=BATCH, seed=0):
        rng = np.random.default_rng(seed)
        named = tensors(users.batch(rng, batch)) | users.candidates(rng, batch, NUM_CANDIDATES)
        named["user"] = rng.normal(size=(batch, DIM)).astype(np.float32)
        named["graph_scores"] = rng.normal(size=(batch, NUM_CANDIDATES)).astype(np.float32)
        named["deadline"] = np.full((batch, 1), 2**62)
        return {name: named[name] for name in INPUTS[model]}

    return make


def test_lookups_are_the_engines_to_the_bit(stages, engines, users, tensors):
    rng = np.random.default_rng(0)
    asked, candidates = users.batch(rng, 7), users.candidates(rng, 7, 9)
    candidates["candidates"][:, 4] = -1
    candidates["candidate_scores"][:, 4] = np.nan
    found = stages.infer("retrieval_lookup", tensors(asked))
    expected = engines["retrieval_lookup"].look_up(asked)
    np.testing.assert_array_equal(found["sparse"], expected["sparse"])
    found = stages.infer("ranking_lookup", tensors(asked) | candidates)
    expected = engines["ranking_lookup"].look_up_candidates(asked, *candidates.values())
    np.testing.assert_array_equal(found["sparse"], expected["sparse"])
    np.testing.assert_array_equal(found["items"], expected["items"])
    np.testing.assert_array_equal(found["item_scores"], expected["candidate_scores"])


@pytest.mark.parametrize("model", INPUTS)
def test_requests_of_any_shape_sent_at_once_are_answered_as_each_alone(
    stages, valid, users, tensors, model
):
    asked = []
    for seed in range(100):
        named = valid(model, batch=1 + seed % 4, seed=seed)
        kept = seed % (NUM_CANDIDATES + 1)
        for name in {*CANDIDATES, "graph_scores"} & set(named):
            width = max(1, kept) if name == "graph_scores" else kept
            named[name] = named[name][:, :width].copy()
        asked.append(make_request(model, named, k=1 + seed % 9, num_candidates=1 + seed % 9))
    futures = [stages.send(request) for request in asked]
    for request, future in zip(asked, futures, strict=True):
        together, alone = (read_answer(one.result()) for one in (future, stages.send(request)))
        assert together.keys() == alone.keys()
        for name, found in together.items():
            np.testing.assert_array_equal(found, alone[name])


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_a_wrong_dtype_is_refused(stages, valid, model, name):
    assert_wrong_dtypes_are_refused(stages, model, valid(model), name)


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_a_wrong_rank_is_refused(stages, valid, model, name):
    assert_wrong_ranks_are_refused(stages, model, valid(model), name)


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_extreme_shapes_are_refused_with_and_without_bytes(stages, valid, model, name):
    # Of an optional tensor the server looks at the bytes, and not at the batch size.
    any_batch = name == "deadline"
    assert_extreme_shapes_are_refused(stages, model, valid(model, batch=1), name, any_batch)


@pytest.mark.parametrize(("model", "name"), EACH_TENSOR)
def test_a_missing_tensor_is_refused(stages, valid, model, name):
    tensors = valid(model)
    del tensors[name]
    if name == "deadline":
        assert stages.send(make_request(model, tensors)).exception() is None
    else:
        assert stages.refusal(make_request(model, tensors))[0] == INVALID


@pytest.mark.parametrize("model", ["retrieval_lookup", "ranking_lookup"])
def test_a_lookup_says_when_the_request_is_to_be_answered(stages, valid, model):
    timeout_s, tensors = 5, valid(model)
    before = time.monotonic_ns()
    request = make_request(model, tensors, timeout=timeout_s * 1_000_000)
    told = read_response(stages.send(request).result())["deadline"]
    after = time.monotonic_ns()
    assert told.shape == (BATCH, 1)
    assert before <= told[0, 0] - timeout_s * 10**9 <= after
    assert told[0, 0] == told[1, 0]


def test_a_deadline_that_was_told_goes_on_unless_the_own_one_is_earlier(stages, valid):
    tensors = valid("ranking_lookup")
    soon = time.monotonic_ns() + 3 * 10**9
    tensors["deadline"][1] = soon  # the earliest of the rows
    request = make_request("ranking_lookup", tensors, timeout=60_000_000)
    assert read_response(stages.send(request).result())["deadline"].tolist() == [[soon]] * BATCH
    request = make_request("ranking_lookup", tensors, timeout=1_000_000)
    assert (read_response(stages.send(request).result())["deadline"] < soon).all()


@pytest.mark.parametrize("model", [model for model, names in INPUTS.items() if "deadline" in names])
@pytest.mark.parametrize("late", [lambda: time.monotonic_ns() - 1, lambda: 0, lambda: -(2**63)])
def test_a_request_whose_deadline_has_passed_is_shed_by_an_idle_stage_too(
    stages, valid, model, late
):
    tensors = valid(model)
    tensors["deadline"][1] = late()
    code, message = stages.refusal(make_request(model, tensors))
    assert code == UNAVAILABLE
    assert message == "recengine: shed: deadline of 0 us cannot be met"


@pytest.mark.parametrize("model", INPUTS)
def test_batch_sizes_that_disagree_are_refused(stages, valid, model):
    two, three = valid(model, batch=2), valid(model, batch=3)
    for name in two:
        assert stages.refusal(make_request(model, two | {name: three[name]}))[0] == INVALID


@pytest.mark.parametrize("model", INPUTS)
def test_lengths_that_lie_are_refused_by_name(stages, valid, model):
    tensors = valid(model)
    width = tensors["ids"].shape[1]
    tensors["lengths"][1] = (2**31 - 1,) * 4
    code, message = stages.refusal(make_request(model, tensors))
    assert code == INVALID
    assert f"lengths[1]: expected a sum of at most {width}" in message
    tensors["lengths"][1] = (0, 0, -7, 0)
    code, message = stages.refusal(make_request(model, tensors))
    assert code == INVALID
    assert "lengths[1, 2] (country): expected a length >= 0, found -7" in message


@pytest.mark.parametrize("width", [0, DIM - 1, DIM + 1, 2 * DIM])
def test_a_user_vector_of_another_width_is_refused(stages, valid, width):
    tensors = valid("retrieval_topk") | {"user": np.zeros((BATCH, width), np.float32)}
    code, message = stages.refusal(make_request("retrieval_topk", tensors))
    assert code == INVALID
    assert "user" in message


@pytest.mark.parametrize("width", [0, NUM_CANDIDATES - 1, NUM_CANDIDATES + 1, 64])
def test_graph_scores_of_another_number_of_candidates_are_refused_by_name(stages, valid, width):
    tensors = valid("ranking_order") | {"graph_scores": np.zeros((BATCH, width), np.float32)}
    code, message = stages.refusal(make_request("ranking_order", tensors))
    assert code == INVALID
    assert f"graph_scores: expected shape [2, {NUM_CANDIDATES}], found [2, {width}]" in message


@pytest.mark.parametrize("model", ["ranking_lookup", "ranking_order"])
def test_more_candidates_than_a_request_may_have_are_refused_by_name(stages, valid, users, model):
    tensors = valid(model) | {
        "candidates": np.resize(users.items, (BATCH, 65)),
        "candidate_scores": np.zeros((BATCH, 65), np.float32),
    }
    code, message = stages.refusal(make_request(model, tensors))
    assert code == INVALID
    assert "candidates: expected at most 64 per user, found 65" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("retrieval_lookup", "dense", "dense[1, 1] (activity): expected a finite value"),
        ("ranking_lookup", "candidate_scores", "candidate_scores[1, 1]: expected a finite score"),
        ("ranking_order", "candidate_scores", "candidate_scores[1, 1]: expected a finite score"),
        ("retrieval_topk", "user", "user 1: expected a finite user vector from the graph"),
        ("ranking_order", "graph_scores", "finite"),
    ],
)
def test_values_that_are_not_finite_are_an_error_of_that_request_alone(
    stages, valid, users, model, name, message, value
):
    bad = valid(model)
    bad["ids"][:, 0], bad["lengths"][:] = users.vocabularies[0][0], (1, 0, 0, 0)  # known
    good = make_request(model, bad)
    bad[name][1, 1] = value
    futures = [stages.send(make_request(model, bad) if i % 2 else good) for i in range(40)]
    expected = stages.send(good).result()
    for i, future in enumerate(futures):
        if i % 2:
            assert future.code() == INVALID
            assert message in future.details()
        else:
            found = read_answer(future.result())
            for output, rows in read_answer(expected).items():
                np.testing.assert_array_equal(found[output], rows)


def test_what_a_graph_made_of_a_user_with_nothing_known_is_not_read(stages, valid, golden):
    topk, order = valid("retrieval_topk"), valid("ranking_order")
    for tensors, name in ((topk, "user"), (order, "graph_scores")):
        tensors["ids"][:] = 4242424242
        tensors[name][:] = np.nan
    retrieval = read_manifest(golden).retrieval
    fallback = load_tensor(golden, retrieval.index.keys)[
        load_tensor(golden, retrieval.fallback.rows)
    ]
    found = stages.infer("retrieval_topk", topk)
    np.testing.assert_array_equal(found["item_ids"], [fallback[:20]] * BATCH)
    found = stages.infer("ranking_order", order, k=NUM_CANDIDATES)
    best = np.argsort(-order["candidate_scores"], axis=1, kind="stable")
    np.testing.assert_array_equal(
        found["item_ids"], np.take_along_axis(order["candidates"], best, axis=1)
    )


@pytest.mark.alone
def test_a_full_queue_of_a_stage_sheds(split_repository, tmp_path, valid):
    repository = shutil.copytree(split_repository, tmp_path / "repository")
    config = repository / "retrieval_topk" / "config.pbtxt"
    limit = 'parameters { key: "recengine.max_queue_rows" value { string_value: "64" } }\n'
    config.write_text(config.read_text() + limit)
    request = make_request("retrieval_topk", valid("retrieval_topk", batch=64))
    with (
        TritonServer(
            repository, arguments=["--backend-config=recengine,threads=1"], log=tmp_path / "log"
        ) as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        errors = [future.exception() for future in [client.send(request) for _ in range(2000)]]
    messages = {error.details() for error in errors if error is not None}
    assert messages == {"recengine: shed: queue full (64 rows)"}
    assert None in errors


@pytest.mark.parametrize(
    ("model", "before", "after", "message"),
    [
        ("retrieval_topk", 'name: "user"', 'name: "vector"', "input user is missing"),
        ("retrieval_topk", "dims: 8", "dims: 9", "input user: expected dims 8, found 9"),
        ("retrieval_lookup", "dims: 24", "dims: 25", "output sparse: expected dims 24, found 25"),
        ("retrieval_lookup", 'name: "sparse"', 'name: "s"', "output sparse is missing"),
        ("ranking_lookup", ITEM_DIMS, ITEM_DIMS + "  dims: 1\n", "items: expected 2 dims, found 3"),
        (
            "ranking_lookup",
            ITEM_DIMS,
            "  dims: -1\n  dims: 9\n",
            "expected dims -1, 12, found -1, 9",
        ),
        ("ranking_lookup", 'name: "item_scores"', 'name: "x"', "output item_scores is missing"),
        ("ranking_order", 'name: "graph_scores"', 'name: "x"', "input graph_scores is missing"),
        ("ranking_order", 'name: "item_ids"', 'name: "x"', "output item_ids is missing"),
        ("ranking_order", "  dims: 1\n", "  dims: 2\n", "input deadline: expected dims 1, found 2"),
        (
            "retrieval_lookup",
            'backend: "recengine"\n',
            'backend: "recengine"\nresponse_cache { enable: true }\n',
            "response_cache: expected none, for the output deadline is each request's own",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_stage_is_refused_naming_the_tensor(
    split_repository, tmp_path, model, before, after, message
):
    repository = tmp_path / "repository"
    shutil.copytree(split_repository / model, repository / model)
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    assert before in text
    # Without warm-up, whose own checks would speak first.
    text = re.sub(r"model_warmup \{(.|\n)*?\n\}\n", "", text.replace(before, after))
    path.write_text(text)
    expected = re.escape(f"[{model}] config.pbtxt: ") + ".*" + re.escape(message)
    with pytest.raises(ServerError, match=expected):
        TritonServer(repository, log=tmp_path / "log").start()


def test_configs_of_before_deadlines_were_told_are_served(split_repository, tmp_path, valid):
    repository = shutil.copytree(split_repository, tmp_path / "repository")
    for model in INPUTS:
        path = repository / model / "config.pbtxt"
        text, count = re.subn(r"\w+ \{\n  name: \"deadline\"\n(.*\n)*?\}\n", "", path.read_text())
        assert count == (model != "retrieval_lookup") + ("lookup" in model)
        path.write_text(text)
    with (
        TritonServer(repository, log=tmp_path / "log") as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        for model in INPUTS:
            tensors = valid(model)
            tensors.pop("deadline", None)
            assert "deadline" not in client.infer(model, tensors)


def test_twenty_thousand_malformed_requests_leave_the_stages_healthy(stages, valid):
    good = [make_request(model, valid(model, seed=seed)) for model in INPUTS for seed in range(8)]
    mutator = Mutator(0, good)
    expected = [read_answer(stages.send(request).result()) for request in good]
    flood = Flood(stages, in_flight=64)
    for _ in range(20_000):
        flood.send(mutator.request())
    flood.wait()
    assert set(flood.codes) <= CLEAR
    assert flood.codes[INVALID] > 10_000
    assert flood.messages["empty"] == 0
    for request, before in zip(good, expected, strict=True):
        after = read_answer(stages.send(request).result())
        for name, found in after.items():
            np.testing.assert_array_equal(found, before[name])
