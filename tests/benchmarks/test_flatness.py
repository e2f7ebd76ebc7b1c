"""What counts as flat after a soak."""

from typing import Any

import pytest

from benchmarks.flatness import LARGEST_GROWTH, Sample, find_faults, growth

SECONDS = 400.0
RUN: dict[str, Any] = {"statuses": {"200": 1000}, "unanswered": 0, "connections_lost": 0}
ROWS = {"recorded": 1000.0, "written": 1000.0, "full": 0.0, "invalid": 0.0, "lost": 0.0}
FLAT = dict.fromkeys(LARGEST_GROWTH, 1.0)


def samples(per_second: float = 0.0, start: float = 100.0, names: tuple[str, ...] = ("worker 1", "worker 2")) -> list[Sample]:
    """One every 5 s, in which every figure of every process is ``start`` and grows by ``per_second``."""
    return [Sample(at, {name: dict.fromkeys(LARGEST_GROWTH, start + per_second * at) for name in names}) for at in range(0, 401, 5)]


@pytest.mark.parametrize(
    ("per_second", "expected"),
    # Medians of [100, 200) and of [300, 400]: 147.5 and 350 seconds.
    [(0.0, 1.0), (1.0, (100 + 350) / (100 + 147.5)), (-0.1, (100 - 35) / (100 - 14.75))],
)
def test_growth_is_the_last_quarter_over_the_second(per_second: float, expected: float) -> None:
    assert growth(samples(per_second), "rss_mb", SECONDS) == pytest.approx(expected)


def test_a_first_quarter_that_warms_up_and_a_short_peak_are_no_growth() -> None:
    warm = [Sample(one.at, {"worker 1": {"rss_mb": 10.0 if one.at < 100 else 900.0 if one.at == 390 else 300.0}}) for one in samples()]
    assert growth(warm, "rss_mb", SECONDS) == 1.0


def test_a_process_that_is_sampled_in_a_quarter_alone_counts_in_it() -> None:
    """What leaks may be a process, too."""
    more = [Sample(one.at, one.usage | ({"helper 3": one.usage["worker 1"]} if one.at >= 300 else {})) for one in samples()]
    assert growth(more, "threads", SECONDS) == 1.5


def test_what_is_seen_after_the_load_does_not_count() -> None:
    """Connections are closed then, which would hide that they became more."""
    leaking = [*samples(1.0), *(Sample(at, {"worker 1": dict.fromkeys(LARGEST_GROWTH, 1.0)}) for at in range(401, 500))]
    assert growth(leaking, "descriptors", SECONDS) == growth(samples(1.0), "descriptors", SECONDS) > 1.5


def test_a_run_too_short_to_judge_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 samples leave a quarter of 400 s without one"):
        growth(samples()[:2], "rss_mb", SECONDS)


def test_a_flat_run_has_no_faults() -> None:
    assert find_faults(FLAT, samples(), RUN, ROWS) == []


@pytest.mark.parametrize("key", LARGEST_GROWTH)
def test_each_figure_that_grows_is_a_fault(key: str) -> None:
    most = LARGEST_GROWTH[key]
    assert find_faults(FLAT | {key: most}, samples(), RUN, ROWS) == []
    assert find_faults(FLAT | {key: most + 0.001}, samples(), RUN, ROWS) == [f"{key} grew {most + 0.001:.3f} times: at most {most}"]


@pytest.mark.parametrize(
    ("run", "rows", "words"),
    [
        ({"statuses": {"200": 9, "503": 1}}, {}, "1 answers have status 503"),
        ({"unanswered": 2}, {}, "2 requests: unanswered"),
        ({"connections_lost": 3}, {}, "3 requests: connections_lost"),
        ({}, {"lost": 4.0}, "4 rows of the log are lost"),
        ({}, {"full": 5.0}, "5 rows of the log are full"),
        ({}, {"written": 0.0}, "the exposure log has written no row"),
    ],
)
def test_each_answer_or_row_that_is_missing_is_a_fault(run: dict[str, Any], rows: dict[str, float], words: str) -> None:
    assert find_faults(FLAT, samples(), RUN | run, ROWS | rows) == [words]


def test_a_worker_that_was_started_again_is_a_fault() -> None:
    half = len(samples()) // 2
    restarted = samples()[:half] + samples(names=("worker 1", "worker 9"))[half:]
    assert find_faults(FLAT, restarted, RUN, ROWS) == ["process worker 2 ended", "process worker 9 is new"]
