"""Writes a trained recommender as a bundle: tables to safetensors, dense halves to ONNX."""

from __future__ import annotations

import hashlib
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from torch import nn

from recengine.bundle import (
    UNHASHED,
    Feature,
    Graph,
    Manifest,
    Provenance,
    Ranking,
    Reference,
    Retrieval,
    RowType,
    Table,
    write_bundle,
    write_tensors,
)
from recengine.errors import InputError
from recengine.export.graphs import Shape, export_graph
from recengine.export.reference import Sizes, reference_tensors
from recengine.export.tables import (
    Arrays,
    TensorFile,
    add_fallback,
    add_index,
    add_table,
    add_tables,
    add_vocabulary,
)
from recengine.models.bags import total_dim
from recengine.training.checkpoint import load
from recengine.training.recommender import Recommender

_VERSIONS = ("torch", "onnx", "openvino", "numpy")


def export(
    checkpoint: Path | Recommender,
    out: Path,
    *,
    table_row_type: RowType = "fp32",
    num_candidates: int | None = None,
    max_candidates: int = 1000,
    k: int | None = None,
    reference_users: int = 1000,
) -> Manifest:
    """Writes a bundle, with what eager PyTorch answers for held-out users beside it.

    Args:
        checkpoint: directory that training wrote, or the recommender itself.
        out: the bundle's directory; it appears whole or not at all, and replaces one that stands.
        table_row_type: how embedding rows are stored.
        num_candidates: items retrieved by default; None for what the ranking was trained with.
        max_candidates: most items that a request may ask for.
        k: items answered by default; None for what the checkpoint says.
        reference_users: most held-out users to keep for the fidelity gate.

    Returns:
        The manifest.

    Raises:
        InputError: a table holds NaN or infinity, two keys share one id, an item has the key -1,
            or the weights of a graph do not fit an ONNX file.
        CompileError: an exported graph does not compute what its module computes.
    """
    if isinstance(checkpoint, Recommender):
        recommender, digest = checkpoint, None
    else:
        recommender, digest = load(Path(checkpoint)), _digest(Path(checkpoint))
    sizes = _sizes(recommender, num_candidates, max_candidates, k)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as parent:
        staging = Path(parent) / out.name
        staging.mkdir()
        manifest = _write(recommender, sizes, table_row_type, reference_users, staging)
        provenance = manifest.provenance.model_copy(update={"checkpoint_sha256": digest})
        return write_bundle(staging, manifest.model_copy(update={"provenance": provenance}), out)


def _sizes(
    recommender: Recommender, num_candidates: int | None, max_candidates: int, k: int | None
) -> Sizes:
    """What was asked for, within the catalog."""
    wanted = {
        "max_candidates": max_candidates,
        "num_candidates": recommender.num_candidates if num_candidates is None else num_candidates,
        "k": recommender.k if k is None else k,
    }
    for name, value in wanted.items():
        if value < 1:
            raise InputError(f"[export] {name}: expected at least 1, found {value}")
    most = min(max_candidates, len(recommender.item_keys))
    num_candidates = min(wanted["num_candidates"], most)
    return Sizes(num_candidates, most, min(wanted["k"], num_candidates))


