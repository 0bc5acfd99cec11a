import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from recengine.client import RecommenderClient
from recengine.errors import ServerError
from recengine.serving import server as serving
from recengine.serving.server import TritonServer, find_backends, find_tritonserver


def test_a_server_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ServerError, match=r"nowhere: no such file"):
        find_tritonserver(tmp_path / "nowhere")


def test_without_any_server_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"pip install --no-deps nvidia-pytriton"):
        find_tritonserver()


def test_a_server_on_the_path_is_preferred(monkeypatch, tmp_path):
    binary = tmp_path / "tritonserver"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tritonserver() == binary


def test_a_directory_without_the_backend_is_refused(tmp_path):
    with pytest.raises(ServerError, match=r"expected recengine/libtriton_recengine.so"):
        find_backends(tmp_path)


def test_the_installed_backend_is_found():
    assert (find_backends() / "recengine" / "libtriton_recengine.so").is_file()


def test_free_ports_are_chosen_and_listened_on_at_loopback_only(golden_server):
    endpoints = dataclasses.astuple(golden_server.endpoints)
    assert len(set(endpoints)) == 3
    assert all(endpoint.startswith("127.0.0.1:") for endpoint in endpoints)


def test_a_server_that_ends_at_start_says_why(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.pbtxt").touch()
    with pytest.raises(ServerError, match=r"ended with status 1:\n(.|\n)*failed to load") as ended:
        TritonServer(tmp_path, log=tmp_path / "log").start()
    for usual in ("CudaDriverHelper", "NVML"):
        assert usual not in str(ended.value)


@pytest.mark.parametrize("directory", ["nothing", "empty", "data", "model"])
def test_a_directory_without_models_is_refused(golden_repository, tmp_path, directory):
    (tmp_path / "empty").mkdir()
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "taken.csv").touch()
    shutil.copytree(golden_repository / "recommend", tmp_path / "model")
    message = rf"{directory}: expected a model repository, .*found none; recengine compile"
    with pytest.raises(ServerError, match=message):
        TritonServer(tmp_path / directory, log=tmp_path / "log").start()


def test_a_bundle_is_refused_with_the_command_that_compiles_it(golden, tmp_path):
    message = f"found a bundle; compile it first: recengine compile {golden} --out model_repository"
    with pytest.raises(ServerError, match=re.escape(message)):
        TritonServer(golden, log=tmp_path / "log").start()


def test_a_server_that_is_not_ready_in_time_is_killed(golden_repository, tmp_path):
    slow = TritonServer(golden_repository, log=tmp_path / "log", ready_timeout=0)
    with pytest.raises(ServerError, match=r"not ready within 0 s"):
        slow.start()
    with pytest.raises(ServerError, match=r"not running"):
        slow.wait()


@pytest.mark.parametrize("protocol", ["grpc", "http", "metrics"])
def test_a_port_that_is_taken_is_refused_by_name(serve, golden_server, tmp_path, protocol):
    port = getattr(golden_server.endpoints, protocol).rpartition(":")[2]
    message = rf"{protocol} port {port} of 127\.0\.0\.1: .*Address already in use"
    with pytest.raises(ServerError, match=message):
        serve(**{f"{protocol}_port": int(port)}).start()
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(serve, port):
    with pytest.raises(ServerError, match=f"http port: expected 0 to 65535, found {port}"):
        serve(http_port=port).start()


def test_another_server_that_answers_on_the_port_is_not_taken_for_ready(
    serve, golden_server, ended, monkeypatch
):
    """One that took the port between the check and the start."""
    endpoints = dataclasses.astuple(golden_server.endpoints)
    taken = [int(endpoint.rpartition(":")[2]) for endpoint in endpoints]
    monkeypatch.setattr(serving, "_free_ports", lambda address, ports, arguments: taken)
    with pytest.raises(ServerError, match=rf"{ended}:(.|\n)*failed to start"):
        serve().start()


def test_arguments_are_passed_on_and_cannot_change_who_is_ready(serve, tmp_path):
    with serve(arguments=["--backend-config=recengine,threads=1", "--id=another"]):
        pass
    assert re.search(r"recengine: \w+, 1 threads", (tmp_path / "log").read_text())


