"""Checksums of the graphs that Triton's ONNX Runtime backend loads, which itself has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from recengine._files import replace_file
from recengine.bundle import FileEntry, hash_file, latest_version, versions
from recengine.errors import BundleError

RECORD = "graph.json"
"""The file beside a graph that says what its files are."""


class GraphFiles(BaseModel):
    """A graph's own file and those with its weights, by their names below the version directory."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    files: dict[str, FileEntry]


def write_record(directory: Path, names: Iterable[str]) -> None:
    """Records the files of a graph in a version directory."""
    record = GraphFiles(files={name: hash_file(directory / name) for name in names})
    replace_file(directory / RECORD, record.model_dump_json(indent=2).encode() + b"\n")


def verify_graph(directory: Path) -> None:
    """Holds the files of a version directory against its record.

    Raises:
        BundleError: the record is damaged, or a file of it is missing or damaged.
    """
    path = directory / RECORD
    try:
        record = GraphFiles.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path}: {error.errors()[0]['msg']}") from None
    for name, entry in record.files.items():
        file = directory / name
        if not file.is_file() or hash_file(file, entry.chunk_bytes) != entry:
            raise BundleError(f"{file}: missing or changed; {RECORD} has another size or SHA-256")


def check_graphs(repository: Path) -> None:
    """`verify_graph` for the newest versions of a model repository.

    Raises:
        BundleError: as `verify_graph`.
    """
    for model in sorted(path for path in repository.glob("*") if versions(path)):
        directory = latest_version(model)
        if (directory / RECORD).exists():
            verify_graph(directory)
