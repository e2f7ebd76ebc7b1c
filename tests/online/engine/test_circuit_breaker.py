"""A remote that fails is left alone for a while, and then tried by one call at a time."""

from recsys_batch.online.engine.circuit_breaker import CircuitBreaker
from recsys_batch.online.engine.retry_budget import RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_failures_in_a_row_open_it_and_a_success_between_does_not() -> None:
    breaker = CircuitBreaker(3, 1.0, Clock())
    for failed in (True, True, False, True, True):
        assert breaker.allow()
        breaker.record(failed=failed)
    assert breaker.state == "closed"
    breaker.record(failed=True)
    assert breaker.state == "open"
    assert not breaker.allow()


def test_after_its_rest_one_call_tries_and_decides() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 1.0, clock)
    breaker.record(failed=True)
    clock.now += 1.0
    assert breaker.state == "half_open"
    assert [breaker.allow(), breaker.allow()] == [True, False]
    breaker.record(failed=True)
    assert breaker.state == "open"
    clock.now += 1.0
    assert breaker.allow()
    breaker.record(failed=False)
    assert breaker.state == "closed"
    assert all(breaker.allow() for _ in range(3))


def test_a_trial_that_was_given_up_lets_another_one_go() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1, 1.0, clock)
    breaker.record(failed=True)
    clock.now += 1.0
    assert breaker.allow()
    breaker.abandon()
    assert breaker.allow()


def test_retries_are_a_share_of_the_calls() -> None:
    budget = RetryBudget(0.1)
    retried = 0
    for _ in range(1000):
        budget.earn()
        retried += budget.spend()
    assert 99 <= retried <= 101
    assert not RetryBudget(0.0).spend()
