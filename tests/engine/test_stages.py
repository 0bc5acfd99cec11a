"""Single stages: of an engine that has them all, and of version directories that hold one."""

import shutil

import numpy as np
import pytest
from bundle_copy import Copy
from places import StagesOnGpu
from test_engine import UNKNOWN, assert_same, random_users, wire

from recengine.client.wire import WireUsers, pack_users
from recengine.engine import Engine
from recengine.errors import BundleError, InputError


@pytest.fixture(scope="module")
def graphs(oracle):
    """The golden graphs by name, in ONNX's own evaluator."""
    return {
        name: lambda inputs, graph=graph: graph.run(None, inputs)[0]
        for name, graph in oracle.graphs.items()
    }


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def load(request):
    """Loads the stages of a directory, on the CPU or on a GPU."""
    return StagesOnGpu if request.param == "cuda" else Engine


@pytest.fixture(scope="module")
def stages(load, golden):
    """Those of the golden bundle."""
    return load(golden)


def keep(copy, model, stage, load=Engine, **changes):
    """The directory as one stage of a model: without graphs, tables only for a lookup."""
    manifest = copy.manifest() | {"stage": stage, "graphs": {}} | changes
    del manifest["ranking" if model == "retrieval" else "retrieval"]
    if stage != "lookup":
        manifest |= {"tables": {}, "dense_features": []}
    copy.write_manifest(manifest)
    return load(copy.directory)


def keys(users):
    return WireUsers(users.ids, users.lengths, None)


@pytest.fixture
def stage(golden, tmp_path, load):
    """Makes the engine of one stage."""

    def make(model, kind):
        return keep(Copy(shutil.copytree(golden, tmp_path / f"{model}_{kind}")), model, kind, load)

    return make


def test_lookups_give_what_the_graphs_read(stages, oracle, rng):
    users = random_users(rng, oracle, 40)
    candidates = rng.choice([*oracle.keys, -1, 12345], size=(40, 9))
    scores = rng.normal(size=candidates.shape).astype(np.float32)
    scores[candidates == -1] = np.nan
    tower = stages.look_up(users)
    ranker = stages.look_up_candidates(users, candidates, scores)
    assert set(tower) == {"sparse", "dense"}
    assert set(ranker) == {"sparse", "dense", "items", "candidate_scores"}
    rows = [[oracle.rows["items"].get(int(i), 0) for i in ids] for ids in candidates]
    np.testing.assert_array_equal(ranker["items"], oracle.tables["ranking_items"][rows])
    np.testing.assert_array_equal(
        ranker["candidate_scores"], np.where(candidates == -1, np.float32(0), scores)
    )
    for found, model in ((tower, oracle.manifest.retrieval), (ranker, oracle.manifest.ranking)):
        np.testing.assert_array_equal(found["dense"], users.dense)
        for user in range(40):
            sparse, known = oracle.user(model, users, user)
            np.testing.assert_allclose(
                found["sparse"][user], sparse[0] if known else 0 * sparse[0], rtol=1e-6, atol=1e-7
            )


@pytest.mark.parametrize("k", [1, 7, 64])
def test_stages_around_the_graphs_answer_as_the_engine(stages, engine, oracle, graphs, rng, k):
    users = random_users(rng, oracle, 60)
    candidates = stages.search(users, graphs["tower"](stages.look_up(users)), k)
    assert_same(candidates, engine.retrieve(users, k))
    scores = graphs["ranker"](stages.look_up_candidates(users, *candidates))
    assert_same(stages.order(users, *candidates, scores, 5), engine.rank(users, *candidates, 5))


def test_directories_of_one_stage_answer_as_the_whole(stage, engine, oracle, graphs, rng):
    users = random_users(rng, oracle, 30)
    sparse = stage("retrieval", "lookup").look_up(users)
    candidates = stage("retrieval", "topk").search(keys(users), graphs["tower"](sparse))
    assert_same(candidates, engine.retrieve(users))
    inputs = stage("ranking", "lookup").look_up_candidates(users, *candidates)
    scores = graphs["ranker"](inputs)
    found = stage("ranking", "order").order(keys(users), *candidates, scores)
    assert_same(found, engine.rank(users, *candidates))


def test_a_stage_needs_none_of_the_other_stages_files(stage, load, golden_users, tmp_path):
    """Of the golden bundle all tensors are in one file: what is checked is what is loaded."""
    engine = stage("retrieval", "topk")
    (tmp_path / "retrieval_topk" / "tower.onnx").unlink()
    with pytest.raises(BundleError, match=r"tower\.onnx"):
        load(tmp_path / "retrieval_topk")  # the manifest still lists it
    copy = Copy(tmp_path / "retrieval_topk")
    files = {name: entry for name, entry in copy.manifest()["files"].items() if "onnx" not in name}
    copy.write_manifest(copy.manifest() | {"files": files})
    vectors = np.ones((len(golden_users.ids), 8), np.float32)
    assert_same(
        load(copy.directory).search(keys(golden_users), vectors),
        engine.search(keys(golden_users), vectors),
        rtol=0,
    )


