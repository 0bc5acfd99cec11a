"""Caller's arguments -> Triton inputs and back: everything the two clients share except I/O."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, InferInput, InferResult
from tritonclient.utils import InferenceServerException

from recengine.client._errors import classify
from recengine.client._retry import Call, RetryBudget
from recengine.client.answer import Recommendations
from recengine.client.schema import SCHEMA_PARAMETER, Schema
from recengine.client.wire import (
    Exclude,
    User,
    WireUsers,
    check_users,
    check_wire,
    hash_strings,
    int64_ids,
    pack_users,
)
from recengine.errors import DeadlineExceeded, InputError, ServerError, ServerUnavailable
from recengine.keys import NO_ITEM

Users: TypeAlias = User | Sequence[User] | WireUsers
"""One user, a batch of users, or a batch that is packed already."""
Excludes: TypeAlias = Exclude | Sequence[Exclude | None]
"""Item ids for one user, or one list, set or None per user of a batch."""
Headers: TypeAlias = Mapping[str, str | bytes]
"""Name -> text, or bytes where the name ends in -bin."""
ChannelArgs: TypeAlias = Mapping[str, int | str] | Sequence[tuple[str, int | str]]

RETRIEVAL, RANKING = "retrieval", "ranking"

_HOST_PORT = re.compile(r"(?:\[[^\s\[\]]+\]|[^\s\[\]:/@]+):([0-9]{1,5})", re.ASCII)
_GRPC_NAME = re.compile("(?:dns|ipv4|ipv6|unix|unix-abstract|vsock|xds):.")
# What gRPC allows in the name of a header, and not in its text.
_HEADER_NAME = re.compile("[a-z0-9_.-]+")
_NOT_IN_HEADER = re.compile("[^ -~]")
_SCHEMA_MIN_AGE = 1.0  # s; a refused input rereads the schema at most this often
_CHANNEL_ARGS: dict[str, int | str] = {
    # Passing any argument drops tritonclient's own, so its message sizes are repeated here.
    "grpc.max_send_message_length": MAX_GRPC_MESSAGE_SIZE,
    "grpc.max_receive_message_length": MAX_GRPC_MESSAGE_SIZE,
    # gRPC's default first backoff is 1 s: a server that restarts in 0.1 s would be out for one.
    "grpc.initial_reconnect_backoff_ms": 50,
    "grpc.max_reconnect_backoff_ms": 200,
    # Not a backoff, whatever its name: how long one attempt may take for TCP, TLS and HTTP/2. Four
    # round trips of 500 ms, or a lost SYN; gRPC's own 20 s would hang on a host that is gone.
    "grpc.min_reconnect_backoff_ms": 3_000,
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
    items = _candidates(served.schema, candidates, len(wire.ids))
    inputs = _inputs(
        ids=wire.ids,
        lengths=wire.lengths,
        dense=wire.dense,
        candidates=items,
        candidate_scores=_candidate_scores(candidate_scores, items),
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
        check_wire(served.schema, users)
        _check_batch(served, len(users.ids))
        return users
    one = isinstance(users, Mapping)
    batch: Any = [users] if one else users
    excludes: Any = [exclude] if one and exclude is not None else exclude
    check_users(batch)
    _check_batch(served, len(batch))
    return pack_users(served.schema, batch, excludes)


def _check_batch(served: Served, batch: int) -> None:
    if batch > served.max_batch_size:
        raise InputError(
            f"[users] expected at most {served.max_batch_size} users per request, found {batch}"
        )


def _candidates(schema: Schema, candidates: Any, batch: int) -> npt.NDArray[np.int64]:
    """Item ids [batch, n]; an array of int64 as it is."""
    items = _matrix("candidates", candidates, None)
    if items.dtype.kind not in "iu":
        # Strings, or what must be named: NumPy may have made floats or text of Python's integers.
        items = _matrix("candidates", candidates, object)
    if items.ndim != 2 or len(items) != batch:
        raise InputError(
            f"[candidates] expected int64 [{batch}, n], "
            f"found {items.dtype.name} {list(items.shape)}"
        )
    if items.shape[1] > schema.max_candidates:
        raise InputError(
            f"[candidates] expected at most {schema.max_candidates} per user, "
            f"found {items.shape[1]}"
        )
    if np.can_cast(items.dtype, np.int64):
        return items.astype(np.int64, copy=False)
    keys = items.ravel().tolist()
    places = (f"[candidates] user {user}" for user in range(batch) for _ in range(items.shape[1]))
    ids = int64_ids(hash_strings(keys) if schema.hashed_items else keys, places)
    return ids.reshape(items.shape)


def _candidate_scores(scores: Any, items: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Scores as float32, finite where there is an item; an array of float32 as it is."""
    array = _matrix("candidate_scores", scores, None)
    if array.shape != items.shape or array.dtype.kind not in "fiu":
        raise InputError(
            f"[candidate_scores] expected float32 {list(items.shape)} as candidates, "
            f"found {array.dtype.name} {list(array.shape)}"
        )
    with np.errstate(over="ignore"):  # what becomes infinite is refused below
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if finite.all():
        return array
    for user, place in np.argwhere(~finite & (items != NO_ITEM)).tolist():
        raise InputError(
            f"[candidate_scores] user {user}, candidate {place}: "
            f"expected a finite float32, found {array[user, place]}"
        )
    return array


