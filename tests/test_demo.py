"""The demo's models, trained on MovieLens-100K: their quality, served, and in every example."""

import subprocess
import sys
from pathlib import Path

import pytest

from recengine.bundle import read_manifest
from recengine.compile import fidelity
from recengine.serving.server import TritonServer

EXAMPLES = {"demo", "in_process", "kernels", "recommend", "recommend_async", "train_and_compile"}
ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT / "model_repository"
BUNDLE = ROOT / "artifacts" / "bundle"
DATA = ROOT / "data" / "ml-100k"
PERF_ANALYZER = Path(sys.prefix) / "perf_analyzer" / "perf_analyzer"

needs_demo = pytest.mark.skipif(
    not (REPOSITORY / "ranking" / "1").is_dir() or not BUNDLE.is_dir(),
    reason="needs the demo's models: make test builds them",
)


def run(example, *arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{example}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
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


def test_every_example_has_its_test():
    assert {path.stem for path in (ROOT / "examples").iterdir() if path.is_file()} == EXAMPLES
    assert {f"test_{example}" for example in EXAMPLES} <= set(globals())


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


def test_train_and_compile(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    taken = [f"{user}\t{(3 * user + step) % 30}\t{step}" for user in range(40) for step in range(8)]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (folder / "tiny.inter").write_text("\n".join([header, *taken]) + "\n")
    lines = run("train_and_compile", folder, tmp_path / "out").splitlines()[-9:]
    methods = [line.partition(" {")[0] for line in lines[:4]]
    assert methods == ["popularity", "item-kNN", "retrieval", "retrieval + ranking"]
    items = [int(line.split()[0]) for line in lines[4:]]
    assert len(set(items)) == 5
    assert set(items) <= set(range(30))


@needs_demo
@pytest.mark.skipif(
    not (DATA / "ml-100k.inter").exists() or not PERF_ANALYZER.exists(),
    reason="needs the demo's data and perf_analyzer: make test fetches them",
)
def test_demo():
    shown = run("demo", "--repository", REPOSITORY, "--bundle", BUNDLE, "--data", DATA)
    assert [f"for user {user}" in shown for user in (196, 22, 305)] == [True] * 3
    assert "retrieval + ranking" in shown
    assert "p99" in shown
