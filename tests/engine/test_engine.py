import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import openvino
import pytest
from bundle_copy import Copy
from reference import Reference

from recengine.bundle import hash_file
from recengine.client.wire import WireUsers, pack_users
from recengine.engine import Engine
from recengine.errors import BundleError, CompileError, InputError

INT64 = np.iinfo(np.int64)
UNKNOWN = {"age": 0.5, "activity": -0.5}


def assert_same(found, expected, rtol=1e-5):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=rtol, atol=1e-5)


def wire(lists, dense=None):
    """Users from id lists, one list per feature and one of excluded items for each user."""
    lengths = np.array([[len(ids) for ids in user] for user in lists], np.int32)
    ids = np.full((len(lists), max(1, lengths.sum(axis=1).max())), 99, np.int64)
    for row, user in enumerate(lists):
        flat = [i for ids_ in user for i in ids_]
        ids[row, : len(flat)] = flat
    return WireUsers(
        ids, lengths, np.zeros((len(lists), 2), np.float32) if dense is None else dense
    )


def random_users(rng, oracle, count):
    """Known and unknown ids, repeats, ends of int64, any length."""
    item_ids = np.concatenate([oracle.keys, [-1, 1, 17, INT64.min + 1, INT64.max - 1]])
    countries = [*oracle.rows["countries"], -5]
    lists = [
        (
            rng.integers(90, 130, rng.integers(0, 3)),
            rng.choice(item_ids, rng.integers(0, 25)),
            rng.choice(countries, rng.integers(0, 2)),
            rng.choice(item_ids, rng.integers(0, 60)),
        )
        for _ in range(count)
    ]
    return wire(lists, rng.normal(size=(count, 2)).astype(np.float32))


def row(users, i):
    return WireUsers(users.ids[i : i + 1], users.lengths[i : i + 1], users.dense[i : i + 1])


@pytest.mark.parametrize("row_type", ["bf16", "int4"])
def test_tables_of_the_row_types_that_the_golden_bundle_lacks(copy, rng, row_type):
    copy.store_table("user", row_type)
    oracle = Reference(copy.directory)
    assert oracle.manifest.tables["user"].row_type == row_type
    users = random_users(rng, oracle, 40)
    assert_same(Engine(copy.directory).recommend(users), oracle.recommend(users, 10, 20), 1e-4)


def test_engine_answers_as_when_the_golden_bundle_was_made(engine, golden_users, golden_answers):
    candidates = golden_answers["candidates"], golden_answers["candidate_scores"]
    items = golden_answers["items"], golden_answers["scores"]
    assert_same(engine.retrieve(golden_users), candidates)
    assert_same(engine.rank(golden_users, *candidates), items)
    assert_same(engine.recommend(golden_users), items)


@pytest.mark.parametrize("k", [1, 7, 50, 64])
def test_engine_answers_as_the_oracle(engine, oracle, rng, k):
    users = random_users(rng, oracle, 60)
    assert_same(engine.retrieve(users, k=k), oracle.retrieve(users, k))
    assert_same(engine.recommend(users, k=5, num_candidates=k), oracle.recommend(users, 5, k))


def test_ranking_takes_unknown_repeated_and_empty_candidates(engine, oracle, rng):
    users = random_users(rng, oracle, 40)
    pool = np.concatenate([oracle.keys, [-1, -1, 123, INT64.max - 7]])
    candidates = rng.choice(pool, size=(40, 33))
    scores = rng.normal(size=candidates.shape).astype(np.float32)
    scores[candidates == -1] = np.where(rng.random((candidates == -1).sum()) < 0.5, np.nan, -np.inf)
    assert_same(
        engine.rank(users, candidates, scores, k=40), oracle.rank(users, candidates, scores, 40)
    )


