"""Where our backend places a model, as its instance groups say."""

import re
import shutil

import numpy as np
import pytest
from raw_client import RawClient, make_request, read_response
from split_server import compile_stages, place_on_gpu, replace_backend, serve_split

from recengine import ops
from recengine.compile import compile_bundle
from recengine.compile.split import STAGES
from recengine.errors import ServerError
from recengine.serving.server import TritonServer

pytestmark = pytest.mark.cuda

PINNED, GPU = "1", "2"  # TRITONSERVER_MemoryType


@pytest.fixture
def stages(golden, tmp_path):
    return compile_stages(golden, tmp_path / "model_repository")


def test_every_stage_is_loaded_once_on_the_gpu(stages, tmp_path):
    place_on_gpu(stages)
    for model in STAGES:
        config = stages / model / "config.pbtxt"
        config.write_text(config.read_text().replace("count: 1", "count: 3"))
    with TritonServer(stages, log=tmp_path / "log"):
        pass
    placed = re.findall(r"recengine: (\w+) version 1: .*, on GPU 0", (tmp_path / "log").read_text())
    assert sorted(placed) == sorted(STAGES)


def test_models_of_the_cpu_stay_there(stages, tmp_path):
    with TritonServer(stages, log=tmp_path / "log"):
        pass
    assert "on GPU" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("model", ["retrieval", "ranking"])
def test_a_model_with_its_graphs_is_refused_on_a_gpu(golden_repository, tmp_path, model):
    repository = shutil.copytree(golden_repository, tmp_path / "repository")
    config = repository / model / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_MODEL"))
    with pytest.raises(ServerError, match="instance_group: expected KIND_CPU"):
        TritonServer(repository, log=tmp_path / "log").start()


def test_a_model_that_may_run_anywhere_is_refused_where_the_driver_is_too_old(
    stages, tmp_path, emulated_driver
):
    emulated_driver(12040)
    config = stages / "retrieval_topk" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_MODEL"))
    with pytest.raises(ServerError, match=r"driver: .* found one for CUDA 12\.4"):
        TritonServer(stages, log=tmp_path / "log").start()


def test_a_server_answers_the_same_with_tables_larger_than_its_budget(
    stages, tmp_path, users, tensors
):
    place_on_gpu(stages)
    asked = make_request("retrieval_lookup", tensors(users.batch(np.random.default_rng(0), 7)))
    answers = []
    for arguments in ([], ["--backend-config=recengine,gpu-table-bytes=700"]):
        with (
            TritonServer(stages, arguments=arguments, log=tmp_path / "log") as server,
            RawClient(server.endpoints.grpc) as client,
        ):
            answers.append(read_response(client.send(asked).result())["sparse"])
    np.testing.assert_array_equal(*answers)


def test_batches_up_to_those_of_the_warm_up_take_no_more_memory(
    stages, tmp_path, monkeypatch, users, tensors
):
    """Those that run while others do, too."""
    taken = tmp_path / "taken"
    monkeypatch.setenv("CUDA_EMULATED_ALLOCATIONS", str(taken))
    if not any("emulated" in device for device in ops.cuda_devices()):
        pytest.skip("a real driver does not list what is taken")
    rng = np.random.default_rng(0)
    asked = tensors(users.batch(rng, 32))
    requests = {
        "retrieval_lookup": asked,
        "retrieval_topk": {
            **{name: asked[name] for name in ("ids", "lengths")},
            "user": rng.normal(size=(32, 8)).astype(np.float32),
        },
    }
    place_on_gpu(stages)
    for model in requests:
        config = stages / model / "config.pbtxt"
        config.write_text(config.read_text().replace("count: 1", "count: 3"))
    with (
        TritonServer(stages, log=tmp_path / "log") as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        before = taken.read_text()
        for model, inputs in requests.items():
            sent = [client.send(make_request(model, inputs)) for _ in range(32)]
            assert all(read_response(answer.result()) for answer in sent)
        assert taken.read_text() == before


def test_a_budget_that_is_no_number_is_refused(stages, tmp_path):
    arguments = ["--backend-config=recengine,gpu-table-bytes=much"]
    with pytest.raises(ServerError, match=r"gpu-table-bytes: expected an integer >= 1, found"):
        TritonServer(stages, arguments=arguments, log=tmp_path / "log").start()


def test_what_one_stage_gives_another_stays_on_the_gpu(golden, tmp_path, users, tensors):
    repository = replace_backend(
        compile_bundle(golden, tmp_path / "model_repository", target="onnxruntime")
    )
    asked = make_request("recommend", tensors(users.batch(np.random.default_rng(0), 7)))
    with (
        serve_split(place_on_gpu(repository), tmp_path, arguments=["--log-verbose=1"]) as server,
        RawClient(server.endpoints.grpc) as client,
    ):
        assert read_response(client.send(asked).result())["item_ids"].shape == (7, 10)
    log = (tmp_path / "tritonserver.log").read_text()
    placed = set(re.findall(r"Internal response allocation: (\w+), .* memory type (\d),", log))
    given = {"sparse", "items", "item_scores"}  # to graphs; the others to stages or to the network
    assert {(name, GPU) for name in (*given, "item_ids", "scores")} <= placed
    assert {name for name, memory in placed if memory != GPU} & given == set()
    assert {("item_ids", PINNED), ("scores", PINNED)} <= placed
