"""Plans on a real GPU beside ONNX Runtime on the CPU. Run where TensorRT is: pytest -m tensorrt."""

import numpy as np
import pytest
from tensorrt_host import GOLDEN_BOUNDS, no_tensorrt

from recengine.bundle import FidelityBounds, read_manifest
from recengine.compile import compile_bundle
from recengine.compile.graph_runner import graph_runner
from recengine.compile.lowering import BOUNDS, lower_graphs
from recengine.compile.repository import expected_requests
from recengine.compile.tensorrt import PlanOptions, TensorRT
from recengine.compile.timing_cache import timing_cache_path, write_timing_cache
from recengine.gpu import current_gpu
from recengine.plans import Plan, check_plan

LOOSE = FidelityBounds(score_error=1.0, identical_top_k=0.5, metric_delta=0.5)


pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(bool(no_tensorrt()), reason=no_tensorrt() or "there is a GPU"),
]


@pytest.fixture
def manifest(bundle):
    return read_manifest(bundle)


@pytest.fixture
def build(bundle_copy, manifest, tmp_path):
    """Builds a graph's plan; gives what runs it, and its record."""

    def build(name, **options):
        requests = expected_requests(bundle_copy, manifest)
        compiler = TensorRT(bundle_copy, manifest, requests, PlanOptions(**options), LOOSE)
        directory = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        compiler.convert(bundle_copy, manifest, name, directory)
        record = Plan.model_validate_json((directory / "plan.json").read_bytes())
        return compiler.load(directory), record

    return build


def random_inputs(graph, batch, candidates):
    rng = np.random.default_rng(0)
    sizes = {"batch": batch}
    return {
        tensor.name: rng.normal(
            size=[sizes.get(d, candidates) if isinstance(d, str) else d for d in tensor.dims]
        ).astype(np.float32)
        for tensor in graph.inputs
    }


@pytest.mark.parametrize("name", ["tower", "ranker"])
@pytest.mark.parametrize("precision", BOUNDS)
def test_a_plan_computes_what_its_graph_says_at_every_size(
    build, bundle, manifest, precision, name
):
    run, _ = build(name, precision=precision)
    expected = graph_runner(lower_graphs(bundle, manifest, precision, LOOSE)[0][name])
    for batch, candidates in ((1, 1), (1, 20), (16, 20), (64, 64)):
        inputs = random_inputs(manifest.graphs[name], batch, candidates)
        right = expected(inputs)
        error = np.abs(run(inputs) - right).max() / max(1, np.abs(right).max())
        assert error <= (1e-5 if precision == "fp32" else BOUNDS[precision].score_error)


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_bundle_compiles_for_the_gpu_behind_the_gate(bundle_copy, tmp_path, precision):
    repository = tmp_path / "repository"
    plans = PlanOptions(precision=precision)
    bounds = GOLDEN_BOUNDS[precision]
    compile_bundle(bundle_copy, repository, target="gpu", plans=plans, bounds=bounds)
    on_cpu, row = read_manifest(repository / "ranking" / "1").fidelity
    assert (on_cpu.path, row.path) == ("onnx", "engine")
    assert row.score_error <= bounds.score_error


@pytest.mark.parametrize(
    "options",
    [
        {"tf32": True},
        {"version_compatible": True},
        {"hardware_compatibility": "ampere_plus"},
        {"hardware_compatibility": "same_compute_capability"},
        {"optimization_level": 5, "workspace_bytes": 1 << 26},
    ],
)
def test_every_option_makes_a_plan_that_runs_here(build, manifest, options):
    run, record = build("ranker", **options)
    assert np.isfinite(run(random_inputs(manifest.graphs["ranker"], 2, 3))).all()
    check_plan("ranker", record, record.tensorrt, current_gpu())


@pytest.mark.parametrize("damage", ["flip", "foreign"])
def test_timings_are_used_again_and_damaged_ones_are_not(build, bundle_copy, manifest, damage):
    _, record = build("tower")
    path = timing_cache_path(bundle_copy, record.tensorrt, current_gpu())
    kept = path.read_bytes()
    build("tower")
    assert len(path.read_bytes()) >= len(kept)
    if damage == "flip":
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.warns(UserWarning, match="damaged"):
            run, _ = build("tower")
    else:
        write_timing_cache(path, b"timings of something else")
        run, _ = build("tower")
    assert run(random_inputs(manifest.graphs["tower"], 1, 1)).shape == (1, 8)
