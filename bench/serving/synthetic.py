"""Writes a synthetic bundle of any size: random weights, the work of a trained one."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

import recengine.bundle as b
from recengine.errors import InputError
from recengine.ops import EmbeddingTable

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much work one request is.

    Attributes:
        items, users: rows of the catalog and of the user table.
        dim: of embeddings and item vectors.
        history: longest history.
        candidates: items that the ranker scores.
        hidden: widths of the ranker's layers.
        k: items answered.
        row_type: of both tables.
    """

    items: int = 200_000
    users: int = 50_000
    dim: int = 64
    history: int = 50
    candidates: int = 500
    hidden: tuple[int, int] = (1024, 512)
    k: int = 20
    row_type: b.RowType = "fp32"


def write(destination: Path, size: Size, seed: int = 0) -> b.Manifest:
    """Writes the bundle; the same one for the same arguments.

    Args:
        destination: the bundle's directory; appears whole, replaces what is there.
        size: how large.
        seed: of the weights.

    Returns:
        The manifest.
    """
    if size.row_type not in ("fp32", "int8"):
        raise InputError(f"[synthetic] row_type: expected fp32 or int8, found {size.row_type}")
    rng = np.random.default_rng(seed)
    staging = destination.with_name(f".{destination.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    items = rng.standard_normal((size.items + 1, size.dim), np.float32)
    norms = np.sqrt(np.einsum("rd,rd->r", items, items))
    b.write_tensors(
        staging / "index.safetensors",
        {
            "vectors": items[1:] / norms[1:, None],
            "keys": np.arange(1, size.items + 1, dtype=np.int64),
            "fallback_rows": np.arange(size.candidates, dtype=np.int64),
            "fallback_scores": np.linspace(1, 0.5, size.candidates, dtype=np.float32),
        },
    )
    tables: dict[str, Array] = {}
    for name, rows in _tables(size, items, rng):
        tables[name] = rows.data
        if rows.scales is not None:
            tables[f"{name}.scales"] = rows.scales
    b.write_tensors(staging / "tables.safetensors", tables)
    onnx.save(user_tower(size, rng), staging / "user_tower.onnx")
    onnx.save(ranker(size, rng), staging / "ranker.onnx")
    return b.write_bundle(staging, manifest(size), destination)


def _tables(
    size: Size, items: Array, rng: np.random.Generator
) -> Iterator[tuple[str, EmbeddingTable]]:
    yield "item", EmbeddingTable.from_array(items, size.row_type)
    if size.row_type == "int8":  # drawn as they are stored: floats would take four times the memory
        codes = np.empty((size.users + 1, size.dim), np.int8)
        for rows in np.array_split(codes, -(-len(codes) // 1_000_000)):
            rows[:] = rng.integers(-127, 128, rows.shape, np.int8)
        yield "user", EmbeddingTable(codes, np.full(len(codes), 0.01, np.float32))
        return
    values = rng.standard_normal((size.users + 1, size.dim), np.float32)
    yield "user", EmbeddingTable.from_array(values, size.row_type)


def manifest(size: Size) -> b.Manifest:
    bags = [
        b.Bag(feature="user_id", table="user", pooling="sum", max_length=1),
        b.Bag(feature="history", table="item", pooling="mean", max_length=size.history),
    ]
    batch_sparse = b.GraphTensor(name="sparse", dims=["batch", 2 * size.dim])
    per_candidate = ["batch", "n_candidates"]
    files = ["tables.safetensors", "index.safetensors", "user_tower.onnx", "ranker.onnx"]
    return b.Manifest(
        name="synthetic",
        features=[
            b.Feature(name="user_id", vocabulary="user", max_length=1),
            b.Feature(name="history", vocabulary="item", max_length=size.history),
        ],
        item_vocabulary="item",
        vocabularies={
            "user": b.Vocabulary(kind="range", count=size.users, first=1),
            "item": b.Vocabulary(kind="range", count=size.items, first=1),
        },
        tables={
            name: b.Table(
                rows=rows + 1,
                dim=size.dim,
                row_type=size.row_type,
                data=b.Tensor(file="tables.safetensors", tensor=name),
                scales=b.Tensor(file="tables.safetensors", tensor=f"{name}.scales")
                if size.row_type == "int8"
                else None,
            )
            for name, rows in (("user", size.users), ("item", size.items))
        },
        graphs={
            "user_tower": b.Graph(
                file="user_tower.onnx",
                format="onnx",
                inputs=[batch_sparse],
                outputs=[b.GraphTensor(name="user", dims=["batch", size.dim])],
            ),
            "ranker": b.Graph(
                file="ranker.onnx",
                format="onnx",
                inputs=[
                    batch_sparse,
                    b.GraphTensor(name="items", dims=[*per_candidate, size.dim]),
                    b.GraphTensor(name="candidate_scores", dims=[*per_candidate]),
                ],
                outputs=[b.GraphTensor(name="scores", dims=[*per_candidate])],
            ),
        },
        retrieval=b.Retrieval(
            family="two_tower",
            bags=bags,
            graph="user_tower",
            index=b.Index(
                rows=size.items,
                dim=size.dim,
                vectors=b.Tensor(file="index.safetensors", tensor="vectors"),
                keys=b.Tensor(file="index.safetensors", tensor="keys"),
            ),
            fallback=b.Fallback(
                rows=b.Tensor(file="index.safetensors", tensor="fallback_rows"),
                scores=b.Tensor(file="index.safetensors", tensor="fallback_scores"),
            ),
            num_candidates=size.candidates,
            max_candidates=size.candidates,
        ),
        ranking=b.Ranking(family="mlp", bags=bags, item_table="item", graph="ranker", k=size.k),
        provenance=b.Provenance(
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            recengine="0.1.0",
            dataset={"name": "synthetic"},
        ),
        files=dict.fromkeys(files, b.UNHASHED),
    )


def user_tower(size: Size, rng: np.random.Generator) -> onnx.ModelProto:
    """From sparse [batch, 2 dim] through one hidden layer to user [batch, dim]."""
    weights = {
        "w0": _glorot(rng, 2 * size.dim, 2 * size.dim),
        "w1": _glorot(rng, 2 * size.dim, size.dim),
    }
    nodes = [
        helper.make_node("MatMul", ["sparse", "w0"], ["h0"]),
        helper.make_node("Relu", ["h0"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w1"], ["user"]),
    ]
    inputs = [_value("sparse", ["batch", 2 * size.dim])]
    return _model(nodes, inputs, [_value("user", ["batch", size.dim])], weights)


def ranker(size: Size, rng: np.random.Generator) -> onnx.ModelProto:
    """The user's part of the first layer is computed once and added to every candidate."""
    wide, narrow = size.hidden
    weights = {
        "w_user": _glorot(rng, 2 * size.dim, wide),
        "w_item": _glorot(rng, size.dim, wide),
        "w_score": _glorot(rng, 1, wide),
        "w1": _glorot(rng, wide, narrow),
        "w2": _glorot(rng, narrow, 1),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["sparse", "w_user"], ["user"]),
        helper.make_node("Unsqueeze", ["user", "axis1"], ["user_row"]),
        helper.make_node("MatMul", ["items", "w_item"], ["item"]),
        helper.make_node("Unsqueeze", ["candidate_scores", "axis2"], ["score_column"]),
        helper.make_node("MatMul", ["score_column", "w_score"], ["score"]),
        helper.make_node("Add", ["item", "score"], ["item_and_score"]),
        helper.make_node("Add", ["item_and_score", "user_row"], ["a0"]),
        helper.make_node("Relu", ["a0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["a1"]),
        helper.make_node("Relu", ["a1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis2"], ["scores"]),
    ]
    inputs = [
        _value("sparse", ["batch", 2 * size.dim]),
        _value("items", ["batch", "n_candidates", size.dim]),
        _value("candidate_scores", ["batch", "n_candidates"]),
    ]
    return _model(nodes, inputs, [_value("scores", ["batch", "n_candidates"])], weights)


def _model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Array]
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "synthetic", inputs, outputs, initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="recengine"
    )
    onnx.checker.check_model(model)
    return model


def _value(name: str, dims: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def _glorot(rng: np.random.Generator, rows: int, columns: int) -> Array:
    weights: Array = rng.standard_normal((rows, columns)) * (2 / (rows + columns)) ** 0.5
    return weights.astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--items", type=int, default=Size.items)
    parser.add_argument("--candidates", type=int, default=Size.candidates)
    parser.add_argument("--hidden", type=int, nargs=2, default=Size.hidden)
    arguments = parser.parse_args()
    size = Size(
        items=arguments.items, candidates=arguments.candidates, hidden=tuple(arguments.hidden)
    )
    write(arguments.destination, size)


if __name__ == "__main__":
    main()
