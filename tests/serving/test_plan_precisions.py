"""Plans of lower precision on a real server. Run where TensorRT is: pytest -m tensorrt."""

import pytest
from tensorrt_host import GOLDEN_BOUNDS, require_plan_server

from recengine.compile import compile_bundle
from recengine.compile.fidelity import served
from recengine.compile.tensorrt import PlanOptions
from recengine.serving.server import TritonServer


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_what_is_served_is_within_the_bounds_of_its_precision(golden, tmp_path, precision):
    require_plan_server()
    repository = tmp_path / "repository"
    plans, bounds = PlanOptions(precision=precision), GOLDEN_BOUNDS[precision]
    compile_bundle(golden, repository, target="gpu", plans=plans, bounds=bounds)
    with TritonServer(repository, log=tmp_path / "tritonserver.log") as server:
        rows = served(server.endpoints.grpc, repository, bounds)
    assert [row.path for row in rows] == ["served", "served"]
