"""Starts a real tritonserver over a model repository, for the command line, tests and benches."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from importlib import metadata
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, TextIO

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from recengine.errors import BundleError, ServerError
from recengine.serving.backends import backend_directory as linked_backends

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that ask a server to end."""
BACKEND_DIRECTORY = "RECENGINE_BACKEND_DIRECTORY"
"""Environment variable that names a directory with recengine/libtriton_recengine.so to use."""

_LIBRARY = Path("recengine", "libtriton_recengine.so")
_WHEEL_BINARY = Path("tritonserver", "bin", "tritonserver")
_POLL_S = 0.02
_SIGNAL_CHECK_S = 1.0
_PROTOCOLS = ("grpc", "http", "metrics")
_TAIL_LINES = 200
_SHOWN_LINES = 20
_WITHOUT_GPU = ("CudaDriverHelper has not been initialized", "Failed to initialize NVML")

# Asks the kernel to end the server with its parent, then becomes the server.
_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """Where a server listens: `host:port` of each protocol."""

    grpc: str
    http: str
    metrics: str

    def __str__(self) -> str:
        return f"grpc {self.grpc}, http {self.http}, metrics http://{self.metrics}/metrics"


def find_tritonserver(path: Path | None = None) -> Path:
    """The server to run: `path`, else PATH, else the binary in the wheel nvidia-pytriton.

    Raises:
        ServerError: there is none; the message says what to install.
    """
    if path is not None:
        if not path.is_file():
            raise ServerError(f"[serve] {path}: no such file")
        return path
    on_path = shutil.which("tritonserver")
    found = Path(on_path) if on_path is not None else wheel_tritonserver()
    if found is None:
        raise ServerError(
            "[serve] tritonserver: not on PATH and not in this environment; give --tritonserver, "
            "or for development run `pip install --no-deps nvidia-pytriton==0.7.0`"
        )
    return found


def wheel_tritonserver() -> Path | None:
    """The binary in the wheel nvidia-pytriton, if that is installed."""
    # Found without importing it: the wheel's own dependencies need not be there.
    spec = importlib.util.find_spec("pytriton")
    binaries = (
        Path(location) / _WHEEL_BINARY
        for location in ((spec.submodule_search_locations or []) if spec else [])
    )
    return next((binary for binary in binaries if binary.is_file()), None)


def find_backends(directory: Path | None = None) -> Path:
    """The directory to hand to `--backend-directory`: it holds recengine/libtriton_recengine.so.

    Args:
        directory: use this one; None: $RECENGINE_BACKEND_DIRECTORY, else what pip installed.

    Raises:
        ServerError: the backend is not there.
    """
    if directory is None and BACKEND_DIRECTORY in os.environ:
        directory = Path(os.environ[BACKEND_DIRECTORY])
    if directory is not None:
        if not (directory / _LIBRARY).is_file():
            raise ServerError(f"[serve] {directory}: expected {_LIBRARY} in it")
        return directory.resolve()
    try:
        files = metadata.files("recengine") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == _LIBRARY.name:
            return Path(str(file.locate())).resolve().parent.parent
    raise ServerError(
        f"[serve] {_LIBRARY.name}: the recengine that is installed has no backend; "
        "build it with `pip install .`"
    )


def ending(status: int) -> str:
    """How a process ended, by its exit status, which is -N for signal N."""
    if status >= 0:
        return f"ended with status {status}"
    hint = "; was a served file changed in place?" if status == -signal.SIGBUS else ""
    known = -status in set(signal.Signals)  # those for real time have no name
    name = f" ({signal.Signals(-status).name})" if known else ""
    return f"ended by signal {-status}{name}{hint}"


class _ServerEnded(ServerError):
    """The process ended before it was ready."""


