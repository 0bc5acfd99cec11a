"""Every call of recengine.compile.tensorrt beside the signatures of the real bindings.

This checks calls, not results: whether TensorRT builds the graphs, and what a plan computes, only
tests marked `tensorrt` see, on a machine with a GPU.
"""

import itertools
import sys

import onnx
import pytest
from google.protobuf import text_format
from strict_tensorrt import GPU, PLAN, TIMINGS, VERSIONS, load_network
from tensorrt_host import GOLDEN_BOUNDS
from tritonclient.grpc.model_config_pb2 import ModelConfig
from typer.testing import CliRunner

from recengine.bundle import read_manifest
from recengine.cli import app
from recengine.compile import compile_bundle, tensorrt
from recengine.compile.graph_runner import graph_runner
from recengine.compile.lowering import BOUNDS
from recengine.compile.plan_builder import PlanBuilder
from recengine.compile.repository import expected_requests
from recengine.compile.tensorrt import PlanOptions, TensorRT, axes_of
from recengine.compile.timing_cache import timing_cache_path
from recengine.errors import CompileError
from recengine.plans import Plan, SizeRange


@pytest.fixture
def manifest(bundle):
    return read_manifest(bundle)


@pytest.fixture(params=["tower", "ranker"])
def build(request, bundle_copy, manifest, trt, tmp_path):
    """Builds one graph of the bundle and reads its record."""

    def build(progress=None, max_batch=64, **options):
        plans = PlanOptions(**options)
        requests = expected_requests(
            bundle_copy, manifest, max_batch=max_batch, usual_candidates=plans.usual_candidates
        )
        compiler = TensorRT(bundle_copy, manifest, requests, plans, progress=progress)
        compiler.convert(bundle_copy, manifest, request.param, tmp_path)
        return Plan.model_validate_json((tmp_path / "plan.json").read_bytes())

    build.graph = manifest.graphs[request.param]
    return build


def test_both_majors_are_checked():
    assert [version.split(".")[0] for version in VERSIONS] == ["10", "11"]


def test_a_plan_is_written_and_its_record_says_where_it_runs(build, trt, tmp_path):
    record = build(precision="fp16")
    assert (tmp_path / "model.plan").read_bytes() == PLAN
    assert record.file.bytes == len(PLAN)
    assert (record.tensorrt, record.precision) == (trt.__version__, "fp16")
    assert (record.gpu, record.compute_capability) == ("NVIDIA H200", "9.0")
    assert (record.driver, record.cuda) == ("580.65.06", "13.0")


