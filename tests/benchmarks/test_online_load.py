"""What the open loop's client says of a run."""

import re
from pathlib import Path

import numpy as np

from benchmarks import online_load
from benchmarks.online_load import PATHS, Load, summarize


def make_load(*answers: tuple[int, float, float, float]) -> Load:
    """A run of answers, each (status, when due, seconds since then, seconds since sent), and of one request without an answer."""
    load = Load([], np.zeros(0))
    for status, due, since_due, since_sent in answers:
        load.statuses.append(status)
        load.due_times.append(due)
        load.seconds_since_due.append(since_due)
        load.seconds_since_sent.append(since_sent)
    load.n_sent = len(answers) + 1
    return load


def test_latencies_are_of_answers_with_200_and_lateness_of_all() -> None:
    load = make_load((200, 0.1, 0.030, 0.010), (503, 0.2, 0.500, 0.001), (200, 1.0, 0.050, 0.040))
    summary = summarize(load, None)
    assert (summary["sent"], summary["statuses"], summary["unanswered"]) == (4, {200: 2, 503: 1}, 1)
    assert (summary["ms"]["p50"], summary["ms"]["max"]) == (40.0, 50.0)
    assert (summary["ms_since_sent"]["p50"], summary["ms_since_sent"]["max"]) == (25.0, 40.0)
    assert (summary["ms_late"]["p50"], summary["ms_late"]["max"]) == (20.0, 499.0)
    assert "windows" not in summary


def test_windows_are_by_when_a_request_was_due() -> None:
    load = make_load((200, 0.1, 5.0, 0.010), (503, 9.9, 0.500, 0.001), (200, 1.0, 0.050, 0.040), (503, 20.0, 0.001, 0.001))
    assert summarize(load, 10.0)["windows"] == [
        {"at": 0.0, "n_200": 2, "n_others": 1, "p50": 2525.0, "p99": 4950.5},
        {"at": 20.0, "n_200": 0, "n_others": 1, "p50": None, "p99": None},
    ]


def test_a_run_without_a_good_answer_has_no_latencies() -> None:
    summary = summarize(make_load(), None)
    assert (summary["statuses"], summary["unanswered"], summary["ms"]["p99"]) == ({}, 1, None)


def test_wrk_asks_the_same_paths() -> None:
    script = Path(online_load.__file__).with_name("online_wrk.lua").read_text(encoding="utf-8")
    table = script[script.index("local paths = {") : script.index("}", script.index("local paths = {"))]
    assert dict(re.findall(r'(\w+) = "([^"]+)"', table)) == PATHS
