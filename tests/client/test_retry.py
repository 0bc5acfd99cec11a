import time

import pytest
from tritonclient.utils import InferenceServerException

from recengine.client._retry import Call, RetryBudget
from recengine.errors import DeadlineExceeded, InputError, Overloaded, ServerUnavailable


def failure(status, message=""):
    return InferenceServerException(message, f"StatusCode.{status}")


SHED = failure("UNAVAILABLE", "recengine: shed")
REFUSED = failure("UNAVAILABLE", "failed to connect to all addresses")
UNLOADED = failure("NOT_FOUND", "unknown model: 'recommend' has no available versions")
BROKEN = failure("UNAVAILABLE", "Socket closed")


def call(budget=None, timeout=60.0, retries=10):
    return Call("recommend", timeout, retries, budget or RetryBudget())


def test_a_budget_stops_retries_when_most_requests_are_shed():
    budget = RetryBudget(tokens=10, ratio=0.1)
    assert [budget.shed() for _ in range(20)] == [True] * 4 + [False] * 16
    for _ in range(60):
        budget.answered()
    assert budget.shed() is False  # 6 tokens, of which the shed request took one
    budget.answered()
    for _ in range(10):
        budget.answered()
    assert budget.shed() is True


def test_steady_overload_adds_at_most_a_tenth_of_retries():
    budget, retries = RetryBudget(tokens=10, ratio=0.1), 0
    for _ in range(10_000):  # one answer for each shed request
        budget.answered()
        retries += budget.shed()
    assert retries <= 0.1 * 10_000 + 10


def test_a_budget_never_holds_more_than_its_tokens():
    budget = RetryBudget(tokens=2, ratio=1)
    for _ in range(100):
        budget.answered()
    assert [budget.shed(), budget.shed()] == [False, False]


def test_a_shed_request_is_sent_again_after_a_short_wait_until_the_budget_is_spent():
    one = call(RetryBudget(tokens=10))
    delays = [one.delay_after(SHED) for _ in range(4)]
    assert all(0.005 <= delay <= 0.08 for delay in delays)
    with pytest.raises(Overloaded, match="recengine: shed"):
        one.delay_after(SHED)


def test_a_request_is_shed_again_at_most_as_often_as_asked():
    one = call(RetryBudget(tokens=100), retries=2)
    one.delay_after(SHED)
    one.delay_after(SHED)
    with pytest.raises(Overloaded):
        one.delay_after(SHED)


@pytest.mark.parametrize("error", [REFUSED, UNLOADED])
def test_a_request_that_found_no_server_is_tried_until_the_deadline(error):
    one = call(retries=1)
    delays = [one.delay_after(error) for _ in range(100)]
    assert 0.01 <= delays[0] <= 0.02
    assert all(0.25 <= delay <= 0.5 for delay in delays[5:])


def test_a_broken_connection_is_retried_once():
    one = call()
    assert one.delay_after(BROKEN) == 0
    with pytest.raises(ServerUnavailable, match="Socket closed"):
        one.delay_after(BROKEN)


def test_a_refused_input_is_never_sent_again():
    with pytest.raises(InputError):
        call().delay_after(failure("INVALID_ARGUMENT", "unexpected shape"))


def test_no_retries_means_none():
    with pytest.raises(ServerUnavailable):
        call(retries=0).delay_after(REFUSED)


def test_a_retry_that_would_miss_the_deadline_is_not_made():
    with pytest.raises(ServerUnavailable, match="failed to connect"):
        call(timeout=0.01).delay_after(REFUSED)


def test_after_the_deadline_nothing_is_sent():
    one = call(timeout=0.001)
    time.sleep(0.002)
    with pytest.raises(DeadlineExceeded, match=r"no answer within 0.001 s"):
        one.remaining()


def test_what_failed_before_an_answer_is_not_why_time_ran_out():
    one = call(timeout=0.05)
    one.delay_after(REFUSED)
    one.answered()
    time.sleep(0.06)
    with pytest.raises(DeadlineExceeded, match="no answer within"):
        one.remaining()
