import shutil
import subprocess
import sys

import pytest
from cuda_stub import build_tensorrt
from plan_records import make_plan

from recengine.errors import ServerError
from recengine.plans import rebuild_command
from recengine.serving.backends import (
    _ASK_TENSORRT,
    CONTAINER,
    backend_directory,
    container_command,
    needed_backends,
)
from recengine.serving.server import TritonServer, find_backends


def add_model(repository, name, text):
    (repository / name).mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(text)


def add_backend(directory, name):
    (directory / name).mkdir(parents=True)
    (directory / name / f"libtriton_{name}.so").touch()


@pytest.fixture
def repository(tmp_path):
    path = tmp_path / "repository"
    add_model(path, "a_lookup", 'backend: "recengine"')
    add_model(path, "b_graph", 'platform: "tensorrt_plan"')
    add_model(path, "c_graph", 'platform: "tensorrt_plan" of_another_release: 1')
    add_model(path, "d_all", 'platform: "ensemble"')
    add_model(path, "e_broken", "{{{")
    return path


@pytest.fixture
def installation(tmp_path):
    """bin/tritonserver of an installation, and our own backends beside it."""
    binary = tmp_path / "tritonserver" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.touch()
    add_backend(tmp_path / "ours", "recengine")
    return binary, tmp_path / "ours"


def test_backends_are_those_that_configs_name_with_a_model_that_does(repository):
    assert needed_backends(repository) == {"recengine": "a_lookup", "tensorrt": "b_graph"}


def test_our_own_directory_is_used_as_it_is_when_nothing_else_is_needed(repository, installation):
    shutil.rmtree(repository / "b_graph")
    shutil.rmtree(repository / "c_graph")
    binary, ours = installation
    with backend_directory(repository, binary, ours) as directory:
        assert directory == ours


def test_backends_of_the_server_are_linked_beside_ours(repository, installation):
    binary, ours = installation
    add_backend(binary.parents[1] / "backends", "tensorrt")
    add_backend(binary.parents[1] / "backends", "python")
    with backend_directory(repository, binary, ours) as directory:
        assert {path.name for path in directory.iterdir()} == {"recengine", "tensorrt"}
        for name in ("recengine", "tensorrt"):
            assert (directory / name / f"libtriton_{name}.so").is_file()
    assert not directory.exists()
    assert (ours / "recengine" / "libtriton_recengine.so").is_file()


def test_a_backend_that_is_nowhere_is_an_error_that_names_model_and_container(
    repository, installation
):
    binary, ours = installation
    with (
        pytest.raises(ServerError, match=r"model b_graph needs the backend tensorrt: ") as refused,
        backend_directory(repository, binary, ours),
    ):
        pass
    assert container_command(repository, ours, gpu=True) in str(refused.value)


def test_a_server_without_the_backend_is_not_started(repository, tmp_path):
    with pytest.raises(ServerError, match="needs the backend tensorrt"):
        TritonServer(repository, log=tmp_path / "log").start()
    assert not (tmp_path / "log").exists()


def test_the_container_gets_our_backend_where_it_finds_openvino(tmp_path):
    command = container_command(tmp_path, find_backends(), gpu=False).split()
    volumes = dict(
        word.removeprefix("--volume=").rsplit(":", 1)[0].split(":")
        for word in command
        if word.startswith("--volume=")
    )
    targets = {target: source for source, target in volumes.items()}
    library = find_backends() / "recengine" / "libtriton_recengine.so"
    assert targets["/opt/tritonserver/backends/recengine"] == str(library.parent)
    # What the library's run path, $ORIGIN/../../../openvino/libs, is there and here.
    here = (library.parent / "../../../openvino/libs").resolve()
    assert targets["/opt/openvino/libs"] == str(here)
    assert list(here.glob("libopenvino.so*"))
    assert not any("--gpus" in word for word in command)
    on_gpu = container_command(tmp_path, find_backends(), gpu=True).split()
    assert [word for word in on_gpu if "--gpus" in word] == ["--gpus=device=0"]


def test_beside_the_container_stands_which_tensorrt_the_plans_need(tmp_path):
    """As comments of a shell: the text is pasted as it is."""
    tower = tmp_path / "tower" / "1"
    tower.mkdir(parents=True)
    (tower / "plan.json").write_text(make_plan().model_dump_json())
    command, *comments = container_command(tmp_path, find_backends(), gpu=True).splitlines()
    assert "tritonserver --model-repository=/models" in command
    assert all(line.startswith("# ") for line in comments)
    assert comments[0].startswith(
        "# TensorRT 10.16.1.11 built the plans: the container must have it."
    )
    assert f"{CONTAINER} python3 -c" in comments[2]
    assert comments[-1].endswith(f"&& {rebuild_command(tmp_path)}")
    (tower / "plan.json").write_text(make_plan(version_compatible=True).model_dump_json())
    assert "must have it or a later version." in container_command(
        tmp_path, find_backends(), gpu=True
    )


def test_the_container_is_asked_for_the_whole_version_of_its_tensorrt(tmp_path):
    build_tensorrt(tmp_path)
    question = _ASK_TENSORRT.replace("/usr/lib/*-linux-gnu", str(tmp_path))
    answer = subprocess.check_output([sys.executable, "-c", question], text=True)
    assert answer == "10.16.1.11\n"


def test_a_backend_that_no_target_needs_is_left_to_the_server(repository, installation):
    """The server looks for it in the model's own directory, too, and says what it lacks."""
    shutil.rmtree(repository / "b_graph")
    shutil.rmtree(repository / "c_graph")
    add_model(repository, "g_custom", 'backend: "identity"')
    binary, ours = installation
    with backend_directory(repository, binary, ours) as directory:
        assert directory == ours
    (repository / "g_custom" / "libtriton_identity.so").touch()
    assert "identity" not in needed_backends(repository)
