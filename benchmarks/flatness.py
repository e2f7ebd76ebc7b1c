"""Judge whether a server under a steady load stays as it is: memory, descriptors, threads, processes; nothing here runs anything."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LARGEST_GROWTH = {"rss_mb": 1.05, "pss_mb": 1.05, "own_mb": 1.05, "descriptors": 1.05, "threads": 1.05}
"""Of a sum over all processes, the median of the last quarter of the run over that of the second: the first quarter warms up."""


@dataclass(frozen=True)
class Sample:
    """A server's processes at a moment.

    Attributes:
        at: seconds since the load began. usage: by process, a name like "worker 1234": rss_mb, pss_mb, own_mb, descriptors, threads (see
            tools/process_usage.py).
    """

    at: float
    usage: dict[str, dict[str, float]]

    def total(self, key: str) -> float:
        """Sum one figure over the processes."""
        return sum(usage[key] for usage in self.usage.values())


def growth(samples: Sequence[Sample], key: str, seconds: float) -> float:
    """Compute the median of a figure's sum in the last quarter of a run of ``seconds`` over that in the second quarter.

    Raises:
        ValueError: one of the quarters has no sample.
    """
    second = [sample.total(key) for sample in samples if seconds / 4 <= sample.at < seconds / 2]
    last = [sample.total(key) for sample in samples if seconds * 3 / 4 <= sample.at <= seconds]
    if not second or not last:
        raise ValueError(f"{len(samples)} samples leave a quarter of {seconds:g} s without one: run longer or sample more often")
    return statistics.median(last) / statistics.median(second)


def lasting_processes(samples: Sequence[Sample]) -> tuple[set[str], set[str]]:
    """Find the processes that were there in (the first sample, the last one)."""
    return set(samples[0].usage), set(samples[-1].usage)


def find_faults(growths: dict[str, float], samples: Sequence[Sample], run: dict[str, Any], log_rows: dict[str, float]) -> list[str]:
    """Find what is not as it should be after a soak; a sentence each, none where all is flat.

    Args:
        growths: of each key of LARGEST_GROWTH. run: of online_load.py: statuses, unanswered, connections_lost. log_rows: of the log, by
            outcome: recorded, written, full, invalid, lost.
    """
    faults = [f"{key} grew {growths[key]:.3f} times: at most {most}" for key, most in LARGEST_GROWTH.items() if growths[key] > most]
    first, last = lasting_processes(samples)
    faults += [f"process {name} ended" for name in sorted(first - last)]
    faults += [f"process {name} is new" for name in sorted(last - first)]
    faults += [f"{n} answers have status {status}" for status, n in run["statuses"].items() if int(status) != 200]
    faults += [f"{run[key]} requests: {key}" for key in ("unanswered", "connections_lost") if run[key]]
    faults += [f"{n:.0f} rows of the log are {outcome}" for outcome, n in log_rows.items() if outcome in ("full", "invalid", "lost") and n]
    if not log_rows.get("written"):
        faults.append("the exposure log has written no row")
    return faults
