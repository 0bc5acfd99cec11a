"""A tiny recommender with random weights, exported, against what torch computes."""

import dataclasses

import numpy as np
import onnx
import openvino
import pytest
import torch

from recengine.bundle import FidelityBounds, load_tensor, read_manifest, verify
from recengine.compile.fidelity import Ranked, load_reference, measure
from recengine.compile.repository import schema
from recengine.data.dataset import Ragged
from recengine.engine import Engine
from recengine.errors import InputError
from recengine.export import export
from recengine.export.reference import Sizes, reference_tensors
from recengine.training.checkpoint import save

# Largest score error by row type: what rounding every embedding row may do to these scores.
SCORE_ERROR = {"fp32": 1e-5, "fp16": 2e-3, "int8": 5e-2}


@pytest.fixture(scope="session")
def bundle(recommender, tmp_path_factory):
    """From a checkpoint on disk; the tests below export the recommender itself."""
    directory = tmp_path_factory.mktemp("export")
    save(recommender, directory / "checkpoint")
    export(directory / "checkpoint", directory / "bundle")
    return directory / "bundle"


def score_errors(directory):
    """The gate's rows of the bundle's own engine."""
    manifest = read_manifest(directory)
    reference = load_reference(directory, manifest.reference)
    engine = Engine(directory)

    def answer(users):
        candidates = Ranked(*engine.retrieve(users))
        items = Ranked(*engine.rank(users, candidates.items, candidates.scores))
        return {"retrieval": candidates, "recommend": items}

    return [item.row for item in measure(reference, answer, "engine", FidelityBounds())]


def test_the_engine_answers_as_eager_torch(bundle, recommender):
    for row in score_errors(bundle):
        assert row.score_error <= SCORE_ERROR["fp32"]
        assert row.identical_top_k == 1
        assert row.users == len(recommender.held_out.targets)


@pytest.mark.parametrize(("row_type", "dense"), [("fp16", ("age", "income")), ("int8", ())])
def test_smaller_rows_stay_within_their_error(make_recommender, tmp_path, row_type, dense):
    manifest = export(make_recommender(dense), tmp_path / "bundle", table_row_type=row_type)
    assert manifest.dense_features == list(dense)
    assert {table.row_type for table in manifest.tables.values()} == {row_type}
    for row in score_errors(tmp_path / "bundle"):
        assert 0 < row.score_error <= SCORE_ERROR[row_type]


@pytest.mark.parametrize(("batch", "candidates"), [(1, 1), (3, 40), (64, 7)])
def test_graphs_compute_what_torch_computes_at_any_size(bundle, recommender, batch, candidates):
    torch.manual_seed(batch)
    sizes = {"batch": batch, "n_candidates": candidates}
    modules = {
        "user_tower": recommender.retrieval.user_tower,
        "ranker": recommender.ranking.ranker,
    }
    for name, graph in read_manifest(bundle).graphs.items():
        inputs = {
            tensor.name: torch.randn([sizes.get(dim, dim) for dim in tensor.dims])
            for tensor in graph.inputs
        }
        with torch.inference_mode():
            expected = modules[name].eval()(**inputs).numpy()
        found = openvino.Core().compile_model(
            bundle / graph.file, "CPU", {"INFERENCE_PRECISION_HINT": openvino.Type.f32}
        )({key: value.numpy() for key, value in inputs.items()})[graph.outputs[0].name]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_graphs_name_their_axes_and_tell_nothing_of_this_machine(bundle):
    for name, graph in read_manifest(bundle).graphs.items():
        model = onnx.load(bundle / graph.file)
        assert [item.version for item in model.opset_import if not item.domain] == [18]
        for tensor, port in zip(graph.inputs, model.graph.input, strict=True):
            dims = [dim.dim_param or dim.dim_value for dim in port.type.tensor_type.shape.dim]
            assert (name, tensor.name, tensor.dims) == (name, port.name, dims)
        assert not any(node.metadata_props for node in model.graph.node)


