"""gRPC status and message -> typed error, and whether the request may be sent again.

Triton answers UNAVAILABLE for four things, and NOT_FOUND for a model that it does not know
and for one that it has unloaded, as a server that stops does first; gRPC says UNAVAILABLE for
all that keeps it from connecting: the message decides. All requests are reads: sending one
twice is safe, the question is only whether it helps or hurts the server.
"""

from __future__ import annotations

import enum
import re
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
    WAIT = enum.auto()  # no server with the model is there, yet or any more
    BUDGET = enum.auto()  # the server is overloaded: only while few requests fail
    ONCE = enum.auto()  # the connection broke under it


class Failure(NamedTuple):
    """The error to raise, and when to try again instead."""

    error: RecengineError
    retry: Retry


class _Meaning(NamedTuple):
    """What a message that has `pattern` in it means; the first that fits counts."""

    pattern: str
    kind: type[RecengineError]
    retry: Retry
    hint: str = ""


_NOT_GRPC = "this port speaks HTTP/1, not gRPC"
_BY_MESSAGE = {
    "UNAVAILABLE": (
        _Meaning("This protocol is restricted", AccessDenied, Retry.NEVER),
        _Meaning(SHED_TOKEN, Overloaded, Retry.BUDGET),
        _Meaning("Exceeds maximum queue size", Overloaded, Retry.BUDGET),
        _Meaning("Request timeout expired", DeadlineExceeded, Retry.NEVER),
        _Meaning("server (is shutting down|is stopping|not ready)", ServerUnavailable, Retry.WAIT),
        _Meaning("Failed to parse port", InputError, Retry.NEVER),
        # The words differ by gRPC's version.
        _Meaning("errors resolving|DNS resolution failed", ServerUnavailable, Retry.WAIT),
        _Meaning(
            "WRONG_VERSION_NUMBER",
            ServerUnavailable,
            Retry.NEVER,
            "this port speaks no TLS: connect without ssl and creds",
        ),
        _Meaning(
            "CERTIFICATE_VERIFY_FAILED",
            ServerUnavailable,
            Retry.NEVER,
            "root_certificates do not vouch for the server's certificate",
        ),
        _Meaning("Hostname Verification", ServerUnavailable, Retry.NEVER),
        _Meaning("Failed parsing HTTP/2|missing .*ALPN", ServerUnavailable, Retry.NEVER, _NOT_GRPC),
        # A proxy without a server behind it does so too.
        _Meaning(
            "failed to connect.*(Socket closed|reset by peer)",
            ServerUnavailable,
            Retry.WAIT,
            "the port takes connections and drops them: is it the gRPC port, and does it want TLS?",
        ),
        _Meaning("failed to connect", ServerUnavailable, Retry.WAIT),
    ),
    "NOT_FOUND": (_Meaning("has no available versions", ServerUnavailable, Retry.WAIT),),
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
    hint = ""
    for meaning in _BY_MESSAGE.get(code, ()):
        if re.search(meaning.pattern, message, re.IGNORECASE):
            _, kind, retry, hint = meaning
            break
    return Failure(kind(f"[{model}] {code}: {message}" + (hint and f"; {hint}")), retry)