def _write(
    recommender: Recommender, sizes: Sizes, row_type: RowType, reference_users: int, staging: Path
) -> Manifest:
    """Writes every file but the manifest."""
    vocabulary_file, retrieval_file, ranking_file, item_file, reference_file = files = [
        TensorFile(f"{name}.safetensors")
        for name in ("vocabularies", "retrieval", "ranking", "items", "reference")
    ]
    used = {spec.vocabulary: None for spec in recommender.features}
    vocabularies = {
        name: add_vocabulary(vocabulary_file, name, recommender.vocabularies[name])
        for name in used | {recommender.item_vocabulary: None}
    }
    retrieval, tables = _retrieval(recommender, sizes, row_type, retrieval_file, item_file)
    ranking, ranking_tables = _ranking(recommender, sizes, row_type, ranking_file)
    graphs = _graphs(recommender, staging)
    reference_file.tensors = reference_tensors(recommender, sizes, reference_users)
    num_users = len(reference_file.tensors.get("target", ()))
    written = [file for file in files if file.tensors]
    for file in written:
        write_tensors(staging / file.name, file.tensors)
    names = [file.name for file in written] + [graph.file for graph in graphs.values()]
    return Manifest(
        name=recommender.name,
        features=[
            Feature(
                name=spec.name,
                vocabulary=spec.vocabulary,
                max_length=spec.max_length,
                hashed=spec.hashed,
            )
            for spec in recommender.features
        ],
        dense_features=list(recommender.dense_features),
        item_vocabulary=recommender.item_vocabulary,
        vocabularies=vocabularies,
        tables=tables | ranking_tables,
        graphs=graphs,
        retrieval=retrieval,
        ranking=ranking,
        reference=Reference(file=reference_file.name, users=num_users) if num_users else None,
        provenance=_provenance(recommender),
        files=dict.fromkeys(names, UNHASHED),
    )


def _retrieval(
    recommender: Recommender,
    sizes: Sizes,
    row_type: RowType,
    tables_file: TensorFile,
    item_file: TensorFile,
) -> tuple[Retrieval, dict[str, Table]]:
    model = recommender.retrieval
    bags, tables = add_tables(
        tables_file, "retrieval", model.user_bags, _weights(model.tables), row_type
    )
    stage = Retrieval(
        family="two_tower",
        bags=bags,
        graph="user_tower",
        index=add_index(item_file, recommender.item_vectors().numpy(), recommender.item_keys),
        fallback=add_fallback(item_file, recommender.popularity, sizes.max_candidates),
        num_candidates=sizes.num_candidates,
        max_candidates=sizes.max_candidates,
    )
    return stage, tables


def _ranking(
    recommender: Recommender, sizes: Sizes, row_type: RowType, file: TensorFile
) -> tuple[Ranking, dict[str, Table]]:
    model = recommender.ranking
    bags, tables = add_tables(file, "ranking", model.user_bags, _weights(model.tables), row_type)
    items = "ranking.items"
    tables[items] = add_table(file, items, recommender.item_table().numpy(), row_type)
    stage = Ranking(family="dlrm", bags=bags, item_table=items, graph="ranker", k=sizes.k)
    return stage, tables


def _graphs(recommender: Recommender, staging: Path) -> dict[str, Graph]:
    """The dense halves; what the user alone decides enters the ranker once per user."""
    retrieval, ranking = recommender.retrieval, recommender.ranking
    dense: dict[str, Shape] = {}
    if recommender.dense_features:
        dense["dense"] = ("batch", len(recommender.dense_features))
    tower: dict[str, Shape] = {
        "sparse": ("batch", total_dim(retrieval.user_bags, retrieval.config.tables)),
    }
    ranker: dict[str, Shape] = {
        "sparse": ("batch", total_dim(ranking.user_bags, ranking.config.tables)),
        "items": ("batch", "n_candidates", recommender.item_table().shape[1]),
        "candidate_scores": ("batch", "n_candidates"),
    }
    user = ("user", ("batch", retrieval.config.dim))
    scores = ("scores", ("batch", "n_candidates"))
    return {
        "user_tower": export_graph(
            retrieval.user_tower, tower | dense, user, staging / "user_tower.onnx"
        ),
        "ranker": export_graph(ranking.ranker, ranker | dense, scores, staging / "ranker.onnx"),
    }


def _weights(tables: nn.ParameterDict) -> Arrays:
    return {name: weight.detach().numpy() for name, weight in tables.items()}


def _provenance(recommender: Recommender) -> Provenance:
    return Provenance(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        recengine=version("recengine"),
        dataset=recommender.dataset,
        versions={name: version(name) for name in _VERSIONS},
        quality={row.method: row.metrics for row in recommender.quality},
        dense_means=recommender.dense_means or None,
    )


def _digest(checkpoint: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        digest.update(path.relative_to(checkpoint).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()
