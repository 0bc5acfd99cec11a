"""What stands in a version directory: a manifest of its own, and the files that it names.

Most are links to the bundle's; graphs are converted, and the codes of a large catalog made.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from recengine._files import sync
from recengine.bundle import (
    UNHASHED,
    Manifest,
    Retrieval,
    Stage,
    Target,
    map_tensor,
    write_bundle,
    write_tensors,
)
from recengine.compile.repository import stages
from recengine.errors import BundleError, InputError
from recengine.ops import ItemIndex

Model = Literal["retrieval", "ranking"]
T = TypeVar("T")

CODES = "item_codes.safetensors"

_ABOUT_EMPTY = """\
A version of an ensemble has no files. This one is here so that the directory is not lost where
empty ones are, as in git and in object stores: without it a server finds no version.
"""


def part(
    manifest: Manifest, model: Model, target: Target, *, stage: Stage | None = None
) -> Manifest:
    """The manifest of one model, or of one stage of it, with no file yet.

    It has the tables that are read; the vocabularies that all ids go through; the graph unless a
    stage leaves it to another model; the reference where answers of retrieval are compared.
    """
    retrieval, ranking = stages(manifest)
    of_retrieval = model == "retrieval"
    spec = retrieval if of_retrieval else ranking
    tables = {bag.table for bag in spec.bags}
    if not of_retrieval:
        tables.add(ranking.item_table)
    used = {feature.vocabulary for feature in manifest.features} | {manifest.item_vocabulary}
    usual = ranking.model_copy(update={"usual_candidates": retrieval.num_candidates})
    return manifest.model_copy(
        update={
            "target": target,
            "stage": stage,
            # What follows a graph does not read them.
            "dense_features": [] if stage in ("topk", "order") else manifest.dense_features,
            "retrieval": retrieval if of_retrieval else None,
            "ranking": None if of_retrieval else usual,
            "reference": manifest.reference
            if of_retrieval and stage in (None, "ensemble")
            else None,
            "tables": _only(manifest.tables, tables if stage in (None, "lookup") else ()),
            "vocabularies": _only(manifest.vocabularies, used),
            "graphs": _only(manifest.graphs, () if stage else (spec.graph,)),
            "files": {},
        }
    )


def write(bundle: Path, manifest: Manifest, destination: Path, *, building: Path) -> None:
    """Makes `building`, which may hold converted graphs, the whole directory `destination`.

    Raises:
        BundleError: the vectors of a catalog are not what the manifest says, or not finite; or a
            file has the name that its codes get.
    """
    made = {path.name for path in building.iterdir()}
    if retrieval := _pack_items(bundle, manifest, building):
        manifest = manifest.model_copy(update={"retrieval": retrieval})
        made.add(CODES)
    names = manifest.referenced_files()
    for name in names - made:
        _link(bundle / name, building / name)
    whole = manifest.model_copy(update={"files": dict.fromkeys(names, UNHASHED)})
    write_bundle(building, whole, destination)


def write_empty(destination: Path) -> None:
    """Makes the version directory of an ensemble, which nothing is read from."""
    destination.mkdir()
    (destination / "README.txt").write_text(_ABOUT_EMPTY)
    sync(destination / "README.txt")
    sync(destination)


def _pack_items(bundle: Path, manifest: Manifest, building: Path) -> Retrieval | None:
    """Writes the codes of a large catalog, which its server then maps and need not pack.

    Returns:
        The retrieval model with them; None when this directory needs none.
    """
    retrieval = manifest.retrieval
    if retrieval is None or manifest.stage not in (None, "topk"):
        return None
    index = retrieval.index
    if CODES in manifest.referenced_files():
        raise BundleError(f"{bundle / CODES}: expected another name: compile writes such a file")
    vectors = map_tensor(bundle, index.vectors)
    where = f"{bundle / index.vectors.file}: tensor {index.vectors.tensor}"
    if vectors.shape != (index.rows, index.dim):
        raise BundleError(
            f"{where}: expected shape {(index.rows, index.dim)}, found {vectors.shape}"
        )
    try:
        codes = ItemIndex.from_unit_vectors(vectors).stored_codes()
    except InputError as error:
        raise BundleError(f"{where}: {error}") from None
    if codes is None:
        return None
    write_tensors(building / CODES, codes)
    return retrieval.model_copy(update={"index": index.model_copy(update={"codes": CODES})})


def _only(entries: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    kept = set(names)
    return {name: entry for name, entry in entries.items() if name in kept}


def _link(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, destination)
