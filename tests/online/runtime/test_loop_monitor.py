"""A loop goes on whatever its rounds raise."""

import asyncio
import logging
from typing import Any

import pytest

from recsys_batch.online.runtime import loop_monitor
from recsys_batch.online.runtime.loop_monitor import LoopMonitor, failed_rounds


@pytest.fixture(autouse=True)
def none_failed() -> None:
    failed_rounds.clear()


def test_a_loop_goes_on_after_any_error_and_counts_it(caplog: Any) -> None:
    errors: list[Exception | None] = [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), RuntimeError("two\nlines"), KeyError(1), None]

    async def scenario() -> LoopMonitor:
        looks, ended = LoopMonitor("looking"), asyncio.Event()

        async def look() -> None:
            if not errors:
                ended.set()
            elif (error := errors.pop(0)) is not None:
                raise error

        task = asyncio.create_task(looks.repeat(look, 0.001))
        await asyncio.wait_for(ended.wait(), 10)
        task.cancel()
        return looks

    looks = asyncio.run(scenario())
    assert failed_rounds == {"looking": 3} and looks.failure is None
    assert "looking works again, after 3 failed rounds" in caplog.text


def test_the_same_error_is_logged_once_and_later_with_its_number(caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = LoopMonitor("looking")

    def fail(number: int) -> None:
        with looks.round():
            raise OSError(f"try {number}")

    for number in range(50):
        fail(number)
    assert [record.getMessage() for record in caplog.records] == ["looking failed, and is done again: OSError: try 0"]
    assert (looks.failure, failed_rounds["looking"]) == ("OSError: try 49", 50)
    monkeypatch.setattr(loop_monitor, "_LOG_AGAIN_SECONDS", 0.0)
    fail(50)
    assert caplog.records[-1].getMessage() == "looking failed 50 more times: OSError: try 50"


def test_one_that_fails_every_other_time_does_not_fill_the_log(caplog: Any) -> None:
    looks = LoopMonitor("looking")
    for number in range(40):
        with looks.round():
            if number % 2 == 0:
                raise OSError("now and then")
    assert len(caplog.records) == 2 and failed_rounds["looking"] == 20


def test_what_is_not_expected_is_logged_with_its_stack(caplog: Any) -> None:
    with LoopMonitor("looking").round():
        raise ZeroDivisionError("a bug")
    assert [record.levelno for record in caplog.records] == [logging.ERROR] and "Traceback" in caplog.text


def test_the_time_of_a_look_moves_with_failed_rounds_and_stands_without_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(loop_monitor.time, "monotonic", lambda: now[0])
    looks = LoopMonitor("looking")
    now[0] = 107.0
    assert looks.seconds_since_look == 7.0
    with looks.round():
        raise OSError("still a look")
    assert looks.seconds_since_look == 0.0
