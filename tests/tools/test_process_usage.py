"""What /proc says of a process that is known well: one that this test starts."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.process_usage import cpu_seconds, list_family, read_command, read_status, read_usage

MIB = 40
CODE = f"""
import subprocess, sys, threading
held = bytearray({MIB} * 2**20)
held[::4096] = bytes([1]) * len(held[::4096])
files = [open("/dev/null") for _ in range(20)]
done = threading.Event()
for _ in range(3):
    threading.Thread(target=done.wait, daemon=True).start()
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
child.stdin.close()
child.wait()
"""


@pytest.fixture
def parent() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process with memory, files and threads of its own, and a child; (process, the child's id)."""
    process = subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait()


def test_what_a_process_uses_is_its_own_and_not_its_childs(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, child = parent
    assert list_family(process.pid) == [process.pid, child]
    mine, of_child = read_usage(process.pid), read_usage(child)
    assert mine is not None and of_child is not None
    assert 20 + 3 <= mine.descriptors < of_child.descriptors + 30 and of_child.descriptors < 20
    assert (mine.threads, of_child.threads) == (4, 1)
    assert MIB <= mine.own_mb <= mine.pss_mb <= mine.rss_mb < MIB + 60
    assert of_child.own_mb < MIB / 2
    status = read_status(process.pid)
    assert MIB * 1024 <= status["RssAnon"] <= status["VmRSS"] <= status["VmHWM"]
    assert "held = bytearray" in read_command(process.pid)


def test_pages_that_two_processes_share_count_once_in_their_sum(parent: tuple[subprocess.Popen[str], int]) -> None:
    """The interpreter and its libraries are mapped by both, so each has a part of them only."""
    usages = [usage for pid in list_family(parent[0].pid) if (usage := read_usage(pid)) is not None]
    assert all(usage.own_mb < usage.pss_mb < usage.rss_mb for usage in usages)


def test_a_process_that_has_ended_uses_nothing() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not Path(f"/proc/{ended.pid}").exists()
    assert list_family(ended.pid) == []
    assert read_usage(ended.pid) is None
    assert (read_status(ended.pid), read_command(ended.pid), cpu_seconds(ended.pid)) == ({}, "", 0.0)


def test_processor_time_of_children_that_run_counts(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, child = parent
    assert cpu_seconds(process.pid) == pytest.approx(sum(_own_seconds(pid) for pid in (process.pid, child)), abs=0.05)
    assert cpu_seconds(child) <= cpu_seconds(process.pid)


def _own_seconds(pid: int) -> float:
    return float(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
