import pytest

from recengine.client._errors import Retry, classify
from recengine.errors import (
    AccessDenied,
    DeadlineExceeded,
    InputError,
    Overloaded,
    ServerError,
    ServerUnavailable,
)

CONNECT = "failed to connect to all addresses; last error: UNKNOWN: Connection refused"
RESTRICTED = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"
SHED = "in ensemble 'recommend', recengine: shed: the deadline cannot be met"
UNLOADED = "Request for unknown model: 'recommend' has no available versions"
STOPPING = "GRPC server is shutting down and has stopped accepting new requests"


@pytest.mark.parametrize(
    ("status", "message", "kind", "retry"),
    [
        ("UNAVAILABLE", CONNECT, ServerUnavailable, Retry.RECONNECT),
        ("UNAVAILABLE", "DNS resolution failed for x:1", ServerUnavailable, Retry.RECONNECT),
        ("UNAVAILABLE", SHED, Overloaded, Retry.BUDGET),
        ("UNAVAILABLE", "Exceeds maximum queue size", Overloaded, Retry.BUDGET),
        ("UNAVAILABLE", RESTRICTED, AccessDenied, Retry.NEVER),
        ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded, Retry.NEVER),
        ("UNAVAILABLE", STOPPING, ServerUnavailable, Retry.ONCE),
        ("UNAVAILABLE", "Stream removed (Socket closed)", ServerUnavailable, Retry.ONCE),
        ("CANCELLED", "", ServerUnavailable, Retry.ONCE),
        ("INVALID_ARGUMENT", "unexpected shape", InputError, Retry.NEVER),
        ("NOT_FOUND", "Request for unknown model", ServerError, Retry.NEVER),
        ("NOT_FOUND", UNLOADED, ServerUnavailable, Retry.ONCE),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded, Retry.NEVER),
        ("UNAUTHENTICATED", "no token", AccessDenied, Retry.NEVER),
        ("PERMISSION_DENIED", "not you", AccessDenied, Retry.NEVER),
        ("INTERNAL", "broken", ServerError, Retry.NEVER),
        ("RESOURCE_EXHAUSTED", "message too large", ServerError, Retry.NEVER),
    ],
)
def test_status_and_message_decide_error_and_retry(status, message, kind, retry):
    failure = classify(f"StatusCode.{status}", message, "recommend")
    assert (type(failure.error), failure.retry) == (kind, retry)
    assert str(failure.error) == f"[recommend] {status}: {message}"


def test_a_failure_without_status_is_a_server_error():
    failure = classify(None, "odd", "recommend")
    assert (type(failure.error), failure.retry) == (ServerError, Retry.NEVER)
