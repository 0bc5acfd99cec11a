"""From the committed tiny bundle to repositories whose dense graphs run in stock backends."""

import functools
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from killed import kill_before_each_rename
from tritonclient.grpc import InferenceServerClient
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from recengine import ops
from recengine.bundle import (
    GraphTensor,
    latest_version,
    read_manifest,
    verify,
    versions,
    write_bundle,
)
from recengine.client.schema import SCHEMA_PARAMETER, Schema
from recengine.compile import compile_bundle
from recengine.compile.repository import expected_requests, schema, write_configs
from recengine.compile.split import STAGES
from recengine.compile.split_repository import configs
from recengine.engine import Engine
from recengine.errors import BundleError, CompileError
from recengine.graph_files import verify_graph
from recengine.serving.server import TritonServer

GRAPHS = ("tower", "ranker")
ENSEMBLES = ("retrieval", "ranking", "recommend")
MODELS = (*STAGES, *GRAPHS, *ENSEMBLES)
EXPECTED = Path(__file__).parent / "expected"


@pytest.fixture
def repository(bundle, tmp_path):
    return compile_bundle(bundle, tmp_path / "repository", target="onnxruntime")


def config(repository, model):
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def generated(bundle, target, version=1, **sizes):
    manifest = read_manifest(bundle)
    requests = expected_requests(bundle, manifest, **sizes)
    return configs(manifest, requests, target, version), requests


@pytest.mark.parametrize("target", ["onnxruntime", "gpu"])
def test_configs_equal_the_committed_text(bundle, target, tmp_path):
    expected = {path.stem: path.read_text() for path in (EXPECTED / target).iterdir()}
    made, requests = generated(bundle, target)
    for model in expected:
        (tmp_path / model).mkdir()
    write_configs(tmp_path, {model: made[model] for model in expected}, requests)
    found = {model: (tmp_path / model / "config.pbtxt").read_text() for model in expected}
    assert found == expected


def test_a_compile_writes_the_configs_that_are_generated(repository, bundle):
    made, _ = generated(bundle, "onnxruntime")
    assert set(made) == set(MODELS) == {path.name for path in repository.iterdir()}
    for model, expected in made.items():
        assert config(repository, model) == expected


@pytest.mark.parametrize("target", ["onnxruntime", "gpu"])
def test_the_deadline_of_a_request_goes_from_its_first_step_to_all_of_ours(bundle, target):
    made, _ = generated(bundle, target)
    for model, first in (
        ("retrieval", "retrieval_lookup"),
        ("ranking", "ranking_lookup"),
        ("recommend", "retrieval_lookup"),
    ):
        steps = {step.model_name: step for step in made[model].ensemble_scheduling.step}
        told = [dict(steps.pop(first).output_map)["deadline"]]
        for name in [name for name in STAGES if name in steps]:
            assert dict(steps[name].input_map)["deadline"] in told
            told += [own for own in [dict(steps[name].output_map).get("deadline")] if own]