@pytest.mark.parametrize(("precision", "kind"), [("fp32", 1), ("fp16", 10), ("bf16", 16)])
def test_the_parser_gets_the_graph_in_the_precision(build, trt, precision, kind):
    build(precision=precision)
    (model,) = parsed(trt)
    assert kind in {tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize(
    ("tf32", "version_compatible", "hardware"),
    list(
        itertools.product(
            [False, True], [False, True], ["none", "same_compute_capability", "ampere_plus"]
        )
    ),
)
def test_every_option_reaches_the_builder(build, trt, tf32, version_compatible, hardware):
    plan = build(
        workspace_bytes=1 << 28,
        optimization_level=5,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatibility=hardware,
    )
    assert (plan.tf32, plan.version_compatible) == (tf32, version_compatible)
    assert plan.hardware_compatibility == hardware
    flags = [call["flag"].name for call in trt.called("IBuilderConfig.set_flag")]
    assert flags == ["TF32"] * tf32 + ["VERSION_COMPATIBLE"] * version_compatible
    cleared = [call["flag"].name for call in trt.called("IBuilderConfig.clear_flag")]
    assert cleared == ["TF32"] * (not tf32)
    (level,) = trt.called("IBuilderConfig.hardware_compatibility_level")
    assert level["value"].name == hardware.upper()
    assert trt.called("IBuilderConfig.builder_optimization_level") == [{"value": 5}]
    (limit,) = trt.called("IBuilderConfig.set_memory_pool_limit")
    assert (limit["pool"].name, limit["pool_size"]) == ("WORKSPACE", 1 << 28)


def test_the_network_is_strongly_typed(build, trt):
    build()
    (call,) = trt.called("Builder.create_network")
    assert call["flags"] == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED.value


def test_the_profile_covers_every_size_that_may_be_asked_for(build, trt, manifest):
    record = build(usual_batch=8)
    shapes = {call["input"]: call for call in trt.called("IOptimizationProfile.set_shape")}
    assert set(shapes) == {tensor.name for tensor in build.graph.inputs}
    assert [shapes["sparse"][size][0] for size in ("min", "opt", "max")] == [1, 8, 64]
    if "items" in shapes:
        width = build.graph.inputs[2].dims[2]
        assert shapes["items"]["min"] == (1, 1, width)
        assert shapes["items"]["opt"] == (8, manifest.retrieval.num_candidates, width)
        assert shapes["items"]["max"] == (64, manifest.retrieval.max_candidates, width)
        assert record.axes["candidates"].max == manifest.retrieval.max_candidates
    assert record.axes["batch"] == SizeRange(min=1, opt=8, max=64)


def test_the_profile_is_of_the_sizes_that_are_given(build, manifest):
    axes = build(max_batch=200, usual_batch=100, usual_candidates=7).axes
    assert axes["batch"] == SizeRange(min=1, opt=100, max=200)
    most = manifest.retrieval.max_candidates
    assert axes.get("candidates") in (None, SizeRange(min=1, opt=7, max=most))
    assert build(max_batch=200).axes["batch"].opt == 16
    assert build(max_batch=3).axes["batch"] == SizeRange(min=1, opt=3, max=3)


@pytest.mark.parametrize("batch", [0, 65])
def test_a_usual_batch_that_no_model_takes_is_refused(bundle, manifest, batch):
    requests = expected_requests(bundle, manifest)
    with pytest.raises(CompileError, match=f"expected 1 to 64, found {batch}"):
        axes_of(manifest.graphs["tower"], manifest.retrieval, requests, batch)


def test_timings_are_kept_beside_the_bundle_and_read_again(build, trt, bundle_copy):
    build()
    path = timing_cache_path(bundle_copy, trt.__version__, GPU)
    assert path.parent == bundle_copy.parent
    assert path.read_bytes().endswith(TIMINGS)
    build()
    given = [
        call["serialized_timing_cache"] for call in trt.called("IBuilderConfig.create_timing_cache")
    ]
    assert given == [b"", TIMINGS]
    assert {call["ignore_mismatch"] for call in trt.called("IBuilderConfig.set_timing_cache")} == {
        False
    }


@pytest.mark.parametrize("refused_by", ["create_timing_cache", "set_timing_cache"])
def test_a_cache_that_tensorrt_refuses_is_begun_anew(build, trt, refused_by):
    build()
    trt.calls.clear()
    refusals = iter([None if refused_by == "create_timing_cache" else False])
    answer = trt.make("ITimingCache") if refused_by == "create_timing_cache" else True
    trt.answers[f"IBuilderConfig.{refused_by}"] = lambda *_, **__: next(refusals, answer)
    build()
    given = [
        call["serialized_timing_cache"] for call in trt.called("IBuilderConfig.create_timing_cache")
    ]
    assert given == [TIMINGS, b""]


def test_a_graph_that_the_parser_refuses_is_named_with_its_nodes(build, trt):
    trt.answers |= {
        "OnnxParser.parse": False,
        "OnnxParser.num_errors": 1,
        "ParserError.desc": "no importer",
        "ParserError.node_name": "node_7",
        "ParserError.node_operator": "Cumprod",
    }
    with pytest.raises(CompileError, match=r"\] \w+: Cumprod 'node_7': no importer"):
        build()


def test_a_failed_build_says_what_tensorrt_logged(build, trt):
    def fail(builder, network, config):
        (call,) = trt.called("Builder.__init__")
        call["logger"].log(trt.ILogger.Severity.WARNING, "slow")
        call["logger"].log(trt.ILogger.Severity.ERROR, "out of memory")

    trt.answers["Builder.build_serialized_network"] = fail
    with pytest.raises(CompileError, match=r"\[tensorrt\] \w+: out of memory$"):
        build()


def test_sizes_that_make_no_profile_are_refused(build, trt):
    trt.answers["IBuilderConfig.add_optimization_profile"] = -1
    with pytest.raises(CompileError, match=r"sizes \{'batch': SizeRange"):
        build()


def test_inputs_that_are_not_the_manifests_are_refused(bundle, manifest, trt):
    model = onnx.load(bundle / "tower.onnx")
    del model.graph.input[1]
    with pytest.raises(CompileError, match=r"expected inputs \['sparse', 'dense'\], found \['sp"):
        PlanBuilder(trt, "tower").parse(model, manifest.graphs["tower"])


@pytest.mark.parametrize(("field", "value"), [("dtype", "HALF"), ("shape", [-1, 3])])
def test_outputs_of_another_type_or_shape_are_refused(bundle, manifest, trt, field, value):
    def parse(parser, model):
        load_network(trt, model)
        output = trt.answers["INetworkDefinition.get_output"](None, index=0)
        vars(output)["is"][field] = trt.DataType[value] if field == "dtype" else value
        return True

    trt.answers["OnnxParser.parse"] = parse
    with pytest.raises(CompileError, match=r"output user: expected FLOAT \[-1, 8\], found "):
        PlanBuilder(trt, "tower").parse(onnx.load(bundle / "tower.onnx"), manifest.graphs["tower"])


def test_progress_tells_of_outer_phases_and_an_interrupt_cancels(build, trt):
    lines = []

    def run(builder, network, config):
        monitor = trt.called("IBuilderConfig.progress_monitor")[-1]["value"]
        monitor.phase_start("Building", None, 3)
        monitor.phase_start("Tactics", "Building", 9)
        assert monitor.step_complete("Tactics", 1)
        monitor.phase_finish("Tactics")
        monitor.cancelled = cancel
        assert monitor.step_complete("Tactics", 2) is not cancel
        return None if cancel else PLAN

    trt.answers["Builder.build_serialized_network"] = run
    cancel = False
    build(progress=lines.append)
    assert [line.partition(": ")[2] for line in lines] == ["Building, 3 steps"]
    cancel = True
    with pytest.raises(KeyboardInterrupt):
        build()


def test_without_tensorrt_the_message_says_what_to_install(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(CompileError, match="pip install tensorrt-cu13==VERSION"):
        compile_bundle(bundle, tmp_path / "repository", target="gpu")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_gpu_repository_has_plans_that_pass_the_gate(
    trt, bundle_copy, tmp_path, monkeypatch, precision
):
    """A plan is not run here: what the parser got runs on the CPU in its place."""

    def run(trt, path):
        tower, ranker = parsed(trt)
        return graph_runner(tower if path.parent.name == "tower" else ranker)

    monkeypatch.setattr(tensorrt, "PlanRunner", run)
    repository = tmp_path / "repository"
    plans = PlanOptions(precision=precision)
    bounds = GOLDEN_BOUNDS[precision]
    compile_bundle(bundle_copy, repository, target="gpu", plans=plans, bounds=bounds)
    for name in ("tower", "ranker"):
        assert (repository / name / "1" / "model.plan").read_bytes() == PLAN
        assert "tensorrt_plan" in (repository / name / "config.pbtxt").read_text()
    for model, stage in (("retrieval", "retrieval"), ("ranking", "recommend")):
        onnx_row, row = read_manifest(repository / model / "1").fidelity
        # The same graphs ran for both rows.
        assert (onnx_row.path, row.path) == ("onnx", "engine")
        assert onnx_row == row.model_copy(update={"path": "onnx"})
        assert row.stage == stage
        assert 0 < row.score_error <= BOUNDS[precision].score_error
    assert (row.score_error > BOUNDS["fp32"].score_error) == (precision != "fp32")


def test_the_command_line_takes_every_option(trt, bundle_copy, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "PlanRunner", lambda trt, path: fp32_runner(bundle_copy, path))
    flags = (
        "--precision fp16 --max-batch 6 --usual-batch 4 --usual-candidates 9 --workspace-mib 64 "
        "--optimization-level 2 --tf32 --version-compatible "
        "--hardware-compatibility ampere_plus --target gpu"
    )
    repository = tmp_path / "models"
    command = ["compile", str(bundle_copy), "--out", str(repository), *flags.split()]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "--backend-config=tensorrt,version-compatible=true" in result.output
    record = Plan.model_validate_json((repository / "ranker" / "1" / "plan.json").read_bytes())
    assert (record.precision, record.tf32) == ("fp16", True)
    assert record.axes["batch"] == SizeRange(min=1, opt=4, max=6)
    assert record.axes["candidates"].opt == 9
    config = text_format.Parse((repository / "ranker" / "config.pbtxt").read_text(), ModelConfig())
    assert config.max_batch_size == 6
    specs = config.optimization.cuda.graph_spec
    assert [(one.batch_size, one.input["items"].dim[0]) for one in specs] == [
        (1, 9),
        (2, 9),
        (4, 9),
        (6, 9),
    ]
    assert (record.version_compatible, record.hardware_compatibility) == (True, "ampere_plus")
    limits = trt.called("IBuilderConfig.set_memory_pool_limit")
    assert {call["pool_size"] for call in limits} == {64 << 20}
    levels = trt.called("IBuilderConfig.builder_optimization_level")
    assert levels == [{"value": 2}] * 2


def fp32_runner(bundle, path):
    return graph_runner(onnx.load(bundle / f"{path.parent.name}.onnx"))


def parsed(trt):
    """The models that the parser was given."""
    return [onnx.load_from_string(call["model"]) for call in trt.called("OnnxParser.parse")]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda trt: trt.BuilderFlag.FP8_E5M2,
        lambda trt: trt.Builder(),
        lambda trt: trt.Builder("log"),
        lambda trt: trt.IBuilderConfig(),
        lambda trt: trt.make("IBuilderConfig").set_flag(flags=trt.BuilderFlag.TF32),
        lambda trt: trt.make("IBuilderConfig").set_flag(6),
        lambda trt: trt.make("IBuilderConfig").max_workspace_size,
        lambda trt: setattr(trt.make("IBuilderConfig"), "max_workspace_size", 1),
        lambda trt: setattr(trt.make("IBuilderConfig"), "builder_optimization_level", "5"),
        lambda trt: trt.OnnxParserV2,
        lambda trt: trt.make("ITimingCache").combine(trt.make("ITimingCache"), 0),
    ],
)
def test_the_stand_in_refuses_what_the_bindings_do_not_have(trt, wrong):
    with pytest.raises((AttributeError, TypeError)):
        wrong(trt)
