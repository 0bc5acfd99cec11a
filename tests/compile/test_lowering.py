"""Both graphs of a bundle in another precision, and the gate on what they answer."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from recengine.bundle import FidelityBounds, read_manifest
from recengine.compile.fidelity import load_reference, measure
from recengine.compile.graph_runner import graph_runner
from recengine.compile.lowering import BOUNDS, lower_graphs
from recengine.compile.staged_answer import staged_answer
from recengine.engine import Engine
from recengine.errors import CompileError

DEMO = Path(__file__).parents[2] / "artifacts" / "bundle"


LOOSE = FidelityBounds(score_error=1.0, identical_top_k=0.5, metric_delta=0.5)


@pytest.fixture
def manifest(bundle):
    return read_manifest(bundle)


@pytest.fixture
def score_error(bundle, manifest):
    """The largest error of both stages with these graphs."""
    engine, reference = Engine(bundle), load_reference(bundle, manifest.reference)

    def error(models):
        runs = [graph_runner(models[name]) for name in ("tower", "ranker")]
        answer = staged_answer([engine] * 4, *runs, *reference.sizes)
        return max(item.row.score_error for item in measure(reference, answer, "engine", LOOSE))

    return error


def test_stages_with_fp32_graphs_answer_as_the_engine_does(bundle, manifest):
    engine, reference = Engine(bundle), load_reference(bundle, manifest.reference)
    models, _ = lower_graphs(bundle, manifest, "fp32")
    runs = [graph_runner(models[name]) for name in ("tower", "ranker")]
    found = staged_answer([engine] * 4, *runs, *reference.sizes)(reference.users)
    items, scores = engine.retrieve(reference.users, k=reference.sizes[0])
    np.testing.assert_array_equal(found["retrieval"].items, items)
    np.testing.assert_allclose(found["retrieval"].scores, scores, rtol=0, atol=2e-6)
    items, scores = engine.recommend(reference.users, k=reference.sizes[1])
    np.testing.assert_array_equal(found["recommend"].items, items)
    np.testing.assert_allclose(found["recommend"].scores, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_graphs_keep_their_inputs_and_outputs_and_the_bounds(
    bundle, manifest, score_error, precision
):
    models, rows = lower_graphs(bundle, manifest, precision)
    for name, model in models.items():
        source = onnx.load(bundle / manifest.graphs[name].file).graph
        assert [*model.graph.input, *model.graph.output] == [*source.input, *source.output]
        onnx.checker.check_model(model, full_check=True)
    assert score_error(models) <= BOUNDS[precision].score_error
    assert [(row.stage, row.path) for row in rows] == [("retrieval", "onnx"), ("recommend", "onnx")]
    assert max(row.score_error for row in rows) == score_error(models)


def test_a_lower_precision_is_farther_from_eager(bundle, manifest, score_error):
    fp32, fp16, bf16, int8 = (
        score_error(lower_graphs(bundle, manifest, precision, LOOSE)[0]) for precision in BOUNDS
    )
    assert 0 < fp32 < fp16 / 100 < bf16 / 500 < int8 / 500


def test_what_loses_too_much_is_refused_with_the_table(bundle, manifest):
    """The golden weights are random: int8 does move their ranking."""
    with pytest.raises(CompileError, match=r"graphs in int8, on the CPU: \[fidelity\]") as error:
        lower_graphs(bundle, manifest, "int8")
    assert "recommend  identical_top_k" in str(error.value)


def test_bounds_are_the_callers_to_set(bundle, manifest):
    with pytest.raises(CompileError, match="graphs in fp16"):
        lower_graphs(bundle, manifest, "fp16", FidelityBounds(score_error=1e-6))


def test_without_reference_int8_is_refused_and_others_are_not_checked(changed_bundle):
    bundle = changed_bundle(reference=None)
    manifest = read_manifest(bundle)
    with pytest.warns(UserWarning, match="no reference answers; graphs in fp16 are not checked"):
        models, rows = lower_graphs(bundle, manifest, "fp16")
    assert set(models) == {"tower", "ranker"}
    assert rows == []
    with pytest.raises(CompileError, match="int8 needs reference users to calibrate with"):
        lower_graphs(bundle, manifest, "int8")


@pytest.mark.skipif(not DEMO.is_dir(), reason="make demo was not run")
@pytest.mark.parametrize("precision", BOUNDS)
def test_the_demos_models_pass_in_every_precision(precision):
    models, rows = lower_graphs(DEMO, read_manifest(DEMO), precision)
    assert len(models) == len(rows) == 2
