"""Compiles a bundle into a Triton model repository, behind the fidelity gate."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from recengine._files import sync
from recengine.bundle import (
    UNHASHED,
    FidelityBounds,
    FidelityRow,
    Manifest,
    Target,
    verify,
    versions,
    write_bundle,
    write_manifest,
)
from recengine.client.wire import WireUsers
from recengine.compile import openvino
from recengine.compile.fidelity import Answer, Ranked, ReferenceAnswers, gate, load_reference
from recengine.compile.fidelity import Stage as FidelityStage
from recengine.compile.repository import MODELS, stages, warmup_request, write_configs
from recengine.engine import Engine

Stage = Literal["retrieval", "ranking"]
STAGES: tuple[Stage, ...] = ("retrieval", "ranking")


def compile_bundle(
    bundle: Path,
    out: Path,
    *,
    target: Target = "cpu",
    bounds: FidelityBounds | None = None,
) -> Path:
    """Adds a version of a bundle to a Triton model repository.

    The repository gets the models retrieval, ranking and recommend (their ensemble). The version
    has the next free number, so that a live server can load it over the one it serves; versions
    that stand are left alone. Nothing is published unless the fidelity gate passes.

    Args:
        bundle: directory that export wrote.
        out: the model repository; made when it is not there.
        target: what to compile for; cpu is OpenVINO in fp32.
        bounds: how far the engine may be from eager PyTorch.

    Returns:
        The repository.

    Raises:
        BundleError: a file of the bundle is missing or changed.
        CompileError: a graph could not be compiled, or the fidelity gate refused the result.
    """
    bundle, out = Path(bundle), Path(out)
    manifest = verify(bundle)
    request = warmup_request(bundle, manifest)
    out.mkdir(parents=True, exist_ok=True)
    with _sole_writer(out), _staging(out) as staging:
        staged = {stage: _stage(bundle, manifest, stage, target, staging) for stage in STAGES}
        rows = _gate(bundle, manifest, staging, bounds or FidelityBounds())
        for stage, part in staged.items():
            own = "retrieval" if stage == "retrieval" else "recommend"
            fidelity = [row for row in rows if row.stage == own]
            write_manifest(staging / stage, part.model_copy(update={"fidelity": fidelity}))
        _publish(staging, out)
        write_configs(out, manifest, request)
    return out


def _stage(
    bundle: Path, manifest: Manifest, stage: Stage, target: Target, staging: Path
) -> Manifest:
    """Writes the version directory `staging`/`stage`: linked files, and the graph as IR."""
    part = _part(manifest, stage)
    building = staging / f"{stage}.building"
    building.mkdir()
    graphs = {
        name: openvino.convert(bundle, graph, building, name) for name, graph in part.graphs.items()
    }
    compiled = part.model_copy(update={"target": target, "graphs": graphs, "files": {}})
    converted = {file for graph in graphs.values() for file in (graph.file, graph.weights)}
    names = compiled.referenced_files()
    for name in names - converted:
        _link(bundle / name, building / name)
    compiled = compiled.model_copy(update={"files": dict.fromkeys(names, UNHASHED)})
    return write_bundle(building, compiled, staging / stage)


def _part(manifest: Manifest, stage: Stage) -> Manifest:
    """The manifest of one stage: its tables and graph; the vocabularies that all ids go through."""
    retrieval, ranking = stages(manifest)
    model = retrieval if stage == "retrieval" else ranking
    tables = {bag.table for bag in model.bags}
    if stage == "ranking":
        tables.add(ranking.item_table)
    vocabularies = {feature.vocabulary for feature in manifest.features}
    vocabularies.add(manifest.item_vocabulary)
    return manifest.model_copy(
        update={
            "retrieval": retrieval if stage == "retrieval" else None,
            "ranking": (
                ranking.model_copy(update={"usual_candidates": retrieval.num_candidates})
                if stage == "ranking"
                else None
            ),
            "reference": manifest.reference if stage == "retrieval" else None,
            "tables": {name: manifest.tables[name] for name in manifest.tables if name in tables},
            "vocabularies": {
                name: manifest.vocabularies[name]
                for name in manifest.vocabularies
                if name in vocabularies
            },
            "graphs": {model.graph: manifest.graphs[model.graph]},
        }
    )


def _gate(
    bundle: Path, manifest: Manifest, staging: Path, bounds: FidelityBounds
) -> list[FidelityRow]:
    if manifest.reference is None:
        warnings.warn(
            f"[compile] {bundle}: has no reference answers; what is served is not checked",
            stacklevel=3,
        )
        return []
    reference = load_reference(bundle, manifest.reference)
    return gate(reference, _engine_answer(staging, reference), "engine", bounds)


def _engine_answer(directory: Path, reference: ReferenceAnswers) -> Answer:
    """Runs `directory`/retrieval and `directory`/ranking in process."""
    num_candidates = reference.expected["retrieval"].items.shape[1]
    k = reference.expected["recommend"].items.shape[1]
    retrieval, ranking = Engine(directory / "retrieval"), Engine(directory / "ranking")

    def answer(users: WireUsers) -> dict[FidelityStage, Ranked]:
        candidates = Ranked(*retrieval.retrieve(users, k=num_candidates))
        items = Ranked(*ranking.rank(users, candidates.items, candidates.scores, k=k))
        return {"retrieval": candidates, "recommend": items}

    return answer


def _publish(staging: Path, out: Path) -> None:
    """Renames the staged directories to one version number that no model has yet."""
    version = str(1 + max((n for model in MODELS for n in versions(out / model)), default=0))
    # Ranking first: whoever starts in between ranks items of a catalog that it knows.
    for stage in reversed(STAGES):
        (staging / stage).rename(out / stage / version)
        sync(out / stage)
    (out / "recommend" / version).mkdir()
    sync(out / "recommend")


@contextmanager
def _sole_writer(repository: Path) -> Iterator[None]:
    """Holds a lock on the repository's directory itself, so that no lock file is left in it."""
    descriptor = os.open(repository, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A directory on the repository's file system that Triton does not look at."""
    for model in MODELS:
        (repository / model).mkdir(exist_ok=True)
    parent = repository / "retrieval"
    for leftover in parent.glob(".staging-*"):  # of a compile that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=parent) as staging:
        yield Path(staging)


def _link(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, destination)
