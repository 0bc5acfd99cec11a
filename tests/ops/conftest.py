import pytest

from recengine import ops


@pytest.fixture(scope="session", params=ops.supported_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param