@pytest.mark.parametrize("target", ["onnxruntime", "gpu"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_ensembles_connect_tensors_of_the_same_type_and_dims(bundle, target, ensemble):
    made, _ = generated(bundle, target)
    known = {item.name: (item.data_type, *item.dims) for item in made[ensemble].input}
    for step in made[ensemble].ensemble_scheduling.step:
        model = made[step.model_name]
        asked = [item for item in model.input if item.name in step.input_map or not item.optional]
        assert set(step.input_map) == {item.name for item in asked}
        assert set(step.output_map) == {item.name for item in model.output}
        for item in asked:
            assert known[step.input_map[item.name]] == (item.data_type, *item.dims)
        for item in model.output:
            known[step.output_map[item.name]] = (item.data_type, *item.dims)
    for item in made[ensemble].output:
        assert known[item.name] == (item.data_type, *item.dims)


def test_the_public_models_have_the_contract_of_the_fused_ones(bundle, tmp_path):
    fused = compile_bundle(bundle, tmp_path / "fused")
    made, _ = generated(bundle, "onnxruntime")
    for model in ENSEMBLES:
        expected = config(fused, model)
        for item in expected.input:
            item.allow_ragged_batch = False  # means nothing on an ensemble
        assert made[model].platform == "ensemble"
        for side in ("input", "output"):
            # The steps of a fused repository tell each other; there is nobody to be told here.
            public = [item for item in getattr(expected, side) if item.name != "deadline"]
            assert list(getattr(made[model], side)) == public
        assert made[model].parameters == expected.parameters


def test_stages_run_in_our_backend_and_know_the_limits_of_a_request(bundle):
    kinds = {
        "onnxruntime": pb.ModelInstanceGroup.KIND_CPU,
        "gpu": pb.ModelInstanceGroup.KIND_GPU,
    }
    for target, kind in kinds.items():
        made, _ = generated(bundle, target)
        for model in STAGES:
            assert made[model].backend == "recengine"
            assert [group.kind for group in made[model].instance_group] == [kind]
            assert [item.name for item in made[model].input if item.allow_ragged_batch] == ["ids"]
            text = made[model].parameters[SCHEMA_PARAMETER].string_value
            assert Schema.from_json(text) == schema(read_manifest(bundle))


@pytest.mark.parametrize("sizes", [{}, {"max_batch": 1}, {"max_batch": 9, "usual_candidates": 3}])
def test_every_model_that_computes_is_warmed_up_and_drops_dead_requests(bundle, sizes):
    made, requests = generated(bundle, "gpu", **sizes)
    assert {config.max_batch_size for config in made.values()} == {requests.max_batch}
    for model in (*STAGES, *GRAPHS):
        assert made[model].HasField("dynamic_batching")
        batches = [warmup.batch_size for warmup in made[model].model_warmup]
        assert batches == sorted({1, requests.max_batch})
        for warmup in made[model].model_warmup:
            wanted = {item.name for item in made[model].input if not item.optional}
            assert set(warmup.inputs) == wanted
            for item in warmup.inputs.values():
                assert item.zero_data != bool(item.input_data_file)
                assert -1 not in item.dims
                if item.input_data_file:
                    example = requests.example[item.input_data_file]
                    assert example.shape[1:] == tuple(item.dims)
            for name in {"candidates", "items", "graph_scores"} & set(warmup.inputs):
                assert warmup.inputs[name].dims[0] == requests.usual_candidates


def covered(config):
    """Whether the TensorRT backend launches a CUDA graph for (batch, candidates), and of which.

    As its FindClosestCudaGraph: the sizes of a graph are at least those asked for, and its lower
    bounds at most.
    """

    def graph_of(batch, candidates):
        def key(dims):
            return [batch, *(candidates if dim == -1 else dim for dim in dims)]

        def shape(spec, name):
            return [spec.batch_size, *spec.input[name].dim]

        asked = {item.name: key(item.dims) for item in config.input}
        for spec in config.optimization.cuda.graph_spec:
            lower = spec.graph_lower_bound
            assert set(spec.input) == set(lower.input) == set(asked)
            if all(
                len(wanted) == len(shape(spec, name)) == len(shape(lower, name))
                and all(
                    least <= size <= most
                    for least, size, most in zip(
                        shape(lower, name), wanted, shape(spec, name), strict=True
                    )
                )
                for name, wanted in asked.items()
            ):
                return spec.batch_size
        return None

    return graph_of


@pytest.mark.parametrize("max_batch", [1, 2, 6, 64, 100])
def test_a_cuda_graph_of_at_most_twice_the_batch_covers_every_batch(bundle, max_batch):
    made, _ = generated(bundle, "gpu", max_batch=max_batch, usual_candidates=7)
    for name in GRAPHS:
        assert made[name].optimization.cuda.graphs
        graph_of = covered(made[name])
        powers = {1 << power for power in range(7)}
        for batch in range(1, max_batch + 1):
            graph = graph_of(batch, 7)
            assert graph is not None
            assert batch <= graph < 2 * batch
            assert graph in powers | {max_batch}
        assert graph_of(max_batch + 1, 7) is None
    # Answers for 8 candidates are not cut to 7, nor the other way round.
    assert covered(made["ranker"])(1, 6) is covered(made["ranker"])(1, 8) is None
    assert len(made["ranker"].optimization.cuda.graph_spec) == 1 + (max_batch - 1).bit_length()


def test_other_targets_capture_no_cuda_graphs(bundle):
    made, _ = generated(bundle, "onnxruntime")
    assert not any(config.optimization.HasField("cuda") for config in made.values())


def test_a_catalog_of_fewer_items_than_usual_candidates_is_padded(bundle):
    rows = read_manifest(bundle).retrieval.index.rows
    most = read_manifest(bundle).retrieval.max_candidates
    assert rows < most
    _, requests = generated(bundle, "gpu", usual_candidates=most)
    assert requests.example["candidates"].shape == (1, most)
    assert (requests.example["candidates"] == -1).sum() == most - rows


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_batch": 0}, "max batch: expected at least 1, found 0"),
        ({"usual_candidates": 0}, r"usual candidates: expected 1 to \d+, found 0"),
        ({"usual_candidates": 9999}, r"usual candidates: expected 1 to \d+, found 9999"),
    ],
)
def test_sizes_that_no_request_has_are_refused(bundle, sizes, message):
    with pytest.raises(CompileError, match=message):
        generated(bundle, "gpu", **sizes)


