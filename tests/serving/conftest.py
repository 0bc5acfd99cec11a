"""Users of the golden bundle, and servers that a test may change."""

import dataclasses
import re
import shutil
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from raw_client import RawClient

from recengine import Engine
from recengine.bundle import load_tensor, read_manifest
from recengine.client.wire import WireUsers
from recengine.serving.bench.requests import vocabulary_keys
from recengine.serving.server import TritonServer

pytest.register_assert_rewrite("malformed")


@pytest.fixture(scope="session")
def client(golden_server):
    with RawClient(golden_server.endpoints.grpc) as client:
        yield client


@pytest.fixture
def own_repository(golden_repository, tmp_path):
    """A copy of the repository that a test may change."""
    return shutil.copytree(golden_repository, tmp_path / "repository")


@pytest.fixture
def serve(own_repository, tmp_path):
    """Starts a server of the test's own repository; use it as a context manager."""
    return lambda **options: TritonServer(own_repository, log=tmp_path / "log", **options)


@pytest.fixture(scope="session")
def ended():
    """How a server ends that loaded some of its models, as a pattern.

    Triton 24.10 itself may crash as it unloads a model that it loaded a moment before: it looks
    into a queue of instances that the model's own thread has emptied meanwhile
    (TritonBackendThread::StopBackendThread).
    """
    return r"ended (with status 1|by signal 11 \(SIGSEGV\))"


@pytest.fixture(scope="session")
def retrieval(golden_repository):
    return Engine(golden_repository / "retrieval" / "1")


@pytest.fixture(scope="session")
def ranking(golden_repository):
    return Engine(golden_repository / "ranking" / "1")


@dataclasses.dataclass(frozen=True)
class RandomUsers:
    """Users with random known ids, histories of random length and a few excluded items."""

    vocabularies: list  # keys, per feature
    items: np.ndarray
    max_lengths: list
    num_dense: int

    def batch(self, rng, num_users):
        rows, lengths = [], []
        for _ in range(num_users):
            lists = [
                rng.choice(keys, rng.integers(0, length + 1))
                for keys, length in zip(self.vocabularies, self.max_lengths, strict=True)
            ]
            lists.append(rng.choice(self.items, rng.integers(0, 4)))
            rows.append(np.concatenate(lists))
            lengths.append([len(ids) for ids in lists])
        ids = np.full((num_users, max(map(len, rows))), -1, np.int64)
        for row, found in zip(ids, rows, strict=True):
            row[: len(found)] = found
        dense = rng.normal(size=(num_users, self.num_dense)).astype(np.float32)
        return WireUsers(ids, np.array(lengths, np.int32), dense if self.num_dense else None)

    def candidates(self, rng, num_users, count):
        ids = np.stack([rng.permutation(self.items)[:count] for _ in range(num_users)])
        return {
            "candidates": ids,
            "candidate_scores": rng.normal(size=ids.shape).astype(np.float32),
        }


@pytest.fixture(scope="session")
def users(golden):
    manifest = read_manifest(golden)
    return RandomUsers(
        [vocabulary_keys(golden, manifest.vocabularies[f.vocabulary]) for f in manifest.features],
        load_tensor(golden, manifest.retrieval.index.keys),
        [feature.max_length for feature in manifest.features],
        len(manifest.dense_features),
    )


@pytest.fixture(scope="session")
def tensors():
    """The input tensors of a batch of users."""

    def make(users):
        named = {"ids": users.ids, "lengths": users.lengths, "dense": users.dense}
        return {name: array for name, array in named.items() if array is not None}

    return make


@pytest.fixture(scope="session")
def read_metric():
    """Sums a metric over its labels, of those lines that hold `label`."""

    def load(server):
        with urllib.request.urlopen(f"http://{server.endpoints.metrics}/metrics") as page:
            return page.read().decode()

    def read(server, name, label=""):
        try:
            text = load(server)
        except urllib.error.URLError:
            time.sleep(1)  # the server opens this port last, just after it is ready
            text = load(server)
        lines = re.findall(rf"^{name}({{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for labels, value in lines if label in labels)

    return read
