"""Checksums of the graphs that Triton's ONNX Runtime backend loads, which itself has none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from recengine._files import replace_file
from recengine.bundle import FileEntry, hash_file, newest_with, read_record, verify_file

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
    for name, entry in read_record(GraphFiles, directory / RECORD).files.items():
        verify_file(directory / name, entry, RECORD)


def check_graphs(repository: Path) -> None:
    """`verify_graph` for the newest versions of a model repository.

    Raises:
        BundleError: as `verify_graph`.
    """
    for directory in newest_with(repository, RECORD):
        verify_graph(directory)
