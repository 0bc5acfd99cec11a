"""The gate against a live server."""

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from recengine.bundle import FidelityBounds, read_manifest, write_bundle, write_manifest
from recengine.cli import app
from recengine.client import RecommenderClient
from recengine.client.wire import WireUsers
from recengine.compile import compile_bundle
from recengine.compile.fidelity import load_reference, served
from recengine.compile.lowering import BOUNDS, lower_graphs
from recengine.engine import Engine
from recengine.errors import BundleError, CompileError, InputError, ServerError
from recengine.serving.server import TritonServer


@pytest.fixture
def repository(golden_repository, tmp_path):
    """What the server serves, in a copy whose manifests a test may write."""
    return shutil.copytree(golden_repository, tmp_path / "repository")


def rows(repository):
    return [
        row for model in ("retrieval", "ranking") for row in manifest(repository, model).fidelity
    ]


def manifest(repository, model):
    return read_manifest(repository / model / "1")


def test_a_live_server_answers_as_the_engine_did(golden_server, repository):
    found = served(golden_server.endpoints.grpc, repository)
    in_process = rows(repository)[::2]
    assert found == [row.model_copy(update={"path": "served"}) for row in in_process]


def test_rows_are_stored_once_however_often_it_runs(golden_server, repository):
    for _ in range(2):
        found = served(golden_server.endpoints.grpc, repository)
    assert [(row.stage, row.path) for row in rows(repository)] == [
        ("retrieval", "engine"),
        ("retrieval", "served"),
        ("recommend", "engine"),
        ("recommend", "served"),
    ]
    assert rows(repository)[1::2] == found


def test_answers_over_the_bound_are_refused_and_not_stored(golden_server, repository):
    with pytest.raises(CompileError, match="served: answers differ"):
        served(golden_server.endpoints.grpc, repository, FidelityBounds(score_error=0))
    assert {row.path for row in rows(repository)} == {"engine"}


def test_a_server_that_runs_another_version_is_refused(golden_server, repository):
    for model in ("retrieval", "ranking"):
        (repository / model / "1").rename(repository / model / "2")
    with pytest.raises(ServerError, match=r"\[retrieval\].*expected version 2, .*, found 1"):
        served(golden_server.endpoints.grpc, repository)


def test_a_server_that_is_not_there_is_an_error(repository):
    with pytest.raises(ServerError, match=r"\[retrieval\] 127.0.0.1:9"):
        served("127.0.0.1:9", repository)


def test_a_repository_without_reference_is_refused(golden_server, repository):
    without = manifest(repository, "retrieval").model_copy(update={"reference": None})
    write_manifest(repository / "retrieval" / "1", without)
    with pytest.raises(BundleError, match="no reference"):
        served(golden_server.endpoints.grpc, repository)


@pytest.fixture(scope="module")
def bf16_server(golden, tmp_path_factory):
    """A server of the golden bundle whose graphs are in bf16."""
    folder = tmp_path_factory.mktemp("bf16")
    manifest = read_manifest(golden)
    staging = shutil.copytree(golden, folder / "staging")
    models, _ = lower_graphs(golden, manifest, "bf16")
    for name, model in models.items():
        (staging / manifest.graphs[name].file).write_bytes(model.SerializeToString())
    write_bundle(staging, manifest, folder / "bundle")
    repository = compile_bundle(folder / "bundle", folder / "repository", bounds=BOUNDS["bf16"])
    with TritonServer(repository, log=folder / "tritonserver.log") as server:
        yield server


def evaluate(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_a_low_precision_server_is_measured_by_what_its_precision_allows(bf16_server, golden):
    command = (golden, "--url", bf16_server.endpoints.grpc)
    found = evaluate(*command, "--precision", "bf16")
    assert found.exit_code == 0, found.output
    assert found.output.count(" served ") == 2
    hint = "if it runs graphs below fp32, say --precision"
    for precision, hinted in (((), True), (("--precision", "fp32"), False)):
        refused = evaluate(*command, *precision)
        assert refused.exit_code == 1
        assert "recommend  score_error" in refused.output
        assert (hint in refused.output) == hinted


def test_only_a_bundle_beside_a_server_takes_a_precision(golden, golden_repository):
    for arguments in ((golden,), (golden_repository, "--url", "127.0.0.1:9")):
        found = evaluate(*arguments, "--precision", "fp16")
        assert found.exit_code == 2
        assert "only a bundle with --url takes" in found.output


def test_rows_of_graphs_on_the_cpu_are_kept_and_older_manifests_read(golden_server, repository):
    directory = repository / "ranking" / "1"
    (row,) = read_manifest(directory).fidelity
    assert row.path == "engine"  # as manifests had before
    on_cpu = row.model_copy(update={"path": "onnx"})
    before = read_manifest(directory)
    write_manifest(directory, before.model_copy(update={"fidelity": [on_cpu, row]}))
    served(golden_server.endpoints.grpc, repository)
    assert [row.path for row in read_manifest(directory).fidelity] == ["onnx", "engine", "served"]
    Engine(directory)


def test_a_server_takes_as_many_users_as_compile_was_told(golden, tmp_path):
    repository = tmp_path / "repository"
    command = ["compile", str(golden), "--out", str(repository), "--max-batch", "100"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    reference = load_reference(golden, read_manifest(golden).reference)
    (_, k), one = reference.sizes, reference.users

    def some(count):
        dense = None if one.dense is None else np.resize(one.dense, (count, one.dense.shape[1]))
        ids, lengths = (np.resize(part, (count, part.shape[1])) for part in (one.ids, one.lengths))
        return WireUsers(ids, lengths, dense)

    with (
        TritonServer(repository, log=tmp_path / "tritonserver.log") as server,
        RecommenderClient(server.endpoints.grpc) as client,
    ):
        found = client.recommend(some(100), k=k)
        np.testing.assert_array_equal(found.item_ids[:20], found.item_ids[20:40])
        assert found.item_ids.shape == (100, k)
        with pytest.raises(InputError, match="at most 100 users per request, found 101"):
            client.recommend(some(101), k=k)
