"""gRPC status and message -> typed error, and whether the request may be sent again.

Triton answers UNAVAILABLE for four things, and NOT_FOUND for a model that it does not know
and for one that it has unloaded: the message decides. All requests are reads: sending one
twice is safe, the question is only whether it helps or hurts the server.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from recengine.errors import (
    AccessDenied,
    DeadlineExceeded,
    InputError,
    Overloaded,
    RecengineError,
    ServerError,
    ServerUnavailable,
)

SHED_TOKEN = "recengine: shed"
"""What the backend's message carries when it sheds a request."""


class Retry(enum.Enum):
    """When a failed request may be sent again; the deadline bounds all of them."""

    NEVER = enum.auto()
    RECONNECT = enum.auto()  # it never reached the server
    BUDGET = enum.auto()  # the server is overloaded: only while few requests fail
    ONCE = enum.auto()  # the connection broke under it


class Failure(NamedTuple):
    """The error to raise, and when to try again instead."""

    error: RecengineError
    retry: Retry


_BY_MESSAGE = {
    "UNAVAILABLE": (
        ("This protocol is restricted", AccessDenied, Retry.NEVER),
        (SHED_TOKEN, Overloaded, Retry.BUDGET),
        ("Exceeds maximum queue size", Overloaded, Retry.BUDGET),
        ("Request timeout expired", DeadlineExceeded, Retry.NEVER),
        ("failed to connect", ServerUnavailable, Retry.RECONNECT),
        ("DNS resolution failed", ServerUnavailable, Retry.RECONNECT),
    ),
    "NOT_FOUND": (("has no available versions", ServerUnavailable, Retry.ONCE),),
}

_BY_STATUS: dict[str, tuple[type[RecengineError], Retry]] = {
    "INVALID_ARGUMENT": (InputError, Retry.NEVER),
    "NOT_FOUND": (ServerError, Retry.NEVER),
    "DEADLINE_EXCEEDED": (DeadlineExceeded, Retry.NEVER),
    "PERMISSION_DENIED": (AccessDenied, Retry.NEVER),
    "UNAUTHENTICATED": (AccessDenied, Retry.NEVER),
    "UNAVAILABLE": (ServerUnavailable, Retry.ONCE),
    "CANCELLED": (ServerUnavailable, Retry.ONCE),
}


def classify(status: str | None, message: str, model: str) -> Failure:
    """What a failed call means.

    Args:
        status: the gRPC status as tritonclient writes it, "StatusCode.UNAVAILABLE".
        message: the status message.
        model: the model that was called.
    """
    code = (status or "UNKNOWN").rpartition(".")[2]
    kind, retry = _BY_STATUS.get(code, (ServerError, Retry.NEVER))
    for token, token_kind, token_retry in _BY_MESSAGE.get(code, ()):
        if token.lower() in message.lower():
            kind, retry = token_kind, token_retry
            break
    return Failure(kind(f"[{model}] {code}: {message}"), retry)
