"""Memory, descriptors, threads and processor time of processes, as /proc has them; for benchmarks and for `make chaos`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessUsage:
    """What one process uses at a moment.

    Attributes:
        rss_mb: resident memory, MiB; pages that it shares with others count in full. pss_mb: the same, where a page that n processes map
            counts as 1/n, so that the sum over processes is what they hold together. own_mb: anonymous pages, which belong to no file:
            what a leak would be in. descriptors, threads: how many are open, or run.
    """

    rss_mb: float
    pss_mb: float
    own_mb: float
    descriptors: int
    threads: int


def list_family(pid: int) -> list[int]:
    """List a process and all that it started, itself first; none where it has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return [pid] if Path(f"/proc/{pid}").exists() else []
    return [pid, *(one for child in children for one in list_family(child))]


def read_usage(pid: int) -> ProcessUsage | None:
    """Read what a process uses; None where it has ended."""
    try:
        pages = _read_fields(Path(f"/proc/{pid}/smaps_rollup"))
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return None
    rss, pss, own = (pages.get(name, 0) / 1024 for name in ("Rss", "Pss", "Anonymous"))
    return ProcessUsage(rss, pss, own, descriptors, threads)


def read_status(pid: int) -> dict[str, int]:
    """Read the figures of /proc/PID/status by name, memory in KiB: VmRSS, VmHWM, RssAnon; empty where the process has ended."""
    try:
        return _read_fields(Path(f"/proc/{pid}/status"))
    except OSError:
        return {}


def read_command(pid: int) -> str:
    """Read a process's command line, words apart by blanks; empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def cpu_seconds(pid: int) -> float:
    """Add up the processor time of a process and of all that it started and that still run."""
    ticks = 0
    for one in list_family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _read_fields(path: Path) -> dict[str, int]:
    """Lines like ``VmRSS:   1234 kB``; those whose value is no number are left out."""
    fields = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            fields[name] = int(words[0])
    return fields