class TritonServer:
    """A tritonserver process that is ready on entry and gone on exit.

    It ends with the process that started it, whatever ends that. Where the newest version of the
    recommender is damaged, the last good one is served: the damaged one is renamed to
    failed-<version> in every model, which is said on standard error and in the log; see
    `recengine.serving.last_good.set_aside_damaged`.

    Args:
        model_repository: the directory of models.
        tritonserver: the binary, or a script that runs it with exec (of another one the server
            ends on signals, but not with this process where that is killed); None: see
            `find_tritonserver`.
        backend_directory: see `find_backends`; backends that it lacks and the repository needs are
            taken from the server's own.
        address: what the endpoints bind to.
        grpc_port, http_port, metrics_port: 0 takes a free port.
        model_control: "explicit" loads only `load_models` and lets clients load and unload.
        load_models: names to load at start, with "explicit" only; "*" alone is all of them.
        arguments: passed to tritonserver as they are, except that its --id is ours. With TLS for
            gRPC, or health restricted, keep HTTP: it tells then when the server is ready.
        log: file that the server's log is appended to; None: standard error.
        ready_timeout: seconds that start may take.
    """

    def __init__(
        self,
        model_repository: Path | str,
        *,
        tritonserver: Path | None = None,
        backend_directory: Path | None = None,
        address: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        model_control: Literal["none", "explicit"] = "none",
        load_models: Sequence[str] = (),
        arguments: Sequence[str] = (),
        log: Path | None = None,
        ready_timeout: float = 60.0,
    ) -> None:
        self._repository = Path(model_repository)
        self._binary = find_tritonserver(tritonserver)
        self._backends = find_backends(backend_directory)
        self._address = address
        self._ports = (grpc_port, http_port, metrics_port)
        # The server tells it to those who ask: whoever else answers on its port has another.
        self._id = f"recengine-{uuid.uuid4().hex}"
        self._load_models = list(load_models)
        self._arguments = [
            f"--model-control-mode={model_control}",
            *(f"--load-model={name}" for name in load_models),
            *arguments,
        ]
        self._explicit = model_control == "explicit"
        self._log = log
        self._ready_timeout = ready_timeout
        self._endpoints: Endpoints | None = None
        self._process: _Process | None = None
        self._resources = ExitStack()  # for as long as the process runs

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def endpoints(self) -> Endpoints:
        """Where the started server listens."""
        if self._endpoints is None:
            raise ServerError("[serve] the server is not started")
        return self._endpoints

    @property
    def pid(self) -> int:
        """Process id of the started server."""
        return self._running().popen.pid

    def start(self) -> TritonServer:
        """Starts the server and returns once every model is ready.

        Raises:
            ServerError: it ended or was not ready in time, and no damaged version was the reason,
                or none is good; the message has its last words. Or a port that was asked for is
                taken, a model needs a backend that is not there, or a damaged version cannot be
                set aside, or the directory holds no models.
            BundleError: a graph of a stock backend is damaged, and there is no good version.
            DeviceError: a TensorRT plan was built for another machine.
        """
        _refuse_no_models(self._repository, may_be_empty=self._explicit)
        try:
            return self._start()
        except (BundleError, _ServerEnded):
            # Other damaged files are looked for only now: to hash tables takes as long as a start.
            from recengine.serving.last_good import set_aside_damaged

            done = set_aside_damaged(self._repository)
            if done is None:
                raise
        self._say(f"WARNING {done}")
        return self._start()

    def _start(self) -> TritonServer:
        from recengine.graph_files import check_graphs
        from recengine.plans import check_repository, server_arguments

        check_graphs(self._repository)
        check_repository(self._repository)
        ports = _free_ports(self._address, self._ports, self._arguments)
        backends = self._resources.enter_context(
            linked_backends(self._repository, self._binary, self._backends)
        )
        grpc, http, metrics = (f"{self._address}:{port}" for port in ports)
        self._endpoints = Endpoints(grpc, http, metrics)
        command = self._command(ports, backends, server_arguments(self._repository))
        self._process = _Process(command, self._log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop(timeout=0)
            raise
        return self

    def wait(self, begun: Callable[[], object] = lambda: None) -> int:
        """Waits until the server ends and returns its exit status: -N for signal N.

        SIGINT, SIGTERM and SIGHUP (unless it is ignored, as under nohup) are passed on to the
        server and all processes of its group, SIGHUP as SIGTERM; it answers what it has accepted
        before it ends. Call it from the main thread.

        Args:
            begun: called once signals are passed on, to tell those who may send them.
        """
        process = self._running()

        def pass_on(number: int, frame: FrameType | None) -> None:
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

        with ExitStack() as stack:
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    stack.callback(signal.signal, number, signal.signal(number, pass_on))
            begun()
            # Without a timeout, a signal that arrives just before wait() blocks would be handled
            # only after the server has ended, so never.
            while process.popen.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.popen.wait(_SIGNAL_CHECK_S)
            self.stop()  # what a wrapper has left
            return process.popen.returncode

    def stop(self, timeout: float = 30.0) -> int | None:
        """Asks the server to end, after `timeout` seconds makes it. Returns its exit status.

        None when it was not running. Requests that the server accepted are answered first.
        """
        if self._process is None:
            return None
        process, self._process = self._process, None
        with self._resources:
            return process.stop(timeout)

    def _running(self) -> _Process:
        if self._process is None:
            raise ServerError("[serve] the server is not running")
        return self._process

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        if self._log is not None:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{line}\n")

    def _command(self, ports: Sequence[int], backends: Path, for_plans: Sequence[str]) -> list[str]:
        addresses = [
            f"--{name}-{what}={value}"
            for name, port in zip(_PROTOCOLS, ports, strict=True)
            for what, value in (("address", self._address), ("port", port))
        ]
        return [
            str(self._binary),
            f"--model-repository={self._repository}",
            f"--backend-directory={backends}",
            *addresses,
            *for_plans,
            *self._arguments,
            f"--id={self._id}",
        ]

    def _wait_until_ready(self) -> None:
        process = self._running()
        deadline = time.monotonic() + self._ready_timeout
        while True:
            ready = self._is_ready()
            if process.popen.poll() is not None:
                how = ending(process.popen.returncode)
                raise _ServerEnded(f"[serve] tritonserver {how}:\n{process.last_words()}")
            if ready:
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    f"[serve] tritonserver was not ready within {self._ready_timeout:g} s:\n"
                    + process.last_words()
                )
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        host, _, port = self.endpoints.grpc.rpartition(":")
        try:
            # gRPC waits a second before it tries a refused port again; a bare socket does not.
            socket.create_connection((host, int(port)), timeout=1).close()
            return self._is_ready_by_grpc()
        except InferenceServerException:
            return self._is_ready_by_http()
        except OSError:
            return False

    def _is_ready_by_grpc(self) -> bool:
        with InferenceServerClient(self.endpoints.grpc) as client:
            if client.get_server_metadata(client_timeout=1).name != self._id:
                return False
            if not client.is_server_ready(client_timeout=1):
                return False
            index = client.get_model_repository_index(client_timeout=1)
            served = {model.name for model in index.models if model.state == "READY"}
            wanted = served.union(self._load_models) - {"*"}
            return all(client.is_model_ready(name, client_timeout=1) for name in wanted)

    def _is_ready_by_http(self) -> bool:
        """Where gRPC wants TLS, certificates or a header; ready is that all models are loaded."""
        found = []
        try:
            with closing(HTTPConnection(self.endpoints.http, timeout=1)) as connection:
                for path in ("/v2", "/v2/health/ready"):
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    if answer.status != HTTPStatus.OK:
                        return False
                    found.append(answer.read())
            return bool(json.loads(found[0])["name"] == self._id)
        except (OSError, HTTPException, ValueError, LookupError):
            return False