def test_version_directories_hold_what_their_stage_needs(repository, bundle):
    manifests = {model: verify(repository / model / "1") for model in (*STAGES, *ENSEMBLES[:2])}
    whole = read_manifest(bundle)
    for name, (model, stage) in STAGES.items():
        manifest = manifests[name]
        assert (manifest.target, manifest.stage) == ("onnxruntime", stage)
        assert (manifest.retrieval is None, manifest.ranking is None) == (
            model == "ranking",
            model == "retrieval",
        )
        assert manifest.graphs == {}
        assert manifest.reference is None
        assert manifest.vocabularies == whole.vocabularies
        assert manifest.dense_features == (whole.dense_features if stage == "lookup" else [])
    assert set(manifests["retrieval_lookup"].tables) == {"user", "history", "recent", "country"}
    assert set(manifests["ranking_lookup"].tables) == {"recent", "user", "ranking_items"}
    assert manifests["retrieval_topk"].tables == manifests["ranking_order"].tables == {}
    assert manifests["retrieval"].reference == whole.reference
    assert manifests["ranking"].reference is None
    for graph in GRAPHS:
        directory = repository / graph / "1"
        assert {file.name for file in directory.iterdir()} == {"model.onnx", "graph.json"}
        file = directory / "model.onnx"
        assert file.read_bytes() == (bundle / f"{graph}.onnx").read_bytes()
        verify_graph(directory)


def test_tables_and_index_of_files_of_their_own_are_linked_where_they_are_read(bundle):
    manifest = read_manifest(bundle)
    apart = {"file": "items.safetensors"}
    index = manifest.retrieval.index
    retrieval = manifest.retrieval.model_copy(
        update={
            "index": index.model_copy(update={"vectors": index.vectors.model_copy(update=apart)})
        }
    )
    for stage, expected in (("lookup", False), ("topk", True), ("ensemble", False)):
        part = manifest.model_copy(
            update={"retrieval": retrieval, "ranking": None, "stage": stage, "graphs": {}}
        )
        assert ("items.safetensors" in part.referenced_files()) is expected


def test_the_gate_passes_and_its_rows_are_stored_with_the_public_models(repository):
    for model, stage in (("retrieval", "retrieval"), ("ranking", "recommend")):
        (row,) = read_manifest(latest_version(repository / model)).fidelity
        assert (row.stage, row.path) == (stage, "engine")
        assert row.score_error <= 1e-4
        assert row.identical_top_k == 1


