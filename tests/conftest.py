"""What tests of several parts share: the golden bundle, compiled and served once per run."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from recengine import ops

# A busy machine is slow, not wrong.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any")
# For builds that are many times slower: --hypothesis-profile=few
settings.register_profile("few", settings.get_profile("any"), max_examples=50)

_SELF_SIGNED = [
    *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
    *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
]


def pytest_runtest_setup(item):
    """Tests that are marked `cuda` need a GPU, real or emulated (make test-cuda-emulated)."""
    if item.get_closest_marker("cuda") is None:
        return
    if not ops.cuda_built():
        pytest.skip("this build has no CUDA parts")
    if not ops.cuda_devices():
        pytest.skip("there is no GPU")


@pytest.fixture
def emulated_gpu():
    """For tests of what a real GPU and its driver cannot be told."""
    if not any("emulated" in device for device in ops.cuda_devices()):
        pytest.skip("needs the emulated GPU")


@pytest.fixture
def emulated_driver(monkeypatch, emulated_gpu):
    """Sets the CUDA version of the emulated driver, 1000 * major + 10 * minor."""
    return lambda version: monkeypatch.setenv("CUDA_EMULATED_DRIVER", str(version))


@pytest.fixture(scope="session")
def golden():
    """The committed bundle of the current format version."""
    return Path(__file__).parent / "golden" / "v1"


@pytest.fixture(scope="session")
def golden_repository(golden, tmp_path_factory):
    """The golden bundle as a model repository; do not change it."""
    from recengine.compile import compile_bundle

    return compile_bundle(golden, tmp_path_factory.mktemp("golden") / "model_repository")


@pytest.fixture(scope="session")
def golden_server(golden_repository, tmp_path_factory):
    """A running server over the golden repository; do not stop it."""
    from recengine.serving.server import TritonServer

    log = tmp_path_factory.mktemp("server") / "tritonserver.log"
    with TritonServer(golden_repository, log=log) as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A folder with cert.pem, a self-signed certificate for 127.0.0.1, and its key.pem."""
    folder = tmp_path_factory.mktemp("tls")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    subprocess.run(
        [openssl, *_SELF_SIGNED, "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="session")
def grpc_tls(certificate):
    """Arguments of a server that takes gRPC with TLS alone."""
    return [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificate / 'cert.pem'}",
        f"--grpc-server-key={certificate / 'key.pem'}",
    ]
