"""The exceptions that recengine raises on purpose; the C++ core throws the same names.

RecengineError
├── InputError      what the caller passed is not what the operation takes
├── BundleError     a bundle or version directory is missing, damaged, or of another version
│   └── UnknownFormat       of a format version that this recengine does not read
├── CompileError    a graph could not be compiled, or the fidelity gate refused the result
├── DeviceError     the device or instruction set asked for is not there, or failed
└── ServerError     the server did not answer as asked
    ├── ServerUnavailable   nothing reached the engine: not connected, or shutting down
    ├── Overloaded          the server shed the request; it did no work
    ├── DeadlineExceeded    no answer within the deadline
    └── AccessDenied        the server wants a credential that was not sent
"""

from __future__ import annotations


class RecengineError(Exception):
    """Root of the tree."""


class InputError(RecengineError, ValueError):
    """What the caller passed is not what the operation takes."""


class BundleError(RecengineError):
    """A bundle or a version directory is missing, damaged, or of another format version."""


class UnknownFormat(BundleError):
    """A bundle or version directory is of a format version that this recengine does not read."""


class CompileError(RecengineError):
    """A graph could not be compiled, or the fidelity gate refused the result."""


class DeviceError(RecengineError):
    """The device or instruction set asked for is not there, or failed."""


class ServerError(RecengineError):
    """The server did not answer as asked."""


class ServerUnavailable(ServerError):
    """Nothing reached the engine: the server is not connected, not ready, or shutting down."""


class Overloaded(ServerError):
    """The server shed the request before doing any work on it."""


class DeadlineExceeded(ServerError):
    """No answer came within the deadline."""


class AccessDenied(ServerError):
    """The server wants a credential that was not sent."""