def test_the_gate_refuses_a_perturbed_table(bundle, changed_bundle, tmp_path):
    manifest = read_manifest(bundle)
    data = manifest.tables[manifest.ranking.item_table].data

    def perturb(tensors):
        tensors[data.tensor] = (tensors[data.tensor] + 1).astype(tensors[data.tensor].dtype)

    out = tmp_path / "repository"
    with pytest.raises(CompileError, match="\nrecommend  score_error"):
        compile_bundle(changed_bundle(data.file, perturb), out, target="onnxruntime")
    assert [versions(out / model) for model in MODELS] == [[]] * len(MODELS)
    compile_bundle(bundle, out)  # nothing is left that another target could not have


def test_a_record_of_an_ensemble_is_no_engine(repository):
    with pytest.raises(BundleError, match=r'stage: expected "lookup" .*, found "ensemble"'):
        Engine(repository / "retrieval" / "1")


def test_a_second_compile_moves_every_model_to_its_version(repository, bundle):
    compile_bundle(bundle, repository, target="onnxruntime")
    assert [versions(repository / model) for model in MODELS] == [[1, 2]] * len(MODELS)
    for model in (*STAGES, *GRAPHS):
        assert list(config(repository, model).version_policy.specific.versions) == [2]
    for model in ENSEMBLES:
        steps = config(repository, model).ensemble_scheduling.step
        assert {step.model_version for step in steps} == {2}


def test_a_compile_that_dies_at_any_step_leaves_ensembles_of_whole_versions(
    bundle, repository, monkeypatch
):
    def check():
        for ensemble in ENSEMBLES:
            steps = config(repository, ensemble).ensemble_scheduling.step
            (version,) = {one.model_version for one in steps}
            for one in steps:
                served = config(repository, one.model_name).version_policy.specific.versions
                assert version in served
                directory = repository / one.model_name / str(version)
                if one.model_name in STAGES:
                    verify(directory)
                else:
                    onnx.load(directory / "model.onnx")

    compiling = functools.partial(compile_bundle, bundle, repository, target="onnxruntime")
    assert kill_before_each_rename(monkeypatch, compiling, check) > 20


@pytest.mark.parametrize(("first", "second"), [("cpu", "onnxruntime"), ("onnxruntime", "cpu")])
def test_a_repository_of_another_target_is_refused_and_left_alone(bundle, tmp_path, first, second):
    out = compile_bundle(bundle, tmp_path / "repository", target=first)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    message = f"expected an empty folder or a repository of target {second}, .* target {first}"
    with pytest.raises(CompileError, match=message):
        compile_bundle(bundle, out, target=second)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_a_killed_first_compile_left_is_of_its_target(bundle, repository):
    for model in ENSEMBLES:
        shutil.rmtree(repository / model / "1")
    with pytest.raises(CompileError, match="found one of target onnxruntime"):
        compile_bundle(bundle, repository)


def renamed(manifest, model, name):
    """Updates of a manifest whose graph of `model` has another name."""
    part = getattr(manifest, model)
    graphs = {name if key == part.graph else key: graph for key, graph in manifest.graphs.items()}
    return {model: part.model_copy(update={"graph": name}), "graphs": graphs}


