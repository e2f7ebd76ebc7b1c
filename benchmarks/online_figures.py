"""Compute the figures of bench-online from what was measured; nothing here runs anything."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

_OK = {"OK", "0"}


def result_of(details: dict[str, Any], peers: Sequence[str]) -> dict[str, Any]:
    """Compute the RESULT of bench-online.

    Args:
        details: closed (server, connections: medians), rounds (server, connections: runs), open (server: runs), swap and overload
            (server: run), grpc (server: runs, or None), soak (its RESULT, or None).
    Returns:
        Figures by name; those of a comparison are there where it was made, and None where a part of it was not run. Ratios are medians over
        rounds.
    """
    ours = details["closed"]["ours"]["32"]
    result = {"qps_c32": round(ours["qps"]), "p99_ms_c32": round(ours["p99"], 2)}
    result["p99_ms_at_1000qps"] = round(statistics.median(run["ms"]["p99"] for run in details["open"]["ours"]), 3)
    if "before" in details["closed"]:
        for connections in ("1", "8", "32"):
            result[f"qps_vs_before_c{connections}"] = median_ratio(details["rounds"], "qps", connections, ["before"], max)
    if peers:
        best = max(peers, key=lambda peer: details["closed"][peer]["32"]["qps"])
        result |= {"best_peer": best, "best_peer_qps_c32": round(details["closed"][best]["32"]["qps"])}
        result["qps_vs_peer"] = median_ratio(details["rounds"], "qps", "32", peers, max)
        result["qps_vs_peer_c8"] = median_ratio(details["rounds"], "qps", "8", peers, max)
        result["p99_vs_peer"] = median_ratio(details["rounds"], "p99", "32", peers, min, digits=3)
    result["closed_failed"] = {
        name: round(n) for name, by_connections in details["rounds"].items() if (n := sum(map(_failed, _flat(by_connections))))
    }
    result |= _swap(details["swap"]["ours"]) | _overload(details["overload"]["ours"])
    return result | _grpc(details["grpc"]) | _soak(details["soak"])


def median_ratio(
    rounds: dict[str, dict[str, list[dict[str, float]]]], key: str, connections: str, others: Sequence[str], best: Any, digits: int = 2
) -> float:
    """Compute the median over rounds of ours over the best of the others in the same round."""
    ours = rounds["ours"][connections]
    ratios = [run[key] / best(rounds[other][connections][number][key] for other in others) for number, run in enumerate(ours)]
    return round(statistics.median(ratios), digits)


def _swap(swap: dict[str, Any]) -> dict[str, Any]:
    failed = sum(n for status, n in swap["statuses"].items() if int(status) != 200) + swap["unanswered"] + swap["connections_lost"]
    return {"swap_p99_ms": swap["ms"]["p99"], "swap_failed": failed, "swaps": len(swap["activations_seconds"])}


def _overload(overload: dict[str, Any]) -> dict[str, Any]:
    """The p99 of the 200s counts from when a request was sent: what waits in the client for a connection has not reached the server."""
    statuses = {int(status): n for status, n in overload["statuses"].items()}
    return {
        "overload_p99_ms": overload["ms_since_sent"]["p99"],
        "overload_503_share": round(statuses.get(503, 0) / max(sum(statuses.values()), 1), 3),
        "overload_other": sum(n for status, n in statuses.items() if status not in (200, 503)) + overload["unanswered"],
    }


def _grpc(grpc: dict[str, list[dict[str, Any]]] | None) -> dict[str, Any]:
    if grpc is None:
        return {"grpc_vs_before": None}
    result: dict[str, Any] = {"grpc_calls_per_s": round(statistics.median(run["calls_per_s"] for run in grpc["ours"]))}
    if "before" in grpc:
        pairs = zip(grpc["ours"], grpc["before"], strict=True)
        result["grpc_vs_before"] = round(statistics.median(ours["calls_per_s"] / before["calls_per_s"] for ours, before in pairs), 2)
    result["grpc_failed"] = sum(n for runs in grpc.values() for run in runs for code, n in run["codes"].items() if code not in _OK)
    return result


def _soak(soak: dict[str, Any] | None) -> dict[str, Any]:
    return (
        {"soak_rss_growth": None}
        if soak is None
        else {"soak_rss_growth": soak["soak_rss_growth"], "soak_flat": soak["soak_flat"], "soak_date": soak["date"]}
    )


def _failed(run: dict[str, float]) -> float:
    return run["not_200"] + run["socket_errors"]


def _flat(by_connections: dict[str, list[dict[str, float]]]) -> list[dict[str, float]]:
    return [run for runs in by_connections.values() for run in runs]