class _Process:
    """The server's process, and the thread that is its parent and carries its log.

    The kernel ends the server when the thread that started it ends, so that thread must not be
    the caller's.
    """

    def __init__(self, command: Sequence[str], log: Path | None) -> None:
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        started: Future[subprocess.Popen[str]] = Future()
        self._thread = threading.Thread(
            target=self._own, args=(command, log, started), name="tritonserver", daemon=True
        )
        self._thread.start()
        self.popen = started.result()

    def _own(
        self, command: Sequence[str], log: Path | None, started: Future[subprocess.Popen[str]]
    ) -> None:
        with ExitStack() as stack:
            try:
                sink: TextIO = sys.stderr
                if log is not None:
                    sink = stack.enter_context(log.open("a", encoding="utf-8"))
                popen = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    encoding="utf-8",
                    errors="replace",
                )
            except OSError as error:
                started.set_exception(ServerError(f"[serve] {error}"))
                return
            started.set_result(popen)
            assert popen.stdout is not None
            for line in popen.stdout:
                self._tail.append(line)
                # A log that cannot be written any more must not end this thread and the server.
                with suppress(OSError, ValueError):
                    sink.write(line)
                    sink.flush()
            popen.wait()

    def last_words(self) -> str:
        """The errors that the server logged, or the end of its log; not what any CPU has."""
        self._thread.join(timeout=0.5)
        lines = [line for line in self._tail if not any(text in line for text in _WITHOUT_GPU)]
        errors = [line for line in lines if line.startswith(("E", "error", "failed"))]
        return "".join((errors or lines)[-_SHOWN_LINES:]).rstrip()

    def send_signal(self, number: int) -> None:
        """Signals all processes of the group: a wrapper need not pass it on to the server."""
        # The log is open as long as one of them runs.
        if self._thread.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)

    def stop(self, timeout: float) -> int:
        self.send_signal(signal.SIGTERM)
        self._thread.join(timeout)
        self.send_signal(signal.SIGKILL)
        self._thread.join()
        return self.popen.wait()


