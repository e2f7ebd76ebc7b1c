"""Shared by the benchmarks: memory of Python workers, users per second, machine description and the RESULT line."""

from __future__ import annotations

import configparser
import datetime as dt
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
from process_usage import list_family, read_command, read_status

ROOT = Path(__file__).parent.parent
_POLL_SECONDS = 0.2
_PACKAGES = ".packages"


class WorkerMemory:
    """Measures peak memory of this process's Spark Python workers by polling /proc while the ``with`` block runs.

    ``peak_rss_mb`` is the largest VmHWM of one worker (pages of mapped files count); ``peak_own_mb`` the largest RssAnon, what is
    the worker's alone.
    """

    def __init__(self) -> None:
        self.peak_rss_mb = 0.0
        self.peak_own_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> WorkerMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            for process in list_family(os.getpid())[1:]:
                command, status = read_command(process), read_status(process)
                if "pyspark" in command and "java" not in command.split(" ")[0]:
                    self.peak_rss_mb = max(self.peak_rss_mb, status.get("VmHWM", 0) / 1024)
                    self.peak_own_mb = max(self.peak_own_mb, status.get("RssAnon", 0) / 1024)


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder for a benchmark that starts servers: SIGTERM ends its block, too, and with it the servers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """Check another build of this repository out below ``folder``, to be measured beside this one: ``python_path`` finds all it needs."""
    path = folder / "before"
    subprocess.run(["git", "worktree", "add", "-q", "--detach", str(path), commit], cwd=ROOT, check=True)
    try:
        if unmet := _list_unmet(path / "setup.cfg"):
            print(f"  the build before needs {', '.join(unmet)}", flush=True)
            install_packages(path / _PACKAGES, *unmet)
        yield path
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=False)


def install_packages(folder: Path, *arguments: str) -> None:
    """Install packages into a folder of their own, by pip's arguments: requirements and options."""
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder), *arguments], check=True)


def python_path(code: Path) -> str:
    """Name the folders that a build is imported from: its own, and that of packages which only it needs."""
    return os.pathsep.join([str(code), str(code / _PACKAGES)])


def _list_unmet(setup: Path) -> list[str]:
    """List what a build's server needs by its setup.cfg that is not installed here."""
    parser = configparser.ConfigParser()
    parser.read(setup)
    lines = (parser["options"]["install_requires"] + parser["options.extras_require"]["online"]).splitlines()
    needed = [Requirement(line) for line in lines if line and not line.startswith(("#", "recsys-batch"))]
    return [str(each) for each in needed if not _is_met(each)]


def _is_met(needed: Requirement) -> bool:
    try:
        return needed.specifier.contains(importlib.metadata.version(needed.name))
    except importlib.metadata.PackageNotFoundError:
        return False


def seconds(work: Callable[[], Any]) -> float:
    """Measure the wall-clock seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def interleaved(repeats: int, **works: Callable[[], Any]) -> dict[str, list[float]]:
    """Measure seconds of each work, ``repeats`` times in turn, so that a slow minute of the machine affects all of them."""
    timings: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            timings[name].append(seconds(work))
            print(f"  {name:<14}{timings[name][-1]:8.2f} s", flush=True)
    return timings


def per_second(n: int, times: list[float]) -> float:
    """Compute n over the median time."""
    return n / statistics.median(times)


def product_tree() -> str | None:
    """Name the contents of recsys_batch/ as git does, the same in all commits that leave them alone; None if they are not committed."""
    changed = subprocess.run(["git", "status", "--porcelain", "recsys_batch"], cwd=ROOT, capture_output=True, text=True)
    tree = subprocess.run(["git", "rev-parse", "--verify", "HEAD:recsys_batch"], cwd=ROOT, capture_output=True, text=True)
    return tree.stdout.strip() if tree.returncode == 0 and not changed.stdout.strip() else None


def report(name: str, settings: dict[str, Any], details: dict[str, Any], result: dict[str, Any], output: Path | None = None) -> None:
    """Write benchmarks/results/NAME.json and print the RESULT line."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    document = {
        "benchmark": name,
        "date": dt.date.today().isoformat(),
        "commit": commit,
        "product_tree": product_tree(),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "settings": settings,
        "details": details,
        "result": result,
    }
    path = output or ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print("RESULT " + json.dumps(result), flush=True)
