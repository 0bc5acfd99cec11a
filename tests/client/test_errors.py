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
CLOSING = "GRPC server is shutting down and has stopped accepting new requests"
STOPPING = "in ensemble 'recommend', Server is stopping, scheduler for model has stopped accepting"
NO_DNS = "errors resolving x:1: [field:hostname lookup error:address lookup failed for x:1]"
BAD_PORT = "errors resolving x:y: [field:hostname lookup error:Failed to parse port in name: x:y]"
HANDSHAKE = "failed to connect to all addresses; Tls handshake failed: SSL_ERROR_SSL: "
DROPPED = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: "


@pytest.mark.parametrize(
    ("status", "message", "kind", "retry"),
    [
        ("UNAVAILABLE", CONNECT, ServerUnavailable, Retry.WAIT),
        ("UNAVAILABLE", "DNS resolution failed for x:1", ServerUnavailable, Retry.WAIT),
        ("UNAVAILABLE", NO_DNS, ServerUnavailable, Retry.WAIT),
        ("UNAVAILABLE", BAD_PORT, InputError, Retry.NEVER),
        ("UNAVAILABLE", SHED, Overloaded, Retry.BUDGET),
        ("UNAVAILABLE", "Exceeds maximum queue size", Overloaded, Retry.BUDGET),
        ("UNAVAILABLE", RESTRICTED, AccessDenied, Retry.NEVER),
        ("UNAVAILABLE", "Request timeout expired", DeadlineExceeded, Retry.NEVER),
        ("UNAVAILABLE", STOPPING, ServerUnavailable, Retry.WAIT),
        ("UNAVAILABLE", CLOSING, ServerUnavailable, Retry.WAIT),
        ("UNAVAILABLE", "Server not ready", ServerUnavailable, Retry.WAIT),
        ("UNAVAILABLE", "Stream removed (Socket closed)", ServerUnavailable, Retry.ONCE),
        ("CANCELLED", "", ServerUnavailable, Retry.ONCE),
        ("INVALID_ARGUMENT", "unexpected shape", InputError, Retry.NEVER),
        ("NOT_FOUND", "Request for unknown model", ServerError, Retry.NEVER),
        ("NOT_FOUND", UNLOADED, ServerUnavailable, Retry.WAIT),
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


@pytest.mark.parametrize(
    ("message", "retry", "hint"),
    [
        (f"{HANDSHAKE}WRONG_VERSION_NUMBER", Retry.NEVER, "this port speaks no TLS"),
        (f"{HANDSHAKE}CERTIFICATE_VERIFY_FAILED", Retry.NEVER, "root_certificates"),
        (f"{DROPPED}Hostname Verification Check failed.", Retry.NEVER, ""),
        (f"{DROPPED}missing selected ALPN property.", Retry.NEVER, "this port speaks HTTP/1"),
        (f"{DROPPED}Failed parsing HTTP/2", Retry.NEVER, "this port speaks HTTP/1"),
        (f"{DROPPED}Socket closed", Retry.WAIT, "is it the gRPC port, and does it want TLS?"),
        (f"{DROPPED}recvmsg:Connection reset by peer", Retry.WAIT, "does it want TLS?"),
    ],
)
def test_a_wrong_protocol_is_hinted_at_and_final_where_that_is_sure(message, retry, hint):
    failure = classify("StatusCode.UNAVAILABLE", message, "recommend")
    assert (type(failure.error), failure.retry) == (ServerUnavailable, retry)
    assert str(failure.error).startswith(f"[recommend] UNAVAILABLE: {message}")
    assert hint in str(failure.error)


def test_a_failure_without_status_is_a_server_error():
    failure = classify(None, "odd", "recommend")
    assert (type(failure.error), failure.retry) == (ServerError, Retry.NEVER)
