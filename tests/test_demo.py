"""The demo's models, trained on MovieLens-100K: their quality, served, and in every example."""

import subprocess
import sys
from pathlib import Path

import pytest

from recengine.bundle import read_manifest
from recengine.compile import fidelity
from recengine.serving.server import TritonServer

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"
BUNDLE = ROOT / "artifacts" / "bundle"

needs_demo = pytest.mark.skipif(
    not (REPOSITORY / "ranking" / "1").is_dir() or not BUNDLE.is_dir(),
    reason="needs the demo's models: make test builds them",
)


def run(example, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{example}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory):
    with TritonServer(REPOSITORY, log=tmp_path_factory.mktemp("demo") / "log") as server:
        yield server.endpoints.grpc


@needs_demo
def test_retrieval_beats_popularity_and_ranking_beats_retrieval():
    quality = read_manifest(BUNDLE).provenance.quality
    ndcg = {method: row["ndcg@10"] for method, row in quality.items()}
    assert ndcg["retrieval"] > 2 * ndcg["popularity"]
    assert ndcg["retrieval"] > ndcg["item-kNN"]
    assert ndcg["retrieval + ranking"] > 1.02 * ndcg["retrieval"]


@needs_demo
def test_the_served_answers_are_those_of_eager_torch(demo_server):
    rows = fidelity.served(demo_server, REPOSITORY)
    assert {(row.stage, row.path) for row in rows} == {
        ("retrieval", "served"),
        ("recommend", "served"),
    }


def test_kernels():
    assert "empty bag: [0. 0. 0.]" in run("kernels")


@needs_demo
def test_in_process():
    assert len(run("in_process", BUNDLE).splitlines()) == 4  # two users, items and scores


@needs_demo
def test_recommend(demo_server):
    assert run("recommend", demo_server).count("  item ") == 15


@needs_demo
def test_recommend_async(demo_server):
    assert len(run("recommend_async", demo_server).splitlines()) == 100
