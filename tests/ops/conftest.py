import pytest
from places import Cpu, Gpu

from recengine import ops

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.fixture(scope="session", params=ops.supported_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=[*ops.supported_isas(), CUDA])
def place(request: pytest.FixtureRequest) -> Cpu | Gpu:
    """Every instruction set, and a GPU."""
    return Gpu() if request.param == "cuda" else Cpu(request.param)


@pytest.fixture(scope="session", params=["cpu", CUDA])
def places(request: pytest.FixtureRequest) -> list[Cpu | Gpu]:
    """The same in one test, where what is right takes longer to find out than an answer."""
    return [Gpu()] if request.param == "cuda" else [Cpu(isa) for isa in ops.supported_isas()]


@pytest.fixture(scope="session", params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> Cpu | Gpu:
    """The CPU, and a GPU."""
    return Gpu() if request.param == "cuda" else Cpu(None)
