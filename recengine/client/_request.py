"""Caller's arguments -> Triton inputs and back: everything the two clients share except I/O."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferInput, InferResult
from tritonclient.utils import InferenceServerException

from recengine.client._errors import classify
from recengine.client._retry import Call, RetryBudget
from recengine.client.answer import Recommendations
from recengine.client.schema import SCHEMA_PARAMETER, Schema
from recengine.client.wire import Exclude, User, WireUsers, pack_users
from recengine.errors import DeadlineExceeded, InputError, ServerError, ServerUnavailable
from recengine.keys import hash_key

Users: TypeAlias = User | Sequence[User] | WireUsers
"""One user, a batch of users, or a batch that is packed already."""
Excludes: TypeAlias = Exclude | Sequence[Exclude]
"""Item ids for one user, or one list per user of a batch."""
Headers: TypeAlias = Mapping[str, str]
ChannelArgs: TypeAlias = Mapping[str, int | str] | Sequence[tuple[str, int | str]]

RETRIEVAL, RANKING = "retrieval", "ranking"

_SCHEMA_MIN_AGE = 1.0  # s; a refused input rereads the schema at most this often
_CHANNEL_ARGS: dict[str, int | str] = {
    # Passing any argument drops tritonclient's own, so its message sizes are repeated here.
    "grpc.max_send_message_length": MAX_GRPC_MESSAGE_SIZE,
    "grpc.max_receive_message_length": MAX_GRPC_MESSAGE_SIZE,
    # gRPC's default first backoff is 1 s: a server that restarts in 0.1 s would be out for one.
    "grpc.initial_reconnect_backoff_ms": 50,
    "grpc.min_reconnect_backoff_ms": 50,
    "grpc.max_reconnect_backoff_ms": 200,
    # A peer that vanished without closing is noticed while calls wait for it.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.keepalive_permit_without_calls": 0,
}


def channel_args(extra: ChannelArgs | None) -> list[tuple[str, int | str]]:
    """The channel's arguments; the caller's win."""
    return list({**_CHANNEL_ARGS, **dict(extra or {})}.items())


@dataclasses.dataclass(frozen=True)
class Served:
    """What a model's config says of its requests."""

    schema: Schema
    max_batch_size: int


@dataclasses.dataclass(frozen=True)
class Request:
    """The inputs and parameters of one inference."""

    inputs: list[InferInput]
    parameters: dict[str, int]


def read_served(config: Any, model: str) -> Served:
    """A ModelConfigResponse -> the schema in it.

    Raises:
        ServerError: the model carries no schema that this client can read.
    """
    parameters = config.config.parameters
    if SCHEMA_PARAMETER not in parameters:
        raise ServerError(f"[{model}] the model's config has no parameter {SCHEMA_PARAMETER!r}")
    try:
        schema = Schema.from_json(parameters[SCHEMA_PARAMETER].string_value)
    except InputError as error:
        raise ServerError(f"[{model}] config parameter {SCHEMA_PARAMETER!r}: {error}") from None
    return Served(schema, config.config.max_batch_size)


def recommend_request(
    served: Served,
    users: Users,
    k: int | None,
    exclude: Excludes | None,
    num_candidates: int | None,
) -> Request:
    """Request of the ensemble, or of one of its models."""
    wire = _pack(served, users, exclude)
    parameters = _parameters(served, k=k, num_candidates=num_candidates)
    if "k" in parameters and num_candidates is None:
        # There must be as many candidates as items are wanted.
        parameters["num_candidates"] = max(parameters["k"], served.schema.num_candidates)
    return Request(_inputs(ids=wire.ids, lengths=wire.lengths, dense=wire.dense), parameters)


def rank_request(
    served: Served, users: Users, candidates: Any, candidate_scores: Any, k: int | None
) -> Request:
    """Request of the ranking model."""
    wire = _pack(served, users, None)
    items = np.atleast_2d(np.asarray(candidates, object if served.schema.hashed_items else None))
    if items.dtype == object:
        keys = [hash_key(key) if isinstance(key, str) else key for key in items.ravel().tolist()]
        items = np.array(keys).reshape(items.shape)
    scores = np.atleast_2d(np.asarray(candidate_scores, np.float32))
    if items.ndim != 2 or items.dtype.kind not in "iu" or len(items) != len(wire.ids):
        raise InputError(
            f"[candidates] expected int64 [{len(wire.ids)}, n], "
            f"found {items.dtype.name} {list(items.shape)}"
        )
    if items.shape[1] > served.schema.max_candidates:
        raise InputError(
            f"[candidates] expected at most {served.schema.max_candidates} per user, "
            f"found {items.shape[1]}"
        )
    if scores.shape != items.shape:
        raise InputError(
            f"[candidate_scores] expected {list(items.shape)} as candidates, "
            f"found {list(scores.shape)}"
        )
    inputs = _inputs(
        ids=wire.ids,
        lengths=wire.lengths,
        dense=wire.dense,
        candidates=items.astype(np.int64),
        candidate_scores=scores,
    )
    return Request(inputs, _parameters(served, k=k))


