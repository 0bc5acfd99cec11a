"""Open-loop load: requests arrive as they please, whether or not the server keeps up.

Latency counts from the moment a request was due, so a slow server cannot hide behind a slow
generator. Requests are serialised before the clock starts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb

from recengine.client._errors import SHED_TOKEN
from recengine.serving.bench.requests import Request

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_GIVE_UP_S = 30.0

Outcome = Literal["ok", "shed", "failed"]


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What came of each request, in order of arrival.

    Attributes:
        due_s: when it was due, seconds from the start.
        latency_ms: from then to its answer.
        outcome: "ok", "shed" (the server refused it) or "failed" (anything else).
        first_failure: what the first failed one was told, or an empty text.
        seconds: from the start to the last answer.
        cpu_s: CPU time that generating the load took.
    """

    due_s: npt.NDArray[np.float64]
    latency_ms: npt.NDArray[np.float64]
    outcome: npt.NDArray[np.str_]
    first_failure: str
    seconds: float
    cpu_s: float

    def latencies_ms(self, outcome: Outcome) -> npt.NDArray[np.float64]:
        """Latencies of the requests that ended so."""
        return np.asarray(self.latency_ms[self.outcome == outcome])


def serialize(model: str, requests: Sequence[Request], deadline_ms: float | None) -> list[bytes]:
    """Requests as gRPC messages; the deadline travels as Triton's request timeout."""
    messages = []
    for request in requests:
        message = pb.ModelInferRequest(model_name=model)
        if deadline_ms is not None:
            message.parameters["timeout"].int64_param = int(deadline_ms * 1000)
        for name, kind, array in request.tensors():
            message.inputs.add(name=name, datatype=kind, shape=[1, *array.shape])
            message.raw_input_contents.append(array.tobytes())
        messages.append(message.SerializeToString())
    return messages


def poisson_arrivals(rate: float, seconds: float, seed: int = 0) -> npt.NDArray[np.float64]:
    """Arrival times in [0, seconds) of a Poisson process of `rate` per second."""
    rng = np.random.default_rng(seed)
    count = int(rate * seconds + 6 * (rate * seconds) ** 0.5 + 10)
    times = np.cumsum(rng.exponential(1 / rate, count))
    return times[times < seconds]


@contextmanager
def without_collections() -> Iterator[None]:
    """Inside, no garbage is collected: that would hold up the clock of what is answered meanwhile.

    Over the thousands of calls of a burst one takes tens of milliseconds.
    """
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def send(url: str, messages: Sequence[bytes], due_s: npt.NDArray[np.float64]) -> Answers:
    """Sends message i % len(messages) when `due_s[i]` has come; waits for every answer."""
    return asyncio.run(_send(url, messages, due_s))


def send_one_by_one(url: str, messages: Sequence[bytes]) -> Answers:
    """Each message when the one before it was answered; each is due when it is sent."""
    with grpc.insecure_channel(url) as channel:
        call = channel.unary_unary(_METHOD)
        recorder = _Recorder(np.zeros(len(messages)))
        for i, message in enumerate(messages):
            recorder.due_s[i] = recorder.now()
            try:
                call(message, timeout=_GIVE_UP_S)
                recorder.note(i, "ok")
            except grpc.RpcError as error:
                recorder.refused(i, error.details() or str(error))
    return recorder.answers()


async def _send(url: str, messages: Sequence[bytes], due_s: npt.NDArray[np.float64]) -> Answers:
    async with grpc.aio.insecure_channel(url) as channel:
        call = channel.unary_unary(_METHOD)
        await channel.channel_ready()
        recorder = _Recorder(due_s)

        async def ask(i: int) -> None:
            try:
                await call(messages[i % len(messages)], timeout=_GIVE_UP_S)
                recorder.note(i, "ok")
            except grpc.aio.AioRpcError as error:
                recorder.refused(i, error.details() or str(error))

        tasks = []
        for i, due in enumerate(due_s):
            # Also when late: what was answered meanwhile must be read.
            await asyncio.sleep(max(0.0, due - recorder.now()))
            tasks.append(asyncio.ensure_future(ask(i)))
        await asyncio.gather(*tasks)
    return recorder.answers()


class _Recorder:
    """The clock of one run and what came of each request."""

    def __init__(self, due_s: npt.NDArray[np.float64]) -> None:
        self.due_s = due_s.copy()
        self._latency_ms = np.zeros(len(due_s))
        self._outcome = np.full(len(due_s), "failed", dtype="<U6")
        self._failure = ""
        self._cpu_start = time.process_time()
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start

    def note(self, i: int, outcome: Outcome) -> None:
        self._latency_ms[i] = (self.now() - self.due_s[i]) * 1e3
        self._outcome[i] = outcome

    def refused(self, i: int, message: str) -> None:
        self.note(i, "shed" if SHED_TOKEN in message else "failed")
        if SHED_TOKEN not in message:
            self._failure = self._failure or message

    def answers(self) -> Answers:
        seconds, cpu_s = self.now(), time.process_time() - self._cpu_start
        return Answers(self.due_s, self._latency_ms, self._outcome, self._failure, seconds, cpu_s)
