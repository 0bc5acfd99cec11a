"""Plans of lower precision on a real server. Run where TensorRT is: pytest -m tensorrt."""

import pytest
from tensorrt_host import require_plan_server

from recengine.compile import compile_bundle
from recengine.compile.fidelity import served
from recengine.compile.lowering import BOUNDS
from recengine.compile.tensorrt import PlanOptions
from recengine.serving.server import TritonServer


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_served_is_within_the_bounds_of_its_precision(golden, tmp_path, precision):
    require_plan_server()
    repository = compile_bundle(
        golden, tmp_path / "repository", target="gpu", plans=PlanOptions(precision=precision)
    )
    with TritonServer(repository, log=tmp_path / "tritonserver.log") as server:
        rows = served(server.endpoints.grpc, repository, BOUNDS[precision])
    assert [row.path for row in rows] == ["served", "served"]