def test_no_item_in_a_history_is_padding(engine, oracle):
    items = oracle.keys[:20].tolist()
    padded = [-1, *items[:3], -1, -1, *items[3:], *[-1] * 30]
    known = [100]
    full = engine.recommend(wire([(known, items, [], [])]))
    assert_same(engine.recommend(wire([(known, padded, [], [])])), full, rtol=0)
    # Elsewhere -1 is a key like others: the last one, and unknown.
    other = engine.recommend(wire([([*known, -1], items, [], [])]))
    assert_same(other, engine.recommend(wire([([-7], items, [], [])])), rtol=0)
    assert not np.array_equal(other[1], full[1])


def test_a_history_of_padding_alone_is_nothing_known(engine):
    nothing = engine.retrieve(wire([([], [], [], [])]), k=10)
    assert_same(engine.retrieve(wire([([], [-1, -1], [], [])]), k=10), nothing, rtol=0)


def test_batch_answers_as_each_user_alone(engine, oracle, rng):
    users = random_users(rng, oracle, 30)
    together = engine.recommend(users)
    for i in range(30):
        alone = engine.recommend(row(users, i))
        assert_same(alone, (together[0][i : i + 1], together[1][i : i + 1]))


def test_user_with_nothing_known_gets_the_fallback_without_excluded_items(engine, oracle):
    fallback = oracle.keys[oracle.fallback[0]]
    users = pack_users(
        engine.schema,
        [UNKNOWN, {**UNKNOWN, "user_id": 5, "history": [1, 2], "country": "nowhere"}],
        exclude=[[], [int(fallback[0]), 1, int(fallback[2]), int(fallback[2])]],
    )
    items, scores = engine.retrieve(users, k=32)
    np.testing.assert_array_equal(items[0], [*fallback, -1, -1])
    np.testing.assert_array_equal(scores[0], [*oracle.fallback[1], -np.inf, -np.inf])
    np.testing.assert_array_equal(items[1], [fallback[1], *fallback[3:], -1, -1, -1, -1])


def test_user_with_nothing_known_keeps_the_order_of_the_candidates(engine, item_keys):
    candidates = np.array([[item_keys[3], -1, item_keys[1], 12345, item_keys[2]]])
    scores = np.array([[0.5, 9, 0.9, 0.5, -1]], np.float32)
    items, found = engine.rank(pack_users(engine.schema, [UNKNOWN]), candidates, scores, k=5)
    assert items.tolist() == [[item_keys[1], item_keys[3], 12345, item_keys[2], -1]]
    assert found.tolist() == [[np.float32(0.9), 0.5, 0.5, -1, -np.inf]]


def test_history_of_a_million_ids_counts_by_its_last_ones(engine, rng, item_keys):
    history = rng.choice(item_keys, 1_000_000)
    long = wire([([100], history, [], [])])
    short = wire([([100], history[-10:], [], [])])
    assert_same(engine.recommend(long), engine.recommend(short))


def test_a_million_excluded_ids_are_excluded(engine, item_keys):
    excluded = np.resize(item_keys[:-1], 1_000_000)
    users = wire([([100], [], [], excluded), ([], [], [], excluded)])
    items, _ = engine.retrieve(users, k=3)
    assert items[0].tolist() == [item_keys[-1], -1, -1]
    assert set(items[1].tolist()) <= {item_keys[-1], -1}


def test_everything_excluded_leaves_an_empty_answer(engine, item_keys):
    users = wire([([100], item_keys[:3], [], item_keys), ([], [], [], item_keys)])
    for items, scores in (engine.retrieve(users), engine.recommend(users)):
        assert (items == -1).all()
        assert (scores == -np.inf).all()


def test_ids_at_the_ends_of_int64_are_looked_up_like_any_other(engine, oracle):
    ends = [INT64.min, INT64.max, -1, 0, INT64.min + 1, INT64.max - 1]
    users = wire([(ends, ends, ends, ends), ([INT64.max], [INT64.min], [INT64.min], [INT64.max])])
    assert_same(engine.recommend(users), oracle.recommend(users, 10, 20))


def test_what_lies_behind_the_lengths_is_ignored(engine, golden_users):
    padding = np.full((len(golden_users.ids), 7), INT64.min)
    ids = np.concatenate([golden_users.ids, padding], axis=1)
    padded = WireUsers(ids, golden_users.lengths, golden_users.dense)
    assert_same(engine.recommend(padded), engine.recommend(golden_users), rtol=0)