def test_a_server_with_tls_is_ready_once_its_http_says_so(serve, grpc_tls, certificate):
    trusted = {"ssl": True, "root_certificates": str(certificate / "cert.pem")}
    with (
        serve(arguments=grpc_tls, ready_timeout=20) as server,
        RecommenderClient(server.endpoints.grpc, **trusted) as client,
    ):
        assert client.ready(timeout=10)


def test_a_server_with_tls_whose_models_do_not_load_is_not_ready(serve, grpc_tls, own_repository):
    (own_repository / "retrieval" / "1" / "manifest.json").write_text("{}")
    arguments = [*grpc_tls, "--exit-on-error=false"]
    with pytest.raises(ServerError, match="not ready within 2 s"):
        serve(arguments=arguments, ready_timeout=2).start()


def test_a_server_that_answers_by_http_with_another_id_is_not_taken_for_ready(
    serve, grpc_tls, monkeypatch
):
    with serve(arguments=grpc_tls) as server:
        assert server._is_ready()
        monkeypatch.setattr(server, "_id", "another")
        assert not server._is_ready()


def test_stopping_twice_is_harmless_and_the_first_tells_the_status(serve):
    server = serve().start()
    assert server.stop() == 0
    assert server.stop() is None


@pytest.mark.alone
def test_a_restart_is_ready_within_three_seconds(serve):
    begin = time.monotonic()
    with serve():
        assert time.monotonic() - begin < 3


SERVE = """
import signal
import sys
from pathlib import Path
from recengine.serving.server import TritonServer

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests may ignore it
binary = Path(sys.argv[3]) if sys.argv[3:] else None
with TritonServer(sys.argv[1], log=Path(sys.argv[2]), tritonserver=binary) as server:
    print(server.pid, flush=True)
    sys.exit(server.wait())
"""


@pytest.fixture
def wrapper(tmp_path):
    """A script that starts tritonserver and stays its parent; the server's pid is in `pid`."""
    path = tmp_path / "wrapper"
    path.write_text(
        f'#!/bin/sh\n{find_tritonserver()} "$@" &\necho $! > {tmp_path}/pid\nwait\nexit 3\n'
    )
    path.chmod(0o755)
    yield path
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # a test may have failed


@pytest.fixture
def command(own_repository, tmp_path, request):
    """A process that serves until it is told to end, and the pid of its tritonserver."""
    arguments = [str(own_repository), str(tmp_path / "log")]
    if hasattr(request, "param"):
        arguments.append(str(request.getfixturevalue(request.param)))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVE), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        server = int(process.stdout.readline())
        while not catches(process.pid, signal.SIGTERM):
            time.sleep(0.01)
        yield process, server
        process.kill()


def catches(pid, number):
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_and_the_server_ends_cleanly(command, number):
    process, server = command
    process.send_signal(number)
    assert process.wait(timeout=20) == 0
    assert not is_running(server)


@pytest.mark.parametrize("command", ["wrapper"], indirect=True)
@pytest.mark.parametrize("number", serving.STOP_SIGNALS)
def test_a_server_whose_wrapper_passes_no_signals_on_ends_with_it(command, tmp_path, number):
    process, _ = command
    server = int((tmp_path / "pid").read_text())
    assert is_running(server)
    process.send_signal(number)
    process.wait(timeout=20)
    assert not is_running(server)
    assert "Waiting for in-flight requests to complete" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("command", ["wrapper"], indirect=True)
def test_a_server_that_outlives_its_wrapper_is_ended(command, tmp_path):
    process, wrapper = command
    server = int((tmp_path / "pid").read_text())
    os.kill(wrapper, signal.SIGKILL)
    process.wait(timeout=20)
    assert not is_running(server)


def test_the_server_ends_with_a_parent_that_is_killed(command):
    process, server = command
    assert is_running(server)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_running(server):
        assert time.monotonic() < deadline, "the server outlives its parent"
        time.sleep(0.02)


def is_running(pid):
    """False for a zombie too: whoever inherits it need not have collected it yet."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