def _refuse_no_models(repository: Path, *, may_be_empty: bool) -> None:
    """Raises ServerError where Triton would serve nothing, and say it is ready.

    With `may_be_empty`, models may come later.
    """
    from recengine.bundle import MANIFEST, versions

    if (repository / MANIFEST).exists():
        raise ServerError(
            f"[serve] {repository}: expected a model repository, found a bundle; compile it first: "
            f"recengine compile {shlex.quote(str(repository))} --out model_repository"
        )
    if may_be_empty and repository.is_dir():
        return
    models = repository.iterdir() if repository.is_dir() else ()
    if not any((model / "config.pbtxt").exists() or versions(model) for model in models):
        raise ServerError(
            f"[serve] {repository}: expected a model repository, with a directory of each model "
            "that holds config.pbtxt or versions, found none; recengine compile writes one"
        )


def _free_ports(address: str, ports: Sequence[int], arguments: Sequence[str]) -> list[int]:
    """`ports` with a free port in the place of each 0; all are held until all are chosen.

    Raises:
        ServerError: one is taken or cannot be listened on; the message names it. Not those of
            protocols that the server's arguments switch off or let share a port.
    """
    chosen = []
    with ExitStack() as stack:
        for protocol, port in zip(_PROTOCOLS, ports, strict=True):
            if not 0 <= port < 1 << 16:
                raise ServerError(f"[serve] {protocol} port: expected 0 to 65535, found {port}")
            unused = (f"--allow-{protocol}=false", f"--reuse-{protocol}-port=true")
            if port != 0 and any(argument.lower() in unused for argument in arguments):
                chosen.append(port)
                continue
            try:
                held = stack.enter_context(socket.create_server((address, port)))
            except OSError as error:
                raise ServerError(
                    f"[serve] {protocol} port {port} of {address}: expected a free port, found "
                    f"that it cannot be listened on: {error.strerror}"
                ) from None
            chosen.append(held.getsockname()[1])
    return chosen