def test_the_bundle_verifies_and_holds_only_what_serving_needs(bundle, recommender):
    manifest = verify(bundle)
    assert manifest.referenced_files() == set(manifest.files)
    assert not any("tag" in table for table in manifest.tables)
    assert set(manifest.vocabularies) == {"user_id", "item_id"}
    assert manifest.vocabularies["user_id"].kind == "range"
    assert manifest.vocabularies["item_id"].kind == "hashed"
    assert manifest.provenance.quality == {"two-tower": {"recall@10": 0.25}}
    assert manifest.provenance.versions["torch"] == torch.__version__
    assert len(manifest.provenance.checkpoint_sha256) == 64


def test_item_vectors_are_unit_length_and_the_fallback_is_popularity(bundle, recommender):
    retrieval = read_manifest(bundle).retrieval
    vectors = load_tensor(bundle, retrieval.index.vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(
        load_tensor(bundle, retrieval.index.keys), recommender.vocabularies["item_id"]
    )
    rows = load_tensor(bundle, retrieval.fallback.rows)
    scores = load_tensor(bundle, retrieval.fallback.scores)
    assert len(rows) == len(recommender.item_keys)
    assert (np.diff(recommender.popularity[rows]) <= 0).all()
    assert (np.diff(scores) <= 0).all()
    assert (scores[0], scores[-1] >= 0) == (1, True)


def test_the_reference_holds_wire_tensors_and_never_an_excluded_item(bundle, recommender):
    reference = load_reference(bundle, read_manifest(bundle).reference)
    for user, history in enumerate(recommender.held_out.excluded):
        lengths = reference.users.lengths[user]
        ids = reference.users.ids[user]
        kept = recommender.held_out.features["history"][user][-6:]
        assert ids[0] == 100 + user
        assert ids[1 : 1 + lengths[1]].tolist() == kept.tolist()
        assert lengths.tolist() == [1, len(kept), len(history)]
        assert (ids[lengths.sum() :] == -1).all()
        assert not set(reference.expected["retrieval"].items[user]) & set(history)


def with_a_stranger(recommender):
    """The same recommender, but nothing is known of its first held-out user."""
    features = {
        name: Ragged.of([[-7], *list(lists)[1:]])
        for name, lists in recommender.held_out.features.items()
    }
    held_out = dataclasses.replace(recommender.held_out, features=features)
    return dataclasses.replace(recommender, held_out=held_out)


def test_users_of_whom_nothing_is_known_are_no_reference(recommender):
    tensors = reference_tensors(with_a_stranger(recommender), Sizes(20, 40, 5), 1000)
    assert len(tensors["target"]) == len(recommender.held_out.targets) - 1
    assert tensors["ids"][0, 0] == 101
    assert reference_tensors(recommender, Sizes(20, 40, 5), 0) == {}


def test_means_of_dense_features_reach_the_schema(recommender, tmp_path):
    knowing = dataclasses.replace(recommender, dense_means={"age": 31.25})
    manifest = export(knowing, tmp_path / "bundle")
    assert schema(read_manifest(tmp_path / "bundle")).dense_defaults == {"age": 31.25}
    Engine(tmp_path / "bundle")
    without = manifest.provenance.model_copy(update={"dense_means": None})
    assert schema(manifest.model_copy(update={"provenance": without})).dense_defaults == {}


def test_sizes_are_cut_to_the_catalog(recommender, tmp_path):
    manifest = export(
        recommender, tmp_path / "bundle", num_candidates=500, k=100, reference_users=3
    )
    retrieval, ranking = manifest.retrieval, manifest.ranking
    sizes = (retrieval.num_candidates, retrieval.max_candidates, ranking.k)
    assert sizes == (len(recommender.item_keys),) * 3
    assert manifest.reference.users == 3
    assert all(row.score_error <= SCORE_ERROR["fp32"] for row in score_errors(tmp_path / "bundle"))


def test_a_size_below_one_is_refused(recommender, tmp_path):
    with pytest.raises(InputError, match="k: expected at least 1, found 0"):
        export(recommender, tmp_path / "bundle", k=0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_naming_table_and_row(
    make_recommender, tmp_path, value
):
    broken = make_recommender()
    with torch.no_grad():
        broken.ranking.tables["user_id"][4, 2] = value
    with pytest.raises(InputError, match=r"ranking\.user_id: row 4, column 2: expected a finite"):
        export(broken, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