def decode(result: InferResult, model: str) -> Recommendations:
    """The answer's tensors.

    Raises:
        ServerError: the answer is not what the wire contract says.
    """
    item_ids, scores = result.as_numpy("item_ids"), result.as_numpy("scores")
    if item_ids is None or scores is None or item_ids.shape != scores.shape:
        raise ServerError(f"[{model}] expected outputs item_ids and scores of one shape")
    return Recommendations(item_ids, scores)


def _pack(served: Served, users: Users, exclude: Excludes | None) -> WireUsers:
    if isinstance(users, WireUsers):
        if exclude is not None:
            raise InputError("[exclude] packed users carry their excluded items themselves")
        wire = users
    else:
        one = isinstance(users, Mapping)
        batch: Any = [users] if one else users
        excludes: Any = [exclude] if one and exclude is not None else exclude
        _check_batch(served, len(batch))
        wire = pack_users(served.schema, batch, excludes)
    _check_batch(served, len(wire.ids))
    return wire


def _check_batch(served: Served, batch: int) -> None:
    if batch > served.max_batch_size:
        raise InputError(
            f"[users] expected at most {served.max_batch_size} users per request, found {batch}"
        )


def _parameters(served: Served, **asked: int | None) -> dict[str, int]:
    parameters = {name: value for name, value in asked.items() if value is not None}
    most = served.schema.max_candidates
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise InputError(f"[{name}] expected an integer, found {type(value).__name__}")
        if not 1 <= value <= most:
            raise InputError(f"[{name}] expected 1 to {most}, found {value}")
    return {name: int(value) for name, value in parameters.items()}


def _inputs(**tensors: npt.NDArray[Any] | None) -> list[InferInput]:
    inputs = []
    for name, tensor in tensors.items():
        if tensor is not None:
            kind = {"i8": "INT64", "i4": "INT32", "f4": "FP32"}[tensor.dtype.str[1:]]
            inputs.append(InferInput(name, tensor.shape, kind).set_data_from_numpy(tensor))
    return inputs


class ClientState:
    """What a client keeps between calls; both transports build on it."""

    def __init__(
        self, url: str, model: str, timeout: float, headers: Headers | None, retries: int
    ) -> None:
        if "://" in url:
            raise InputError(f"[url] expected host:port, found {url!r}")
        self.url = url
        self.model = model
        self.timeout = _seconds(timeout)
        self._headers = _lower(headers)
        self._retries = retries
        self._budget = RetryBudget()
        self._served: dict[str, tuple[Served, float]] = {}

    def _call(self, model: str, timeout: float | None) -> Call:
        seconds = self.timeout if timeout is None else _seconds(timeout)
        return Call(model, seconds, self._retries, self._budget)

    def _merged(self, headers: Headers | None) -> dict[str, str]:
        return {**self._headers, **_lower(headers)}

    def _cached(self, model: str) -> Served | None:
        return self._served[model][0] if model in self._served else None

    def _keep(self, model: str, config: Any) -> Served:
        served = read_served(config, model)
        self._served[model] = (served, time.monotonic())
        return served

    def _not_ready(self, error: InferenceServerException) -> Literal[False]:
        """A failed health check: False when nobody is there, else the error is raised."""
        failure = classify(error.status(), error.message() or "", self.model).error
        if isinstance(failure, (ServerUnavailable, DeadlineExceeded)):
            return False
        raise failure from None

    def _may_reread(self, model: str) -> bool:
        return model in self._served and (
            time.monotonic() - self._served[model][1] > _SCHEMA_MIN_AGE
        )


def infer_arguments(request: Request, model: str, headers: Headers, left: float) -> dict[str, Any]:
    """Arguments of tritonclient's infer(); `left`: seconds to the deadline.

    The deadline goes twice: to gRPC, and in microseconds to the server, which sheds by it.
    """
    return {
        "model_name": model,
        "inputs": request.inputs,
        "parameters": request.parameters,
        "headers": headers,
        "client_timeout": left,
        "timeout": max(1, int(left * 1e6)),
    }


def _seconds(timeout: float) -> float:
    if not 0 < timeout < math.inf:
        raise InputError(f"[timeout] expected seconds above 0, found {timeout}")
    return timeout


def _lower(headers: Headers | None) -> dict[str, str]:
    """The names as gRPC takes them: lower case only."""
    return {name.lower(): value for name, value in (headers or {}).items()}