def test_no_candidates_give_an_empty_answer(engine, golden_users):
    empty = np.empty((len(golden_users.ids), 0))
    items, scores = engine.rank(golden_users, empty.astype(np.int64), empty.astype(np.float32), k=2)
    assert (items == -1).all()
    assert (scores == -np.inf).all()


def test_many_python_threads_get_the_answers_of_one(engine, oracle):
    batches = [random_users(np.random.default_rng(i), oracle, 1 + i % 7) for i in range(16)]
    expected = [engine.recommend(users) for users in batches]

    def call(i):
        assert_same(engine.recommend(batches[i % 16]), expected[i % 16])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(400)))


def test_number_of_threads_does_not_change_the_answer(golden, engine, golden_users):
    alone = Engine(golden, threads=1)
    assert_same(alone.recommend(golden_users), engine.recommend(golden_users))


def test_input_arrays_are_converted_when_no_value_is_lost(engine, golden_users):
    users = WireUsers(
        np.asfortranarray(golden_users.ids),
        golden_users.lengths.astype(np.int64),
        golden_users.dense.astype(np.float64),
    )
    assert_same(engine.recommend(users), engine.recommend(golden_users), rtol=0)


def amplify_dense(copy, name):
    """Multiplies a graph's weights of the dense features by 1e20."""
    model = onnx.load(copy.directory / f"{name}.onnx")
    tensor = next(t for t in model.graph.initializer if t.name == "w1")
    weights = onnx.numpy_helper.to_array(tensor).copy()
    weights[-2:] *= 1e20
    tensor.CopyFrom(onnx.numpy_helper.from_array(weights, "w1"))
    onnx.save(model, copy.directory / f"{name}.onnx")
    copy.rehash(f"{name}.onnx")


def test_graph_output_that_is_not_finite_is_an_error_naming_the_row(copy):
    amplify_dense(copy, "tower")
    amplify_dense(copy, "ranker")
    engine = Engine(copy.directory)
    dense = np.float32([[0, 0], [0, 0], [1e30, 1e30]])
    users = wire([([], [], [], []), ([100], [], [], []), ([101], [], [], [])], dense)
    with pytest.raises(InputError, match=r"\[retrieval\] user 2: expected a finite user vector"):
        engine.retrieve(users)
    with pytest.raises(InputError, match=r"scores\[2, 0\]: expected a finite score"):
        engine.rank(users, np.zeros((3, 1), np.int64), np.zeros((3, 1), np.float32))
    assert_same(engine.retrieve(row(users, 1)), Engine(copy.directory).retrieve(row(users, 1)))


IDS = np.zeros((2, 5), np.int64)
LENGTHS = np.array([[1, 2, 1, 1], [0, 0, 0, 0]], np.int32)
DENSE = np.zeros((2, 2), np.float32)
BAD_USERS = {
    "no users": (IDS[:0], LENGTHS[:0], DENSE[:0], "ids: expected at least one user, found 0"),
    "ids rank": (IDS[0], LENGTHS, DENSE, "ids: expected rank 2, found 1"),
    "ids dtype": (IDS * 1.0, LENGTHS, DENSE, "ids: expected int64, found float64"),
    "lengths cols": (
        IDS,
        LENGTHS[:, :3],
        DENSE,
        r"lengths: expected shape \[2, 4\], found \[2, 3\]",
    ),
    "lengths rows": (IDS, LENGTHS[:1], DENSE, r"lengths: expected shape \[2, 4\], found \[1, 4\]"),
    "lengths range": (
        IDS,
        LENGTHS + np.int64(2**31),
        DENSE,
        "lengths: expected values within int32",
    ),
    "negative": (IDS, LENGTHS - 1, DENSE, r"lengths\[1, 0\] \(user_id\): .* found -1"),
    "negative excluded": (
        IDS,
        np.int32([[0, 0, 0, 0], [0, 0, 0, -5]]),
        DENSE,
        r"lengths\[1, 3\] \(excluded items\): expected a length >= 0, found -5",
    ),
    "sum": (IDS, LENGTHS * 2, DENSE, r"lengths\[0\]: expected a sum of at most 5.* found 10"),
    "sum that wraps": (IDS, np.full((2, 4), 2**30, np.int32), DENSE, "found 4294967296"),
    "dense missing": (IDS, LENGTHS, None, r"dense: expected shape \[2, 2\], found \[2, 0\]"),
    "dense cols": (IDS, LENGTHS, DENSE[:, :1], r"dense: expected shape \[2, 2\], found \[2, 1\]"),
    "dense nan": (IDS, LENGTHS, DENSE + np.nan, r"dense\[0, 0\] \(age\): expected a finite value"),
    "dense inf": (IDS, LENGTHS, DENSE - np.inf, r"dense\[0, 0\] \(age\): .* found -inf"),
}


