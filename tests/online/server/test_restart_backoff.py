"""A process that dies again and again is waited for longer each time."""

from recsys_batch.online.server.restart_backoff import RestartBackoff, describe_exit


def test_the_pause_doubles_up_to_half_a_minute_and_begins_anew_after_a_long_life() -> None:
    backoff = RestartBackoff()
    assert [backoff.next_pause(1.0) for _ in range(10)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert backoff.next_pause(31.0) == 0.1 and backoff.n_deaths == 1
    for _ in range(5000):
        assert backoff.next_pause(0.0) <= 30.0


def test_an_end_is_told_by_its_status_or_signal() -> None:
    assert [describe_exit(code) for code in (-9, 3, None)] == ["was killed by signal 9", "ended with status 3", "ended"]