def _matrix(name: str, values: Any, dtype: type[object] | None) -> npt.NDArray[Any]:
    """As an array; a list for one user becomes a row."""
    try:
        return np.atleast_2d(np.asarray(values, dtype))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"[{name}] expected rows of one length, found {type(values).__name__}: {error}"
        ) from None


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
        self.url = _address(url)
        self.model = model
        self.timeout = _seconds(timeout)
        self._headers = _lower(headers)
        self._retries = retries
        self._budget = RetryBudget()
        self._served: dict[str, tuple[Served, float]] = {}
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise ServerUnavailable(f"[{self.model}] this client is closed")

    def _call(self, model: str, timeout: float | None) -> Call:
        self._check_open()
        seconds = self.timeout if timeout is None else _seconds(timeout)
        return Call(model, seconds, self._retries, self._budget)

    def _merged(self, headers: Headers | None) -> Headers:
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


def _address(url: Any) -> str:
    """What gRPC dials; without a port that is 443, and a port too large is cut to 16 bits.

    Raises:
        InputError: it is neither host:port nor a name that gRPC resolves by its scheme.
    """
    if isinstance(url, str):
        host_port = _HOST_PORT.fullmatch(url)
        if _GRPC_NAME.match(url) or (host_port and 0 < int(host_port[1]) < 1 << 16):
            return url
    raise InputError(f"[url] expected host:port, found {url!r}")


def check_files(**paths: str | None) -> None:
    """Whether these files of TLS can be read.

    Raises:
        InputError: naming the first that cannot.
    """
    for name, path in paths.items():
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            raise InputError(f"[{name}] {path}: {error.strerror}") from None


def _seconds(timeout: Any) -> float:
    numeric = isinstance(timeout, (int, float, np.integer, np.floating))
    if not numeric or not 0 < timeout < math.inf:
        raise InputError(f"[timeout] expected seconds above 0, found {timeout!r}")
    return float(timeout)


def _lower(headers: Headers | None) -> Headers:
    """The headers as gRPC takes them: names in lower case only.

    Raises:
        InputError: gRPC would refuse one; its value is not shown, as it may be a secret.
    """
    if headers is not None and not isinstance(headers, Mapping):
        raise InputError(f"[headers] expected a mapping, found {type(headers).__name__}")
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name.lower()):
            raise InputError(
                f"[headers] expected a name of letters, digits, '-', '_' and '.', found {name!r}"
            )
        kind = bytes if name.lower().endswith("-bin") else str
        if not isinstance(value, kind):
            raise InputError(
                f"[headers] {name!r}: expected {kind.__name__}, found {type(value).__name__}"
            )
        wrong = _NOT_IN_HEADER.search(value) if isinstance(value, str) else None
        if wrong:
            raise InputError(f"[headers] {name!r}: expected printable ASCII, found {wrong[0]!r}")
    return {name.lower(): value for name, value in (headers or {}).items()}
