"""When to send a request again, and how long to wait before."""

from __future__ import annotations

import random
import threading
import time

from tritonclient.utils import InferenceServerException

from recengine.client._errors import Failure, Retry, classify
from recengine.errors import DeadlineExceeded, RecengineError

# s, first and longest. A call to a channel that is not connected costs nothing: the channel has
# its own, longer backoff. A server without the model refuses it at little cost, but may do so long.
_WAIT_DELAYS = (0.02, 0.5)
_SHED_DELAYS = (0.01, 0.08)


class RetryBudget:
    """A token bucket over all calls of a client, as gRPC's retry throttling (gRFC A6).

    A shed request takes one token, an answered one gives back `ratio`; shed requests are sent
    again only while more than half the tokens are there. So an overloaded server sees at most
    1 + ratio times the offered load.
    """

    def __init__(self, tokens: float = 10.0, ratio: float = 0.1) -> None:
        self._most = tokens
        self._ratio = ratio
        self._tokens = tokens
        self._lock = threading.Lock()

    def answered(self) -> None:
        """An answer came."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._ratio)

    def shed(self) -> bool:
        """The server shed a request; says whether it may be sent again."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1.0)
            return self._tokens > self._most / 2


class Call:
    """One request of the caller: its deadline and its attempts. No I/O: the transport sleeps."""

    def __init__(self, model: str, timeout: float, retries: int, budget: RetryBudget) -> None:
        self._model = model
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._retries = retries
        self._budget = budget
        self._failed = dict.fromkeys(Retry, 0)
        self._cause: RecengineError | None = None  # why the attempt before this one failed

    def remaining(self) -> float:
        """Seconds until the deadline.

        Raises:
            RecengineError: none are left; what the last attempt failed of, if there was one.
        """
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise self._cause or DeadlineExceeded(
                f"[{self._model}] no answer within {self._timeout} s"
            )
        return seconds

    def answered(self) -> None:
        """An answer came: whatever fails next has another cause."""
        self._cause = None
        self._budget.answered()

    def delay_after(self, error: InferenceServerException) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            RecengineError: the typed error, when the request must not be sent again.
        """
        failure = classify(error.status(), error.message() or "", self._model)
        if self._cause is not None and isinstance(failure.error, DeadlineExceeded):
            raise self._cause from None  # time ran out over what failed before
        delay, left = self._delay(failure), self._deadline - time.monotonic()
        if delay is not None and failure.retry is Retry.WAIT and left > _WAIT_DELAYS[0]:
            delay = min(delay, left / 2)  # up to the deadline
        if delay is None or delay >= left:
            raise failure.error from None
        self._cause = failure.error
        return delay

    def _delay(self, failure: Failure) -> float | None:
        """None when the request must not be sent again."""
        attempt = self._failed[failure.retry]
        self._failed[failure.retry] += 1
        match failure.retry:
            case Retry.WAIT if self._retries:
                return _jittered(_WAIT_DELAYS, attempt)
            case Retry.BUDGET if self._budget.shed() and attempt < self._retries:
                return _jittered(_SHED_DELAYS, attempt)
            case Retry.ONCE if attempt == 0 < self._retries:
                return 0.0
            case _:
                return None


def _jittered(delays: tuple[float, float], attempt: int) -> float:
    first, longest = delays
    return min(first * 2.0 ** min(attempt, 10), longest) * random.uniform(0.5, 1.0)
