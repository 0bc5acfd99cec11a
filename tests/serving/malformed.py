"""Requests that no client would send, and what is watched while a server gets many of them."""

import collections
import itertools
import random
import threading
import time
from pathlib import Path

import grpc
from raw_client import add_parameter, add_tensor, make_request
from tritonclient.grpc import service_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
USER_TENSORS = ("ids", "lengths", "dense")
WRONG_DTYPES = ("FP64", "INT16", "UINT8", "BYTES", "BOOL", "FP16", "", "INT128")
EXTREME_DIMS = (-(2**63), -2, -1, 0, 1, 2**31 - 1, 2**31, 2**32, 2**61, 2**63 - 1)

CLEAR = {
    grpc.StatusCode.OK,
    INVALID,
    grpc.StatusCode.UNAVAILABLE,  # shed: the request set a timeout that cannot be met
    grpc.StatusCode.UNIMPLEMENTED,  # the server's word for a sequence id that is too long
}


def replaced(model, tensors, name, dtype=None, shape=None, raw=None):
    """The request with one tensor described otherwise than it is."""
    request = make_request(model, tensors)
    position = list(tensors).index(name)
    if dtype is not None:
        request.inputs[position].datatype = dtype
    if shape is not None:
        request.inputs[position].shape[:] = shape
    if raw is not None:
        request.raw_input_contents[position] = raw
    return request


def assert_refused(client, request):
    code, message = client.refusal(request)
    assert code == INVALID
    assert message


def assert_wrong_dtypes_are_refused(client, model, tensors, name):
    for dtype in WRONG_DTYPES:
        assert_refused(client, replaced(model, tensors, name, dtype=dtype))


def assert_wrong_ranks_are_refused(client, model, tensors, name):
    batch, size = len(tensors[name]), tensors[name].size
    for shape in ([], [batch], [size], [batch, size // batch, 1], [1] * 40 + [size]):
        assert_refused(client, replaced(model, tensors, name, shape=shape))


def assert_extreme_shapes_are_refused(client, model, tensors, name, any_batch=False):
    """With and without the tensor's bytes; the tensors are those of one user."""
    honest = list(tensors[name].shape)
    for shape in itertools.product(EXTREME_DIMS, repeat=2):
        for raw in (tensors[name].tobytes(), b""):
            error = client.send(replaced(model, tensors, name, shape=shape, raw=raw)).exception()
            if error is None:  # nothing but padding is in ids, or no candidate is sent
                good = list(shape) == honest or shape in ((1, 0), (1, len(raw) // 8))
                assert good or (any_batch and list(shape[1:]) == honest[1:]), shape
            else:
                assert error.code() == INVALID, (shape, error)
    client.infer(model, tensors)


class Mutator:
    """Turns good requests into random ones; most are malformed, some happen to be fine."""

    DTYPES = ("INT64", "INT32", "FP32", "FP64", "INT8", "UINT64", "BYTES", "BOOL", "FP16", "", "X")
    NAMES = (*USER_TENSORS, "candidates", "candidate_scores", "deadline", "item_ids")
    NAMES += ("", "\u4e2d", "x" * 300)
    VALUES = (0, -1, 1, 65, 2**63 - 1, -(2**63), 1.5, float("nan"), True, "", "7", "x" * 1000)
    PARAMETERS = ("k", "num_candidates", "timeout", "priority", "unknown", "sequence_id")

    def __init__(self, seed, good):
        self.random = random.Random(seed)
        self.good = good
        self.steps = (
            self.change_shape,
            self.change_bytes,
            self.flip_bits,
            self.change_dtype,
            self.rename,
            self.drop_tensor,
            self.repeat_tensor,
            self.move_bytes,
            self.set_parameter,
            self.ask_for_output,
            self.use_typed_contents,
        )

    def request(self):
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(self.random.choice(self.good))
        for step in self.random.choices(self.steps, k=self.random.randint(1, 3)):
            step(request)
        return request

    def tensor(self, request):
        return self.random.choice(request.inputs) if request.inputs else None

    def change_shape(self, request):
        if tensor := self.tensor(request):
            rank = self.random.choice((0, 1, 2, 2, 2, 3))
            dims = EXTREME_DIMS + tuple(range(6))
            tensor.shape[:] = self.random.choices(dims, k=rank)

    def change_bytes(self, request):
        if request.raw_input_contents:
            size = self.random.choice((0, 1, 4, 8, 63, 64, 1000))
            self.put(request, self.random.randbytes(size))

    def flip_bits(self, request):
        if request.raw_input_contents:
            raw = bytearray(self.random.choice(request.raw_input_contents))
            for _ in range(min(len(raw), 4)):
                raw[self.random.randrange(len(raw))] ^= 1 << self.random.randrange(8)
            self.put(request, bytes(raw))

    def put(self, request, raw):
        request.raw_input_contents[self.random.randrange(len(request.raw_input_contents))] = raw

    def change_dtype(self, request):
        if tensor := self.tensor(request):
            tensor.datatype = self.random.choice(self.DTYPES)

    def rename(self, request):
        if tensor := self.tensor(request):
            tensor.name = self.random.choice(self.NAMES)

    def drop_tensor(self, request):
        if request.inputs:
            del request.inputs[self.random.randrange(len(request.inputs))]
            if self.random.random() < 0.5 and request.raw_input_contents:
                del request.raw_input_contents[-1]

    def repeat_tensor(self, request):
        if request.inputs and request.raw_input_contents:
            add_tensor(
                request,
                self.random.choice(self.NAMES),
                self.random.choice(self.DTYPES),
                self.random.choices(range(4), k=2),
                request.raw_input_contents[0],
            )

    def move_bytes(self, request):
        raw = list(request.raw_input_contents)
        self.random.shuffle(raw)
        del request.raw_input_contents[:]
        request.raw_input_contents.extend(raw[: self.random.randint(0, len(raw))])

    def set_parameter(self, request):
        add_parameter(request, self.random.choice(self.PARAMETERS), self.random.choice(self.VALUES))

    def ask_for_output(self, request):
        request.outputs.add(name=self.random.choice(("scores", "item_ids", "user", "")))

    def use_typed_contents(self, request):
        if tensor := self.tensor(request):
            tensor.contents.int64_contents.extend(self.random.choices(EXTREME_DIMS, k=3))
            tensor.contents.fp32_contents.extend([float("nan"), 1.0])
            if self.random.random() < 0.7:
                del request.raw_input_contents[:]


class Flood:
    """Keeps many requests in flight and notes how each ended and how long it took."""

    def __init__(self, client, in_flight):
        self.codes = collections.Counter()
        self.messages = collections.Counter()
        self.slowest_s = 0.0
        self._client = client
        self._room = threading.Semaphore(in_flight)
        self._in_flight = in_flight

    def send(self, request):
        self._room.acquire()
        begin = time.monotonic()
        self._client.send(request).add_done_callback(lambda future: self._end(future, begin))

    def _end(self, future, begin):
        self.slowest_s = max(self.slowest_s, time.monotonic() - begin)
        code = future.code()
        self.codes[code] += 1
        if code is not grpc.StatusCode.OK and not future.details():
            self.messages["empty"] += 1
        self._room.release()

    def wait(self):
        for _ in range(self._in_flight):
            self._room.acquire()
        self._room.release(self._in_flight)


def resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def allowed_growth_mib(pid):
    """AddressSanitizer keeps freed memory for a while."""
    sanitized = "libasan" in Path(f"/proc/{pid}/maps").read_text()
    return 256 if sanitized else 8