def test_graphs_of_other_names_than_those_served_are_refused(repository, bundle, changed_bundle):
    other = changed_bundle(**renamed(read_manifest(bundle), "ranking", "dlrm"))
    with pytest.raises(CompileError, match="whose ranking graph is dlrm, found ranker"):
        compile_bundle(other, repository, target="onnxruntime")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retrieval", "graph 'retrieval': another model has this name"),
        ("ranking_order", "graph 'ranking_order': another model has this name"),
        ("../tower", r"graph '\.\./tower': expected letters, digits"),
        ("..", r"graph '\.\.': expected letters, digits"),
        ("", "graph '': expected letters, digits"),
    ],
)
def test_a_graph_whose_name_no_model_may_have_is_refused(
    bundle, changed_bundle, tmp_path, name, message
):
    other = changed_bundle(**renamed(read_manifest(bundle), "retrieval", name))
    with pytest.raises(CompileError, match=message):
        compile_bundle(other, tmp_path / "repository", target="onnxruntime")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("graph", "kind", "tensor", "dims", "message"),
    [
        ("tower", "inputs", "sparse", ["batch", 25], r"expected dims \[24\] .* found \[25\]"),
        ("tower", "outputs", "user", ["batch", 9], r"expected dims \[8\] .*, found \[9\]"),
        (
            "ranker",
            "inputs",
            "items",
            ["batch", "n", 13],
            r"expected dims \[-1, 12\] .* \[-1, 13\]",
        ),
        ("ranker", "outputs", "scores", ["batch", 20], r"expected dims \[-1\] .*, found \[20\]"),
        ("ranker", "inputs", "dense", None, r"expected dims \[2\] .*, found none"),
    ],
)
def test_a_graph_that_does_not_fit_tables_and_index_is_refused(
    bundle, changed_bundle, tmp_path, graph, kind, tensor, dims, message
):
    manifest = read_manifest(bundle)
    entry = manifest.graphs[graph]
    kept = [one for one in getattr(entry, kind) if one.name != tensor]
    changed = [GraphTensor(name=tensor, dims=dims)] if dims else []
    graphs = manifest.graphs | {graph: entry.model_copy(update={kind: kept + changed})}
    with pytest.raises(CompileError, match=f"graph {graph}: {kind[:-1]} {tensor}: .*{message}"):
        compile_bundle(changed_bundle(graphs=graphs), tmp_path / "repository", target="onnxruntime")


def test_a_graph_of_another_shape_than_the_manifest_says_is_refused(
    bundle, changed_bundle, tmp_path
):
    model = onnx.load(bundle / "tower.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 999
    changed = changed_bundle()
    (changed / "tower.onnx").write_bytes(model.SerializeToString())
    write_bundle(shutil.copytree(changed, tmp_path / "again"), read_manifest(changed), changed)
    with pytest.raises(CompileError, match=r"input sparse: expected \[-1, 24\], found \[-1, 999\]"):
        compile_bundle(changed, tmp_path / "repository", target="onnxruntime")


def test_a_graph_of_other_tensors_or_none_is_refused(changed_bundle, bundle, tmp_path):
    manifest = read_manifest(bundle)
    swapped = manifest.graphs["tower"].model_copy(update={"file": "ranker.onnx"})
    with pytest.raises(CompileError, match=r"ranker\.onnx: expected inputs \['sparse', 'dense'\]"):
        compile_bundle(
            changed_bundle(graphs=manifest.graphs | {"tower": swapped}),
            tmp_path / "repository",
            target="onnxruntime",
        )


def tower_of_another_opset(model):
    model.opset_import[0].version = 99


def tower_for_one_user(model):
    """Its output is of any batch by what the graph says, and of one user in truth."""
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["any" if name == output.name else name for name in node.output]
    shape = onnx.numpy_helper.from_array(np.array([1, 8]), "one_user")
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["any", "one_user"], [output.name]))


def tower_of_nan(model):
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["any" if name == output.name else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Sub", ["any", "any"], ["zero"]))
    model.graph.node.append(onnx.helper.make_node("Div", ["zero", "zero"], [output.name]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tower_of_another_opset, "tower/model.onnx: ONNX Runtime: .*opset"),
        (tower_for_one_user, "graph tower: ONNX Runtime: .*Reshape"),
        (tower_of_nan, "warm-up request: .*expected a finite user vector"),
    ],
)
def test_a_graph_that_its_runtime_does_not_run_is_not_published(
    bundle, changed_bundle, tmp_path, change, message
):
    model = onnx.load(bundle / "tower.onnx")
    change(model)
    staging = changed_bundle(reference=None)
    (staging / "tower.onnx").write_bytes(model.SerializeToString())
    write_bundle(staging, read_manifest(staging), tmp_path / "again")
    repository = tmp_path / "repository"
    with pytest.raises(CompileError, match=message):
        compile_bundle(tmp_path / "again", repository, target="onnxruntime")
    assert list(repository.iterdir()) == []


