"""Versions of a split repository on a live server: an answer is never made of two of them."""

import re

import grpc
import numpy as np
import pytest
from raw_client import RawClient, Traffic, make_request, read_response
from split_server import replace_backend, serve_split

from recengine.compile import compile_bundle
from recengine.compile.split import STAGES
from recengine.errors import ServerError

COMPOSING = (*STAGES, "tower", "ranker")
ENSEMBLES = ("retrieval", "ranking", "recommend")


@pytest.fixture
def compiled(golden, tmp_path):
    """Adds a version to the repository."""

    def compile_():
        return replace_backend(
            compile_bundle(golden, tmp_path / "model_repository", target="onnxruntime")
        )

    return compile_


@pytest.fixture
def client(compiled, tmp_path):
    options = {"model_control": "explicit", "load_models": ENSEMBLES}
    with (
        serve_split(compiled(), tmp_path, **options) as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        yield client


@pytest.fixture
def request_(users, tensors):
    return make_request("recommend", tensors(users.batch(np.random.default_rng(0), 4)))


@pytest.mark.parametrize("model", ["retrieval_lookup", "tower", "ranking_order"])
def test_while_a_step_has_another_version_nothing_is_answered(client, compiled, request_, model):
    client.send(request_).result()
    compiled()
    client.load(model)
    code, message = client.refusal(request_)
    assert code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE), message
    client.load("recommend")  # with all of its steps
    assert read_response(client.send(request_).result())["item_ids"].shape == (4, 10)
    assert client.statistics("tower").version == "2"


def test_a_repository_half_way_to_a_new_version_is_not_served(compiled, tmp_path):
    path = compiled() / "recommend" / "config.pbtxt"
    text = path.read_text()
    repository = compiled()
    path.write_text(text)
    with (
        pytest.raises(ServerError, match=r"ensemble 'recommend' depends on .* version 1"),
        serve_split(repository, tmp_path),
    ):
        pass


def keep_versions(repository, *numbers):
    """What a publisher does: steps of the old and the new version, until the ensembles moved on."""
    policy = f"specific {{ versions: [{', '.join(map(str, numbers))}] }}"
    for model in COMPOSING:
        path = repository / model / "config.pbtxt"
        path.write_text(re.sub(r"specific \{[^}]*\}", policy, path.read_text()))


def test_with_both_versions_kept_until_the_ensembles_moved_on_nothing_is_lost(
    client, compiled, request_
):
    with Traffic(client, request_, num_threads=2) as traffic:
        repository = compiled()
        keep_versions(repository, 1, 2)
        for model in (*COMPOSING, *ENSEMBLES):
            client.load(model)
        keep_versions(repository, 2)
        for model in COMPOSING:
            client.load(model)
    assert traffic.errors == []
    assert traffic.answers > 100
    assert {client.statistics(model).version for model in (*COMPOSING, *ENSEMBLES)} == {"2"}
