"""The figures that bench-online prints, of runs whose figures are written out."""

from typing import Any

import pytest

from benchmarks.online_figures import result_of


def rounds(qps: list[float], p99: list[float]) -> dict[str, list[dict[str, float]]]:
    """The same runs at each number of connections."""
    runs = [{"qps": one, "p99": late, "not_200": 0, "socket_errors": 0} for one, late in zip(qps, p99, strict=True)]
    return {connections: runs for connections in ("1", "8", "32")}


def measured(**servers: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    closed = {
        name: {n: {key: sorted(run[key] for run in runs)[1] for key in runs[0]} for n, runs in by.items()} for name, by in servers.items()
    }
    swap = {
        "statuses": {"200": 99, "503": 1},
        "unanswered": 2,
        "connections_lost": 0,
        "ms": {"p99": 7.0},
        "activations_seconds": [1.0, 2.0],
    }
    overload = {"statuses": {"200": 60, "503": 38, "500": 2}, "unanswered": 1, "ms_since_sent": {"p99": 40.0}}
    return {
        "rounds": servers,
        "closed": closed,
        "open": {"ours": [{"ms": {"p99": p99}} for p99 in (3.0, 9.0, 4.0)]},
        "swap": {"ours": swap},
        "overload": {"ours": overload},
        "grpc": None,
        "soak": None,
    }


OURS = rounds([200.0, 100.0, 300.0], [5.0, 10.0, 4.0])


def test_alone_there_are_no_comparisons() -> None:
    assert result_of(measured(ours=OURS), []) == {
        "qps_c32": 200,
        "p99_ms_c32": 5.0,
        "p99_ms_at_1000qps": 4.0,
        "closed_failed": {},
        "swap_p99_ms": 7.0,
        "swap_failed": 3,
        "swaps": 2,
        "overload_p99_ms": 40.0,
        "overload_503_share": 0.38,
        "overload_other": 3,
        "grpc_vs_before": None,
        "soak_rss_growth": None,
    }


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    """A slow minute hits both: 2.0, 2.0 and 1.5, where the ratio of the medians would be 200 / 100."""
    result = result_of(measured(ours=OURS, before=rounds([100.0, 50.0, 200.0], [6.0, 9.0, 5.0])), [])
    assert [result[f"qps_vs_before_c{n}"] for n in (1, 8, 32)] == [2.0, 2.0, 2.0]
    result = result_of(measured(ours=OURS, before=rounds([160.0, 50.0, 200.0], [6.0, 9.0, 5.0])), [])
    assert result["qps_vs_before_c32"] == 1.5, "the ratio of the medians is 1.25"


def test_peers_are_compared_by_the_best_of_them_in_each_round() -> None:
    one, other = rounds([100.0, 200.0, 100.0], [10.0, 20.0, 8.0]), rounds([50.0, 50.0, 200.0], [5.0, 40.0, 16.0])
    result = result_of(measured(ours=OURS, torchserve=one, triton=other), ["torchserve", "triton"])
    assert (result["best_peer"], result["best_peer_qps_c32"]) == ("torchserve", 100)
    assert (result["qps_vs_peer"], result["qps_vs_peer_c8"]) == (1.5, 1.5)  # of 2.0, 0.5 and 1.5
    assert result["p99_vs_peer"] == 0.5  # of 5/5, 10/20 and 4/8


def test_closed_loops_that_answered_errors_say_so() -> None:
    failed = rounds([200.0, 100.0, 300.0], [5.0, 10.0, 4.0])
    failed["8"] = [run | {"not_200": 2, "socket_errors": 1} for run in failed["8"]]
    assert result_of(measured(ours=OURS, before=failed), [])["closed_failed"] == {"before": 9}


@pytest.mark.parametrize(("codes", "n_failed"), [({"OK": 5}, 0), ({"0": 5}, 0), ({"OK": 5, "UNAVAILABLE": 2}, 2)])
def test_grpc_is_compared_by_rounds_and_failures_count(codes: dict[str, int], n_failed: int) -> None:
    def runs(*speeds: float) -> list[dict[str, Any]]:
        return [{"calls_per_s": speed, "codes": codes if speed == 100 else {"OK": 1}} for speed in speeds]

    details = measured(ours=OURS) | {"grpc": {"ours": runs(300, 100, 260), "before": runs(200, 50, 200)}}
    result = result_of(details, [])
    assert (result["grpc_calls_per_s"], result["grpc_vs_before"], result["grpc_failed"]) == (260, 1.5, n_failed)
    alone = result_of(measured(ours=OURS) | {"grpc": {"ours": runs(300, 100, 260)}}, [])
    assert "grpc_vs_before" not in alone and alone["grpc_calls_per_s"] == 260


def test_a_soak_of_this_build_is_repeated() -> None:
    result = result_of(measured(ours=OURS) | {"soak": {"soak_rss_growth": 1.01, "soak_flat": False, "date": "2026-12-01"}}, [])
    assert (result["soak_rss_growth"], result["soak_flat"], result["soak_date"]) == (1.01, False, "2026-12-01")