@pytest.mark.parametrize(
    ("model", "kind", "has"),
    [
        ("retrieval", "lookup", "retrieval lookup"),
        ("retrieval", "topk", "topk"),
        ("ranking", "lookup", "ranking lookup"),
        ("ranking", "order", "order"),
    ],
)
def test_a_stage_answers_for_itself_alone(stage, model, kind, has, golden_users):
    engine = stage(model, kind)
    users = golden_users if kind == "lookup" else keys(golden_users)
    batch = len(users.ids)
    dim = 8 if kind == "topk" else 0
    items = np.zeros((batch, 2), np.int64), np.zeros((batch, 2), np.float32)
    calls = {
        "retrieval lookup": lambda: engine.look_up(users),
        "topk": lambda: engine.search(users, np.ones((batch, dim), np.float32)),
        "ranking lookup": lambda: engine.look_up_candidates(users, *items),
        "order": lambda: engine.order(users, *items, items[1]),
    }
    if isinstance(engine, Engine):
        assert not engine.has_retrieval
        assert not engine.has_ranking
        calls["retrieval"] = lambda: engine.retrieve(users)
        calls["ranking"] = lambda: engine.rank(users, *items)
    calls.pop(has)()
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"no {name} stage"):
            call()


def test_a_list_without_candidates_has_one_empty_slot(stages, golden_users):
    none = np.empty((len(golden_users.ids), 0))
    inputs = stages.look_up_candidates(golden_users, none.astype(np.int64), none)
    assert inputs["items"].shape == (len(none), 1, 12)
    assert not inputs["candidate_scores"].any()
    items, scores = stages.order(
        golden_users, none.astype(np.int64), none, inputs["candidate_scores"], k=3
    )
    assert (items == -1).all()
    assert np.isneginf(scores).all()


def unknown_then_known(engine, oracle):
    return pack_users(engine.schema, [UNKNOWN, {**UNKNOWN, "history": [int(oracle.keys[0])]}])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_an_error_of_a_known_user(stages, oracle, value):
    users = unknown_then_known(stages, oracle)
    vectors = np.ones((2, 8), np.float32)
    vectors[0, 3] = value
    items, _ = stages.search(users, vectors, k=3)
    np.testing.assert_array_equal(items[0], oracle.keys[oracle.fallback[0][:3]])
    vectors[1, 3] = value
    with pytest.raises(InputError, match="user 1: expected a finite user vector from the graph"):
        stages.search(users, vectors)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_graph_score_that_is_not_finite_is_an_error_of_a_known_users_item(stages, oracle, value):
    users = unknown_then_known(stages, oracle)
    candidates = np.array([[*oracle.keys[:2], -1]] * 2)
    own = np.array([[1, 2, np.nan]] * 2, np.float32)
    scores = np.array([[value] * 3, [5, 4, value]], np.float32)
    items, found = stages.order(users, candidates, own, scores, k=2)
    np.testing.assert_array_equal(items, [oracle.keys[[1, 0]], oracle.keys[[0, 1]]])
    np.testing.assert_array_equal(found, [[2, 1], [5, 4]])
    scores[1, 1] = value
    with pytest.raises(InputError, match="expected a finite score"):
        stages.order(users, candidates, own, scores)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_candidates_own_score_that_is_not_finite_is_refused_by_its_place(stages, oracle, value):
    users = unknown_then_known(stages, oracle)
    candidates = np.array([[*oracle.keys[:2], -1]] * 2)
    own = np.array([[1, 2, value]] * 2, np.float32)
    graph_scores = np.ones((2, 3), np.float32)
    stages.order(users, candidates, own, graph_scores)
    own[1, 1] = value
    with pytest.raises(InputError, match=r"candidate_scores\[1, 1\]: expected a finite score"):
        stages.order(users, candidates, own, graph_scores)


@pytest.mark.parametrize("shape", [(2, 7), (2, 9), (1, 8), (3, 8), (2, 0)])
def test_vectors_of_another_shape_are_refused_by_name(stages, oracle, shape):
    users = unknown_then_known(stages, oracle)
    with pytest.raises(InputError, match=r"user: expected shape \[2, 8\], found"):
        stages.search(users, np.ones(shape, np.float32))


@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (1, 3), (2, 0)])
def test_graph_scores_of_another_shape_are_refused_by_name(stages, oracle, shape):
    users = unknown_then_known(stages, oracle)
    candidates = np.tile(oracle.keys[:3], (2, 1))
    with pytest.raises(InputError, match=r"graph_scores: expected shape \[2, 3\], found"):
        stages.order(users, candidates, np.zeros((2, 3)), np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("stage", "gone", "message"),
    [
        ("topk", "retrieval", "stage: expected topk with retrieval alone"),
        ("order", "ranking", "stage: expected topk with retrieval alone"),
        ("lookup", None, "stage: expected topk with retrieval alone"),
        ("ensemble", "ranking", 'stage: expected "lookup" or "topk" or "order", found "ensemble"'),
    ],
)
def test_a_stage_that_is_not_of_its_model_is_refused(copy, stage, gone, message):
    manifest = copy.manifest() | {"stage": stage}
    manifest.pop(gone, None)
    copy.write_manifest(manifest)
    with pytest.raises(BundleError, match=message):
        Engine(copy.directory)


def test_a_lookup_without_its_table_is_refused(copy):
    manifest = copy.manifest()
    del manifest["tables"]["recent"]
    copy.write_manifest(manifest)
    with pytest.raises(BundleError, match='names table "recent", which the manifest does not have'):
        keep(copy, "retrieval", "lookup", tables=manifest["tables"])


def test_users_alone_and_together_look_up_the_same(stages, oracle, rng):
    users = random_users(rng, oracle, 20)
    together = stages.look_up(users)["sparse"]
    for i in range(20):
        one = WireUsers(users.ids[i : i + 1], users.lengths[i : i + 1], users.dense[i : i + 1])
        np.testing.assert_array_equal(stages.look_up(one)["sparse"][0], together[i])
    assert not stages.look_up(wire([([], [], [], [])]))["sparse"].any()