@pytest.mark.parametrize("case", BAD_USERS)
def test_users_that_are_not_as_the_schema_says_are_refused(engine, case):
    ids, lengths, dense, message = BAD_USERS[case]
    with pytest.raises(InputError, match=message):
        engine.recommend(WireUsers(ids, lengths, dense))


ITEMS = np.zeros((2, 3), np.int64)
SCORES = np.zeros((2, 3), np.float32)
BAD_CANDIDATES = {
    "rows": (ITEMS[:1], SCORES[:1], r"candidates: expected shape \[2, 3\], found \[1, 3\]"),
    "scores": (ITEMS, SCORES[:, :2], r"candidate_scores: expected shape \[2, 3\], found \[2, 2\]"),
    "nan": (
        ITEMS,
        SCORES + np.nan,
        r"candidate_scores\[0, 0\]: expected a finite score, found nan",
    ),
    "inf": (
        ITEMS,
        SCORES + np.inf,
        r"candidate_scores\[0, 0\]: expected a finite score, found inf",
    ),
    "many": (
        np.zeros((2, 65), np.int64),
        np.zeros((2, 65), np.float32),
        "candidates: expected at most 64 per user, found 65",
    ),
}


@pytest.mark.parametrize("case", BAD_CANDIDATES)
def test_candidates_that_are_not_as_the_schema_says_are_refused(engine, case):
    candidates, scores, message = BAD_CANDIDATES[case]
    with pytest.raises(InputError, match=message):
        engine.rank(WireUsers(IDS, LENGTHS, DENSE), candidates, scores)


@pytest.mark.parametrize("k", [0, -1, 65, 2**40])
def test_k_outside_its_range_is_refused(engine, golden_users, k):
    with pytest.raises(InputError, match=f"k: expected 1 to 64, found {k}"):
        engine.recommend(golden_users, k=k)
    with pytest.raises(InputError, match=f"num_candidates: expected 1 to 64, found {k}"):
        engine.recommend(golden_users, num_candidates=k)


def test_schema_is_what_the_manifest_says(engine):
    assert json.loads(engine.schema.to_json()) == {
        "name": "golden",
        "features": [
            {"name": "user_id", "max_length": 1, "hashed": False},
            {"name": "history", "max_length": 10, "hashed": False},
            {"name": "country", "max_length": 1, "hashed": True},
        ],
        "dense_features": ["age", "activity"],
        "num_items": 50,
        "num_candidates": 20,
        "max_candidates": 64,
        "k": 10,
        "hashed_items": False,
    }


def test_keys_of_items_are_strings_where_a_feature_of_items_says_so(copy):
    manifest = copy.manifest()
    manifest["features"][1]["hashed"] = True
    copy.write_manifest(manifest)
    assert Engine(copy.directory).schema.hashed_items


def keep_stage(copy, stage):
    manifest = copy.manifest()
    del manifest["ranking" if stage == "retrieval" else "retrieval"]
    copy.write_manifest(manifest)
    return Engine(copy.directory)


