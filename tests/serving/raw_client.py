"""Requests built field by field, so that tests can send what no client would."""

import threading

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

DTYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}
NUMPY = {name: np.dtype(key) for key, name in DTYPES.items()}
TIMEOUT_S = 20


def add_tensor(request, name, dtype, shape, raw):
    tensor = request.inputs.add(name=name, datatype=dtype)
    tensor.shape.extend(shape)
    request.raw_input_contents.append(raw)


def add_parameter(request, name, value):
    field = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(request.parameters[name], field[type(value)], value)


def make_request(model, tensors, outputs=(), **parameters):
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in tensors.items():
        add_tensor(request, name, DTYPES[str(array.dtype)], array.shape, array.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in parameters.items():
        add_parameter(request, name, value)
    return request


def read_response(response):
    """Output tensors by name, in the order of the response."""
    return {
        tensor.name: np.frombuffer(raw, NUMPY[tensor.datatype]).reshape(tensor.shape)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def read_answer(response):
    """The same without the deadline, which is another for each request."""
    return {name: rows for name, rows in read_response(response).items() if name != "deadline"}


class RawClient:
    """The inference service without tritonclient's checks in front of it."""

    def __init__(self, url):
        self.channel = grpc.insecure_channel(url, [("grpc.initial_reconnect_backoff_ms", 50)])
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.channel.close()

    def send(self, request):
        return self.stub.ModelInfer.future(request, timeout=TIMEOUT_S)

    def infer(self, model, tensors, outputs=(), **parameters):
        request = make_request(model, tensors, outputs, **parameters)
        return read_response(self.stub.ModelInfer(request, timeout=TIMEOUT_S))

    def refusal(self, request):
        """Status and message of a request that must be refused."""
        error = self.send(request).exception()
        assert error is not None, "the request was answered"
        return error.code(), error.details()

    def load(self, model):
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        self.stub.RepositoryModelLoad(request, timeout=TIMEOUT_S)

    def statistics(self, model):
        request = service_pb2.ModelStatisticsRequest(name=model)
        return self.stub.ModelStatistics(request, timeout=TIMEOUT_S).model_stats[0]


class Traffic:
    """Requests from several threads, each one after the other, until they are stopped."""

    def __init__(self, client, request, num_threads=4):
        self.errors, self.answers = [], 0
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(client, request)) for _ in range(num_threads)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client, request):
        while not self._stopping.is_set():
            error = client.send(request).exception()
            if error is None:
                self.answers += 1
            else:
                self.errors.append(error)
