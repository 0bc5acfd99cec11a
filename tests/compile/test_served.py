"""The gate against a live server."""

import shutil

import pytest

from recengine.bundle import FidelityBounds, read_manifest, write_manifest
from recengine.compile.fidelity import served
from recengine.errors import BundleError, CompileError, ServerError


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
