"""Signals to real processes at times of their own: the same command again ends with the tables of a night that never died.

`make test` sends one to the night's process and one to its JVM, and the same command again is this process's; the others are slow.
`make fault-test NIGHTS=30` kills so many drivers; the seed is in each test's name.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recsys_batch.cli import run
from recsys_batch.config import Config
from recsys_batch.read import has_table, run_rows

ROOT = Path(__file__).parent.parent.parent
DAY = "2026-03-01"
N_NIGHTS = int(os.environ.get("FAULT_NIGHTS", "1"))
_NIGHT_SECONDS = 20.0  # from the start of the process to its end, about


def started(config: Config, options: Any, log: Path, limit_file_bytes: int | None = None) -> subprocess.Popen[bytes]:
    def limited() -> None:
        if limit_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_bytes, limit_file_bytes))

    command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "nightly", "--run-date", DAY, *options(config)]
    with log.open("ab") as stream:
        return subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True, preexec_fn=limited)


def resumed(config: Config, options: Any) -> None:
    """The same command again, by the session that this process has already."""
    assert run(["nightly", "--run-date", DAY, *options(config)]) == 0


def finished(config: Config, options: Any, log: Path) -> None:
    process = started(config, options, log)
    assert process.wait(180) == 0, log.read_text(errors="replace")[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_NIGHTS))
def test_the_driver(
    fresh: Config, published: Config, options: Any, tables_of: Any, readers_see_nothing_or_all: Any, tmp_path: Path, seed: int
) -> None:
    after = random.Random(seed).uniform(0.3, 1.0) * _NIGHT_SECONDS
    process = started(fresh, options, tmp_path / "log")
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    readers_see_nothing_or_all(fresh)
    finished(fresh, options, tmp_path / "log")
    assert tables_of(fresh) == tables_of(published)


@pytest.mark.slow
def test_a_python_worker(
    fresh: Config, published: Config, options: Any, tables_of: Any, readers_see_nothing_or_all: Any, tmp_path: Path
) -> None:
    """The night fails or goes on, as Spark decides; it is never published short."""
    process = started(fresh, options, tmp_path / "log")
    killed = 0
    while process.poll() is None and killed < 3:
        for worker in workers_of(process.pid):
            with contextlib.suppress(ProcessLookupError):  # idle ones end by themselves
                os.kill(worker, signal.SIGKILL)
                killed += 1
        time.sleep(0.5)
    assert killed
    assert process.wait(180) in (0, 1), (tmp_path / "log").read_text(errors="replace")[-3000:]
    readers_see_nothing_or_all(fresh)
    finished(fresh, options, tmp_path / "log")
    assert tables_of(fresh) == tables_of(published)


def test_sigterm_leaves_a_failed_run_and_no_process(
    fresh: Config, published: Config, options: Any, tables_of: Any, readers_see_nothing_or_all: Any, tmp_path: Path
) -> None:
    """As a scheduler stops a night: it ends at once, in order."""
    process = started(fresh, options, tmp_path / "log")
    wait_for_a_row(fresh, process)
    time.sleep(2)  # within a step, which there Spark is at
    process.terminate()
    assert process.wait(30) == 1, (tmp_path / "log").read_text(errors="replace")[-3000:]
    assert "interrupted; the same command goes on" in (tmp_path / "log").read_text()
    assert "FAILED" in {row.status for row in run_rows(fresh.paths.warehouse)}
    await_none_of(process.pid)
    readers_see_nothing_or_all(fresh)
    resumed(fresh, options)
    assert tables_of(fresh) == tables_of(published)


def test_the_jvm_of_the_driver(
    fresh: Config, published: Config, options: Any, tables_of: Any, readers_see_nothing_or_all: Any, tmp_path: Path
) -> None:
    """As the kernel takes it where memory is short."""
    process = started(fresh, options, tmp_path / "log")
    wait_for_a_row(fresh, process)
    (jvm,) = [child for child, command in below(process.pid).items() if b"SparkSubmit" in command and b"java" in command.split(b"\0")[0]]
    os.kill(jvm, signal.SIGKILL)
    assert process.wait(60) == 1, (tmp_path / "log").read_text(errors="replace")[-3000:]
    assert "error: Spark's JVM ended while the night ran" in (tmp_path / "log").read_text()
    assert "FAILED" in {row.status for row in run_rows(fresh.paths.warehouse)}
    readers_see_nothing_or_all(fresh)
    resumed(fresh, options)
    assert tables_of(fresh) == tables_of(published)


@pytest.mark.slow
def test_files_that_cannot_grow(
    fresh: Config, published: Config, options: Any, tables_of: Any, readers_see_nothing_or_all: Any, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk: writes fail in whichever process is at it."""
    process = started(fresh, options, tmp_path / "log", limit_file_bytes=12_000)
    assert process.wait(180) == 1, (tmp_path / "log").read_text(errors="replace")[-3000:]
    readers_see_nothing_or_all(fresh)
    finished(fresh, options, tmp_path / "log")
    assert tables_of(fresh) == tables_of(published)


def wait_for_a_row(config: Config, process: subprocess.Popen[bytes]) -> None:
    """Until the manifest has the run's first row."""
    end = time.monotonic() + 180
    while not (has_table(config.paths.warehouse, "runs") and run_rows(config.paths.warehouse)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


def await_none_of(group: int) -> None:
    """Until no process of a group is left."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes of group {group} are left")


def workers_of(driver: int) -> list[int]:
    """Python workers below a driver: children of the daemon that its JVM started."""
    found = below(driver)
    daemons = {process for process, command in found.items() if b"recsys_batch.spark.executors.daemon" in command}
    return [process for process in daemons if parent_of(process) in daemons]


def below(ancestor: int) -> dict[int, bytes]:
    """Command lines of the processes that it started, and that those started."""
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                process = int(folder.name)
                parents[process], commands[process] = parent_of(process), (folder / "cmdline").read_bytes()

    def is_below(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == ancestor:
                return True
        return False

    return {process: command for process, command in commands.items() if is_below(process)}


def parent_of(process: int) -> int:
    """0 where it has ended."""
    with contextlib.suppress(OSError):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line)
        return int(status["PPid"])
    return 0
