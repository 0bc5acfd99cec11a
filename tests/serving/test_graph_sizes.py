"""The sizes at which the served ranker runs its graph: it has one compiled for each of a few batch
sizes and the usual number of candidates, and one for all else."""

import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from raw_client import RawClient

from recengine.bundle import read_manifest, write_bundle
from recengine.compile import compile_bundle
from recengine.serving.server import TritonServer

USUAL = 20


def scores_are_the_rows(ranker):
    """The ranker with another body: each score is the number of users in the run of the graph."""
    nodes = [
        helper.make_node("Shape", ["candidate_scores"], ["rows"], start=0, end=1),
        helper.make_node("Cast", ["rows"], ["rows_fp32"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["candidate_scores"], ["shape"]),
        helper.make_node("Expand", ["rows_fp32", "shape"], ["scores"]),
    ]
    del ranker.graph.node[:], ranker.graph.initializer[:]
    ranker.graph.node.extend(nodes)
    return ranker


@pytest.fixture(scope="module")
def ranker(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranker")
    staging = shutil.copytree(golden, folder / "staging")
    onnx.save(scores_are_the_rows(onnx.load(golden / "ranker.onnx")), staging / "ranker.onnx")
    manifest = read_manifest(golden)
    assert manifest.retrieval.num_candidates == USUAL
    write_bundle(staging, manifest.model_copy(update={"reference": None}), folder / "bundle")
    with pytest.warns(UserWarning, match="has no reference answers"):
        compile_bundle(folder / "bundle", folder / "repository")
    with (
        TritonServer(folder / "repository", log=folder / "log") as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("num_users", "num_candidates", "expected"),
    [
        (1, USUAL, [1]),
        (15, USUAL, [8] * 8 + [4] * 4 + [2] * 2 + [1]),
        (30, USUAL, [8] * 24 + [4] * 4 + [2] * 2),
        (15, USUAL - 1, [15] * 15),
        (30, USUAL + 1, [16] * 16 + [14] * 14),
    ],
)
def test_usual_requests_run_in_batches_of_fixed_sizes_and_all_else_in_one_of_any(
    ranker, users, num_users, num_candidates, expected
):
    known = np.resize(users.vocabularies[0], (num_users, 1))
    request = {
        "ids": known,
        "lengths": np.repeat(np.array([[1, 0, 0, 0]], np.int32), num_users, axis=0),
        "dense": np.zeros((num_users, users.num_dense), np.float32),
    }
    candidates = users.candidates(np.random.default_rng(0), num_users, num_candidates)
    scores = ranker.infer("ranking", request | candidates, k=1)["scores"]
    np.testing.assert_array_equal(scores[:, 0], expected)
