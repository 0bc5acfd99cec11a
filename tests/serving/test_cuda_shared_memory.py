"""Requests whose tensors lie in CUDA shared memory of a client."""

import tempfile
from pathlib import Path

import grpc
import numpy as np
import pytest
from raw_client import DTYPES, TIMEOUT_S, RawClient, make_request, read_answer
from split_server import compile_stages, place_on_gpu
from tritonclient.grpc import service_pb2

from recengine.serving.server import TritonServer

pytestmark = pytest.mark.cuda

BATCH, COUNT, DIM = 5, 7, 8
INPUTS = {
    "retrieval_lookup": ("ids", "lengths", "dense"),
    "retrieval_topk": ("ids", "lengths", "user"),
    "ranking_lookup": ("ids", "lengths", "dense", "candidates", "candidate_scores"),
    "ranking_order": ("ids", "lengths", "candidates", "candidate_scores", "graph_scores"),
}


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def place(request):
    return request.param


@pytest.fixture(scope="module")
def client(place, golden, tmp_path_factory):
    repository = compile_stages(golden, tmp_path_factory.mktemp("shared") / "repository")
    if place == "cuda":
        place_on_gpu(repository)
    log = tmp_path_factory.mktemp("server") / "log"
    with (
        TritonServer(repository, log=log) as server,
        RawClient(server.endpoints.grpc) as connected,
    ):
        yield connected


@pytest.fixture
def named(users, tensors):
    rng = np.random.default_rng(0)
    arrays = tensors(users.batch(rng, BATCH)) | users.candidates(rng, BATCH, COUNT)
    arrays["user"] = rng.normal(size=(BATCH, DIM)).astype(np.float32)
    arrays["graph_scores"] = rng.normal(size=(BATCH, COUNT)).astype(np.float32)
    return arrays


class Memory:
    """A client's memory on the GPU: here a file, which the server copies; see cuda_emulation."""

    def __init__(self, file):
        self.file = file  # its path is short: handles have 64 bytes

    def register(self, client):
        """For as long as the server runs: it refuses the end while it keeps the last request."""
        register = service_pb2.CudaSharedMemoryRegisterRequest(
            name=str(self.file),
            raw_handle=str(self.file).encode().ljust(64, b"\0"),
            device_id=0,
            byte_size=self.file.stat().st_size,
        )
        client.stub.CudaSharedMemoryRegister(register, timeout=TIMEOUT_S)

    def append(self, content):
        """Returns where it begins."""
        with self.file.open("ab") as file:
            file.write(content)
            return file.tell() - len(content)

    def hold(self, tensor, offset, size):
        """The tensor of a request lies there."""
        tensor.parameters["shared_memory_region"].string_param = str(self.file)
        tensor.parameters["shared_memory_offset"].int64_param = offset
        tensor.parameters["shared_memory_byte_size"].int64_param = size

    def request_of(self, model, named):
        """A request whose inputs lie behind what there is."""
        request = service_pb2.ModelInferRequest(model_name=model)
        for name in INPUTS[model]:
            array = named[name]
            tensor = request.inputs.add(name=name, datatype=DTYPES[str(array.dtype)])
            tensor.shape.extend(array.shape)
            self.hold(tensor, self.append(array.tobytes()), array.nbytes)
        return request


@pytest.fixture
def memory(emulated_gpu):
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        yield Memory(Path(file.name))


@pytest.mark.parametrize("model", INPUTS)
@pytest.mark.parametrize("offset", [0, 2])  # aligned for int64, and for no type
def test_inputs_on_the_gpu_are_answered_as_those_on_the_wire(client, named, memory, model, offset):
    sent = make_request(model, {name: named[name] for name in INPUTS[model]})
    expected = read_answer(client.send(sent).result())
    memory.append(bytes(offset))
    request = memory.request_of(model, named)
    memory.register(client)
    found = read_answer(client.send(request).result())
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_a_stage_on_the_gpu_writes_there_another_request_reads(client, named, memory, place):
    wire = {name: named[name] for name in INPUTS["ranking_order"]}
    best = client.infer("ranking_order", wire, k=COUNT)["item_ids"]
    expected = client.infer(
        "ranking_lookup",
        {name: named[name] for name in INPUTS["ranking_lookup"]} | {"candidates": best},
    )
    order = memory.request_of("ranking_order", named)
    order.parameters["k"].int64_param = COUNT
    begin = memory.append(bytes(best.nbytes))
    memory.hold(order.outputs.add(name="item_ids"), begin, best.nbytes)
    look_up = memory.request_of("ranking_lookup", named)
    memory.hold(look_up.inputs[INPUTS["ranking_lookup"].index("candidates")], begin, best.nbytes)
    memory.register(client)
    if place == "cpu":
        code, message = client.refusal(order)
        assert code == grpc.StatusCode.UNIMPLEMENTED
        assert message == "item_ids: expected a CPU buffer, found GPU memory"
        return
    client.send(order).result()
    found = read_answer(client.send(look_up).result())
    for name in ("sparse", "items", "item_scores"):
        np.testing.assert_array_equal(found[name], expected[name])
