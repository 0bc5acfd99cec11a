"""Checksums of graphs that stock backends load."""

import re

import pytest

from recengine.errors import BundleError
from recengine.graph_files import RECORD, check_graphs, verify_graph, write_record


@pytest.fixture
def version(tmp_path):
    directory = tmp_path / "tower" / "2"
    (directory / "weights").mkdir(parents=True)
    (directory / "model.onnx").write_bytes(b"a graph")
    (directory / "weights" / "tower.bin").write_bytes(b"weights")
    write_record(directory, ["model.onnx", "weights/tower.bin"])
    return directory


def test_whole_files_pass(version):
    verify_graph(version)
    check_graphs(version.parents[1])


@pytest.mark.parametrize("name", ["model.onnx", "weights/tower.bin"])
@pytest.mark.parametrize("content", [None, b"", b"a graqh", b"weightz", b"a graph and more"])
def test_changed_files_are_refused_by_name(version, name, content):
    if content is None:
        (version / name).unlink()
    else:
        (version / name).write_bytes(content)
    message = rf"{re.escape(name)}: missing or changed; graph\.json has another size or SHA-256"
    with pytest.raises(BundleError, match=message):
        verify_graph(version)
    with pytest.raises(BundleError, match=message):
        check_graphs(version.parents[1])


@pytest.mark.parametrize("record", [b"", b"{}", b'{"files": {"model.onnx": 3}}'])
def test_a_damaged_record_is_refused(version, record):
    (version / RECORD).write_bytes(record)
    with pytest.raises(BundleError, match=r"graph\.json: "):
        verify_graph(version)


def test_only_the_newest_version_and_recorded_graphs_are_looked_at(version, tmp_path):
    (version / "model.onnx").write_bytes(b"another")
    (tmp_path / "tower" / "10").mkdir()
    (tmp_path / "retrieval" / "1").mkdir(parents=True)
    check_graphs(tmp_path)
