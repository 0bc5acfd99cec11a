"""Timings on disk: what was written is read, what is damaged is not."""

from pathlib import Path

import pytest

from recengine.compile.timing_cache import (
    read_timing_cache,
    timing_cache_path,
    write_timing_cache,
)
from recengine.gpu import Gpu


def test_what_was_written_is_read_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "cache"
    for cache in (b"first", b"", bytes(range(256))):
        write_timing_cache(path, cache)
        assert read_timing_cache(path) == cache
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_is_an_empty_cache(tmp_path):
    assert read_timing_cache(tmp_path / "cache") == b""


@pytest.mark.parametrize("keep", [0, 5, 32, 40])
def test_a_truncated_file_is_an_empty_cache_with_a_warning(tmp_path, keep):
    path = tmp_path / "cache"
    write_timing_cache(path, b"timings of many kernels")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.warns(UserWarning, match="cache: damaged"):
        assert read_timing_cache(path) == b""


def test_every_tensorrt_and_kind_of_gpu_has_a_file_of_its_own(tmp_path, monkeypatch):
    h200, l4 = (Gpu(name, "9.0", None, "13.0") for name in ("NVIDIA H200", "NVIDIA L4/24GB"))
    bundle = tmp_path / "bundle"
    paths = {
        timing_cache_path(bundle, v, gpu)
        for v in ("10.16.1.11", "11.4.0.106")
        for gpu in (h200, l4)
    }
    assert len(paths) == 4
    assert {path.parent for path in paths} == {bundle.parent}
    assert tmp_path / "bundle.11.4.0.106.NVIDIA-L4-24GB.timing" in paths
    bundle.mkdir()
    monkeypatch.chdir(bundle)
    assert timing_cache_path(Path(), "10.16.1.11", h200) in paths


def test_a_folder_that_cannot_be_written_to_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="timings are not kept: .*No such file"):
        write_timing_cache(tmp_path / "none" / "cache", b"timings")