def test_a_stage_that_the_engine_refuses_is_not_published(bundle, changed_bundle, tmp_path):
    def damage(tensors):
        tensors["index.vectors"] *= 2

    damaged = changed_bundle("tensors.safetensors", damage, reference=None)
    with pytest.raises(BundleError, match="index: row 0: expected norm 1 or 0, found 2"):
        compile_bundle(damaged, tmp_path / "repository", target="onnxruntime")
    assert list((tmp_path / "repository").iterdir()) == []


def test_other_requests_than_those_of_the_newest_version_are_refused(
    repository, bundle, changed_bundle
):
    """Those of its first model alone, too, where a compile was killed."""
    other = changed_bundle(reference=None, dense_features=["activity", "age"])
    compiling = functools.partial(compile_bundle, other, repository, target="onnxruntime")
    with pytest.raises(CompileError, match="requests of retrieval_lookup/1; dense_features: "):
        compiling()
    with pytest.warns(UserWarning, match="no reference answers"):
        compiling(change_schema=True)
    shutil.rmtree(repository / "retrieval" / "2")
    with pytest.raises(CompileError, match="requests of retrieval_lookup/2; "):
        compile_bundle(bundle, repository, target="onnxruntime")
    with pytest.raises(CompileError, match="requests of retrieval/1; "):
        compiling()


def test_every_version_directory_has_a_file(repository):
    """Empty ones are lost in git and in object stores."""
    for model in MODELS:
        assert any((repository / model / "1").iterdir())


def test_without_onnx_runtime_the_error_says_what_to_install(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CompileError, match=r"pip install 'recengine\[onnxruntime\]'"):
        compile_bundle(bundle, tmp_path / "repository", target="onnxruntime")


def lacks_a_gpu():
    return pytest.raises(InferenceServerException, match=r"no GPUs are available|no CUDA parts")


@pytest.mark.parametrize(
    ("target", "file", "backend"),
    [("onnxruntime", "model.onnx", "onnxruntime"), ("gpu", "model.plan", "tensorrt")],
)
def test_a_server_reads_the_configs_and_lacks_only_the_backend(
    bundle, tmp_path, target, file, backend
):
    """The wheel's server has no stock backends; it says so after it has taken the config.

    The GPU that a stage wants, it looks for even later.
    """
    repository = tmp_path / "repository"
    repository.mkdir()
    with (
        TritonServer(repository, log=tmp_path / "log", model_control="explicit") as server,
        InferenceServerClient(server.endpoints.grpc) as client,
    ):
        compiled = compile_bundle(bundle, tmp_path / "compiled", target="onnxruntime")
        shutil.copytree(compiled, repository, dirs_exist_ok=True)
        for graph in GRAPHS:
            (repository / graph / "1" / "model.onnx").rename(repository / graph / "1" / file)
        write_configs(repository, *generated(bundle, target))
        for model in STAGES:
            has_gpu = ops.cuda_built() and bool(ops.cuda_devices())
            with nullcontext() if target == "onnxruntime" or has_gpu else lacks_a_gpu():
                client.load_model(model)
        for model in GRAPHS:
            with pytest.raises(
                InferenceServerException, match=f"unable to find backend library for .*'{backend}'"
            ):
                client.load_model(model)
        for model in ENSEMBLES:
            with pytest.raises(
                InferenceServerException, match=r"depends on '(tower|ranker|r\w+_\w+)'"
            ):
                client.load_model(model)
