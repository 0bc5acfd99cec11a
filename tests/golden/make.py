"""Makes the golden bundle of the current format version: synthetic, small, without torch.

Run once per format version: `PYTHONPATH=tests python -m golden.make tests/golden/v1`. What stands
is never made anew; later readers must still load it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from reference import Reference

from recengine import bundle
from recengine.client.schema import Feature, Schema
from recengine.client.wire import pack_users
from recengine.keys import hash_key
from recengine.ops import build_slots

NUM_ITEMS = 50
NUM_USERS = 20
ITEM_DIM = 12  # of a row of the ranking item table
DIM = 8  # of the user and item vectors of retrieval
COUNTRIES = ("de", "fr", "it", "jp", "us", "中国")
TENSORS = "tensors.safetensors"
REFERENCE = "reference.safetensors"
INT64 = np.iinfo(np.int64)

SCHEMA = Schema(
    name="golden",
    features=(
        Feature("user_id", 1),
        Feature("history", 10),
        Feature("country", 1, hashed=True),
    ),
    dense_features=("age", "activity"),
    num_items=NUM_ITEMS,
    num_candidates=20,
    max_candidates=64,
    k=10,
)


class Tensors:
    """Collects the tensors of the one safetensors file."""

    def __init__(self, rng):
        self.rng = rng
        self.arrays = {}

    def add(self, name, array):
        self.arrays[name] = array
        return bundle.Tensor(file=TENSORS, tensor=name)

    def table(self, name, rows, dim, row_type):
        values = self.rng.normal(size=(rows, dim)).astype(np.float32)
        if row_type != "int8":
            data = values.astype(np.float16 if row_type == "fp16" else np.float32)
            return bundle.Table(rows=rows, dim=dim, row_type=row_type, data=self.add(name, data))
        scales = (np.abs(values).max(axis=1) / 127).astype(np.float32)
        codes = np.rint(values / scales[:, None]).astype(np.int8)
        return bundle.Table(
            rows=rows,
            dim=dim,
            row_type=row_type,
            data=self.add(name, codes),
            scales=self.add(f"{name}.scales", scales),
        )

    def vocabulary(self, name, keys):
        slot_keys, slot_rows = build_slots(keys)
        return bundle.Vocabulary(
            kind="hashed",
            count=len(keys),
            keys=self.add(f"{name}.keys", slot_keys),
            rows=self.add(f"{name}.rows", slot_rows),
        )


def item_keys(rng):
    """Random int64 keys, both ends of the range and 0 among them."""
    keys = rng.integers(INT64.min, INT64.max, NUM_ITEMS, dtype=np.int64)
    keys[:3] = INT64.min, INT64.max, 0
    return keys


def weight(rng, rows, cols):
    return (rng.normal(size=(rows, cols)) / np.sqrt(rows)).astype(np.float32)


def save_graph(path, name, nodes, inputs, outputs, weights):
    """Writes an ONNX graph over fp32 tensors and tells what the manifest says of it."""

    def values(tensors):
        return [
            helper.make_tensor_value_info(tensor, TensorProto.FLOAT, dims)
            for tensor, dims in tensors.items()
        ]

    def described(tensors):
        return [bundle.GraphTensor(name=tensor, dims=dims) for tensor, dims in tensors.items()]

    graph = helper.make_graph(
        nodes,
        name,
        values(inputs),
        values(outputs),
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path / f"{name}.onnx")
    return bundle.Graph(
        file=f"{name}.onnx", format="onnx", inputs=described(inputs), outputs=described(outputs)
    )


def user_mlp(rng, width, hidden, out, output):
    """Nodes and weights: sparse and dense concatenated, one hidden layer."""
    nodes = [
        helper.make_node("Concat", ["sparse", "dense"], ["features"], axis=1),
        helper.make_node("Gemm", ["features", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], [output]),
    ]
    weights = {
        "w1": weight(rng, width + 2, hidden),
        "b1": weight(rng, 1, hidden)[0],
        "w2": weight(rng, hidden, out),
        "b2": weight(rng, 1, out)[0],
    }
    return nodes, weights


def make_tower(rng, path, width):
    nodes, weights = user_mlp(rng, width, 16, DIM, "user")
    inputs = {"sparse": ["batch", width], "dense": ["batch", 2]}
    return save_graph(path, "tower", nodes, inputs, {"user": ["batch", DIM]}, weights)


def make_ranker(rng, path, width):
    """Scores: user vector times projected item, plus the weighted candidate score."""
    nodes, weights = user_mlp(rng, width, 12, 6, "user")
    weights |= {"w3": weight(rng, ITEM_DIM, 6), "w4": np.float32([0.5]), "axes": np.int64([2])}
    nodes += [
        helper.make_node("Unsqueeze", ["user", "axes"], ["user_column"]),
        helper.make_node("MatMul", ["items", "w3"], ["projected"]),
        helper.make_node("MatMul", ["projected", "user_column"], ["match_column"]),
        helper.make_node("Squeeze", ["match_column", "axes"], ["match"]),
        helper.make_node("Mul", ["candidate_scores", "w4"], ["weighted"]),
        helper.make_node("Add", ["match", "weighted"], ["scores"]),
    ]
    inputs = {
        "sparse": ["batch", width],
        "dense": ["batch", 2],
        "items": ["batch", "candidates", ITEM_DIM],
        "candidate_scores": ["batch", "candidates"],
    }
    outputs = {"scores": ["batch", "candidates"]}
    return save_graph(path, "ranker", nodes, inputs, outputs, weights)


def make_users(rng, keys):
    """Users with histories of 0 to 14 items; the last two are unknown and half known."""
    users = [
        {
            "user_id": 100 + user,
            "history": rng.choice(keys, size=user % 15).tolist(),
            "country": COUNTRIES[user % len(COUNTRIES)],
            "age": float(rng.normal()),
            "activity": float(rng.normal()),
        }
        for user in range(NUM_USERS)
    ]
    users[-2] |= {"user_id": 7, "history": [12345], "country": "atlantis"}
    users[-1] |= {"user_id": 7, "history": [12345, int(keys[4])]}
    exclude = [rng.choice(keys, size=user % 4).tolist() for user in range(NUM_USERS)]
    return users, exclude


def make_index(rng, tensors, keys):
    vectors = rng.normal(size=(NUM_ITEMS, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = rng.permutation(NUM_ITEMS)[:30]
    index = bundle.Index(
        rows=NUM_ITEMS,
        dim=DIM,
        vectors=tensors.add("index.vectors", vectors.astype(np.float32)),
        keys=tensors.add("index.keys", keys),
    )
    fallback = bundle.Fallback(
        rows=tensors.add("fallback.rows", order.astype(np.int64)),
        scores=tensors.add("fallback.scores", np.linspace(1, 0.1, 30, dtype=np.float32)),
    )
    return index, fallback


def make_manifest(rng, path, keys):
    """Writes tensors and graphs to `path`."""
    tensors = Tensors(rng)
    vocabularies = {
        "users": bundle.Vocabulary(kind="range", count=NUM_USERS, first=100),
        "items": tensors.vocabulary("items", keys),
        "countries": tensors.vocabulary(
            "countries", np.array([hash_key(name) for name in COUNTRIES], np.int64)
        ),
    }
    tables = {
        "user": tensors.table("user", NUM_USERS + 1, 8, "fp32"),
        "history": tensors.table("history", NUM_ITEMS + 1, 8, "fp16"),
        "recent": tensors.table("recent", NUM_ITEMS + 1, 4, "int8"),
        "country": tensors.table("country", len(COUNTRIES) + 1, 4, "int8"),
        "ranking_items": tensors.table("ranking_items", NUM_ITEMS + 1, ITEM_DIM, "fp16"),
    }
    bags = [
        bundle.Bag(feature="user_id", table="user", pooling="sum", max_length=1),
        bundle.Bag(feature="history", table="history", pooling="mean", max_length=10),
        bundle.Bag(feature="history", table="recent", pooling="sum", max_length=3),
        bundle.Bag(feature="country", table="country", pooling="sum", max_length=1),
    ]
    ranking_bags = [bags[2], bags[0]]
    index, fallback = make_index(rng, tensors, keys)
    manifest = bundle.Manifest(
        name=SCHEMA.name,
        features=[
            bundle.Feature(name="user_id", vocabulary="users", max_length=1),
            bundle.Feature(name="history", vocabulary="items", max_length=10),
            bundle.Feature(name="country", vocabulary="countries", max_length=1, hashed=True),
        ],
        dense_features=list(SCHEMA.dense_features),
        item_vocabulary="items",
        vocabularies=vocabularies,
        tables=tables,
        graphs={
            "tower": make_tower(rng, path, sum(tables[bag.table].dim for bag in bags)),
            "ranker": make_ranker(rng, path, sum(tables[bag.table].dim for bag in ranking_bags)),
        },
        retrieval=bundle.Retrieval(
            family="two_tower",
            bags=bags,
            graph="tower",
            index=index,
            fallback=fallback,
            num_candidates=SCHEMA.num_candidates,
            max_candidates=SCHEMA.max_candidates,
        ),
        ranking=bundle.Ranking(
            family="dlrm",
            bags=ranking_bags,
            item_table="ranking_items",
            graph="ranker",
            k=SCHEMA.k,
        ),
        reference=bundle.Reference(file=REFERENCE, users=NUM_USERS),
        provenance=bundle.Provenance(created="2026-01-01T00:00:00Z", recengine="0.1.0"),
        files=dict.fromkeys([TENSORS, "tower.onnx", "ranker.onnx", REFERENCE], bundle.UNHASHED),
    )
    bundle.write_tensors(path / TENSORS, tensors.arrays)
    return manifest


def write_reference(rng, path, manifest, keys):
    """What the NumPy oracle answers for the golden users."""
    users = pack_users(SCHEMA, *make_users(rng, keys))
    oracle = Reference(path, manifest)
    candidates, candidate_scores = oracle.retrieve(users, SCHEMA.num_candidates)
    items, scores = oracle.rank(users, candidates, candidate_scores, SCHEMA.k)
    arrays = {
        "ids": users.ids,
        "lengths": users.lengths,
        "dense": users.dense,
        "target": rng.choice(keys, size=NUM_USERS),
        "candidates": candidates,
        "candidate_scores": candidate_scores,
        "items": items,
        "scores": scores,
    }
    bundle.write_tensors(path / REFERENCE, arrays)


def make(destination):
    rng = np.random.default_rng(0)
    keys = item_keys(rng)
    with tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
        staging = Path(scratch) / "staging"
        staging.mkdir()
        manifest = make_manifest(rng, staging, keys)
        write_reference(rng, staging, manifest, keys)
        bundle.write_bundle(staging, manifest, destination)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
