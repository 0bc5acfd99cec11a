import shutil

import pytest
from cuda_stub import build_driver, build_tensorrt
from numpy.linalg import _umath_linalg

from recengine import _cuda_driver, gpu
from recengine.doctor import Level, examine, server_version
from recengine.serving.server import BACKEND_DIRECTORY, find_tritonserver


def finding(name, **options):
    return next(item for item in examine(**options) if item.name == name)


def test_an_installation_that_serves_has_no_problem():
    findings = list(examine())
    assert {"python", "cpu", "openvino", "backend", "tritonserver"} <= {f.name for f in findings}
    assert [item for item in findings if item.level is Level.PROBLEM] == []


def test_the_servers_version_is_read_from_its_log():
    assert server_version(find_tritonserver()).startswith("2.")


def test_an_old_server_is_for_development_only(tmp_path):
    server = script(tmp_path, "echo '| server_version | 2.51.0 |'; exec sleep 60")
    assert finding("tritonserver", tritonserver=server).level is Level.NOTE
    server = script(tmp_path, "echo '| server_version | 2.70.1 |'; exec sleep 60")
    assert finding("tritonserver", tritonserver=server).level is Level.OK


def test_targets_whose_stock_backend_the_server_lacks_are_noted(tmp_path):
    backend = tmp_path / "backends" / "tensorrt" / "libtriton_tensorrt.so"
    backend.parent.mkdir(parents=True)
    backend.touch()
    (tmp_path / "bin").mkdir()
    binary = script(tmp_path / "bin", "exit 1")
    assert finding("target gpu", tritonserver=binary).level is Level.OK
    found = finding("target onnxruntime", tritonserver=binary)
    assert (found.level, "no onnxruntime backend" in found.found) == (Level.NOTE, True)


def test_the_gpu_and_its_driver_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", build_driver(tmp_path / "libcuda.so.1"))
    found = finding("gpu")
    assert (found.level, "NVIDIA L4, compute capability 8.9" in found.found) == (Level.OK, True)
    monkeypatch.setattr(_cuda_driver, "_LIBRARY", "libcuda-none.so.1")
    found = finding("gpu")
    assert (found.level, "targets cpu and onnxruntime need" in found.found) == (Level.NOTE, True)


def test_tensorrts_version_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LIBRARIES", ("libnvinfer-none.so.11", build_tensorrt(tmp_path)))
    assert finding("tensorrt").found.startswith("10.16.1.11, ")
    monkeypatch.setattr(gpu, "LIBRARIES", ("libnvinfer-none.so.11",))
    assert finding("tensorrt").level is Level.NOTE


def test_a_server_that_does_not_start_is_a_problem(tmp_path):
    found = finding("tritonserver", tritonserver=script(tmp_path, "exit 1"))
    assert (found.level, found.found.endswith("does not start")) == (Level.PROBLEM, True)


def test_a_missing_server_is_a_problem(tmp_path):
    found = finding("tritonserver", tritonserver=tmp_path / "nothing")
    assert (found.level, "no such file" in found.found) == (Level.PROBLEM, True)


@pytest.mark.parametrize("library", ["text", "extension"])
def test_a_library_that_is_no_backend_is_a_problem(tmp_path, monkeypatch, library):
    path = tmp_path / "recengine" / "libtriton_recengine.so"
    path.parent.mkdir()
    if library == "text":
        path.write_text("not a library")
    else:
        shutil.copy(_umath_linalg.__file__, path)
    monkeypatch.setenv(BACKEND_DIRECTORY, str(tmp_path))
    found = finding("backend")
    assert found.level is Level.PROBLEM, found.found


def script(folder, body):
    path = folder / "tritonserver"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path