def test_a_directory_may_hold_retrieval_alone(copy, engine, golden_users):
    retrieval = keep_stage(copy, "retrieval")
    assert (retrieval.has_retrieval, retrieval.has_ranking) == (True, False)
    assert retrieval.schema.k == 20
    assert_same(retrieval.retrieve(golden_users), engine.retrieve(golden_users), rtol=0)
    with pytest.raises(InputError, match="no ranking stage"):
        retrieval.recommend(golden_users)


def test_a_directory_may_hold_ranking_alone(copy, engine, golden_users):
    ranking = keep_stage(copy, "ranking")
    assert (ranking.has_retrieval, ranking.has_ranking) == (False, True)
    assert (ranking.schema.max_candidates, ranking.schema.k) == (50, 10)
    candidates = engine.retrieve(golden_users)
    assert_same(ranking.rank(golden_users, *candidates), engine.rank(golden_users, *candidates), 0)
    with pytest.raises(InputError, match="no retrieval stage"):
        ranking.retrieve(golden_users, k=3)


@pytest.fixture(scope="module")
def compiled(golden, tmp_path_factory):
    """The golden bundle with OpenVINO IR in place of ONNX."""
    copy = Copy(shutil.copytree(golden, tmp_path_factory.mktemp("compiled") / "bundle"))
    manifest = copy.manifest()
    for name, graph in manifest["graphs"].items():
        model = openvino.convert_model(copy.directory / graph["file"])
        openvino.save_model(model, copy.directory / f"{name}.xml", compress_to_fp16=False)
        graph |= {"file": f"{name}.xml", "weights": f"{name}.bin", "format": "openvino"}
        for file in (graph["file"], graph["weights"]):
            manifest["files"][file] = hash_file(copy.directory / file).model_dump()
    copy.write_manifest(manifest)
    return copy


def test_openvino_graphs_answer_as_the_onnx_ones(compiled, engine, golden_users):
    assert_same(Engine(compiled.directory).recommend(golden_users), engine.recommend(golden_users))


def test_bf16_graphs_answer_within_their_precision(compiled, tmp_path, engine, golden_users):
    copy = Copy(shutil.copytree(compiled.directory, tmp_path / "bundle"))
    manifest = copy.manifest()
    for graph in manifest["graphs"].values():
        graph["precision"] = "bf16"
    copy.write_manifest(manifest)
    candidates = engine.retrieve(golden_users)
    found, expected = (e.rank(golden_users, *candidates) for e in (Engine(copy.directory), engine))
    np.testing.assert_allclose(found[1], expected[1], rtol=0.05, atol=0.1)


def test_weights_that_the_manifest_does_not_name_are_not_read(compiled, tmp_path):
    """They stand where OpenVINO would look for them, but nothing verified them."""
    copy = Copy(shutil.copytree(compiled.directory, tmp_path / "bundle"))
    manifest = copy.manifest()
    del manifest["graphs"]["tower"]["weights"]
    copy.write_manifest(manifest)
    with pytest.raises(CompileError, match="graph tower: OpenVINO"):
        Engine(copy.directory)


def test_the_schema_has_the_means_of_dense_features(copy):
    manifest = copy.manifest()
    manifest["provenance"]["dense_means"] = {"age": 0.25, "activity": -1}
    copy.write_manifest(manifest)
    engine = Engine(copy.directory)
    assert engine.schema.dense_defaults == {"age": 0.25, "activity": -1.0}
    users = pack_users(engine.schema, [{"user_id": 100}, {"user_id": 100, "age": 3}])
    assert users.dense.tolist() == [[0.25, -1], [3, -1]]
    assert engine.recommend(users)[0].shape == (2, engine.schema.k)


@pytest.mark.parametrize("mean", ["1", None, True, [0.5], 1e39])
def test_a_mean_that_is_no_number_is_refused(copy, mean):
    manifest = copy.manifest()
    manifest["provenance"]["dense_means"] = {"age": mean}
    copy.write_manifest(manifest)
    with pytest.raises(
        BundleError, match=r"provenance\.dense_means\.age: expected a number.*, found"
    ):
        Engine(copy.directory)
