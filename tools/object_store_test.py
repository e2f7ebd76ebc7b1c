"""Nights with their warehouse in a store: its server on loopback, every command a process of its own. `make object-store-test STORE=hdfs`.

Ingest, a full and an incremental night (during which an executor is killed), rollback, export, digest, report and maintenance; in the end
all tables have the rows of the same commands on a local path, and nothing of the warehouse is on this machine but copies of artefacts,
one each. Then what the store's server can be made to do: a full quota, no writing, a lost connection.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.compute as pc
from background import in_background
from cluster_test import OUTPUTS, rows
from store_servers import STORE_SERVERS, Fault

from recsys_batch.read import published_run, read_table, run_rows
from recsys_batch.storage.filesystems import join, list_entries

ROOT = Path(__file__).parent.parent
INPUTS = ("interactions", "items", "users")
FIRST, SECOND, THIRD = "2026-01-01", "2026-01-02", "2026-01-03"
_SECONDS = 900  # of one command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=STORE_SERVERS, default="s3")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--part", choices=("all", "nights", "faults"), default="all", help="Nights as on a local path; what can go wrong.")
    parser.add_argument("--keep", action="store_true", help="Leave the folder with state, copies and logs.")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="object-store-test-"))
    try:
        with STORE_SERVERS[arguments.store](folder) as store:
            there = Commands(folder, store.warehouse, store.settings)
            here = Commands(folder, str(folder / "local"), {})
            sizes = ("--users", str(arguments.users), "--items", str(arguments.items), "--events", str(arguments.events), "--seed", "5")
            later = some_events(folder / "later.csv", arguments)
            there("generate", *sizes)
            there("train", "--max-seconds", "20")
            if arguments.part != "faults":
                here("generate", *sizes)
                same_as_local(there, here, later)
                read_by_others(there, folder)
                there("rollback")
                there("rollback", "--to", f"{SECOND}-r1")
                there("evaluate", "--holdout", "--k", "10", expected=(4,))  # nothing was held out
                there("status")
                there("maintain", "--keep-runs", "1")
                dropped(there.warehouse)
                nothing_here_but_copies(folder, there.warehouse)
            if arguments.part != "nights":
                if arguments.part == "faults":
                    there("nightly", "--run-date", FIRST)
                for fault in store.faults:
                    meet(fault, there)
    finally:
        if arguments.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"object store test passed ({arguments.store})")
    return 0


def same_as_local(there: Commands, here: Commands, later: Path) -> None:
    """The same nights in the store, where an executor is killed, and on a local path: the same rows, by the one champion."""
    nights(here, later)
    with killing_an_executor() as killed:
        nights(there, later, "--set", "spark.master=local-cluster[2,1,1024]")
    if not killed:
        raise SystemExit("no executor was killed: the night was over before one was found")
    print(f"killed executor process {killed[0]}; the nights ended all the same")
    compare(there.warehouse, here.warehouse)


def nights(place: Commands, later: Path, *words: str) -> None:
    """A full night, events that come, a night that goes on from it; and both commands again, which do nothing."""
    place("nightly", "--run-date", FIRST, *words)
    columns = "user_id=user_id,item_id=item_id,event_ts=event_ts,weight=weight"
    for _ in range(2):
        place("ingest", "--source", str(later), "--format", "csv", "--columns", columns)
    place("nightly", "--run-date", SECOND, "--incremental")
    place("nightly", "--run-date", SECOND, "--incremental")


def read_by_others(there: Commands, folder: Path) -> None:
    """A snapshot, a digest and a report, which read what is published."""
    there("export-snapshot")
    there("digest", "--run-date", SECOND, "--slots", "5", "--out", str(folder / "digest.jsonl"))
    there("report", "--run-id", f"{SECOND}-r1", "--out", str(folder / "report.html"))
    for name in ("digest.jsonl", "report.html"):
        if not (folder / name).stat().st_size:
            raise SystemExit(f"{name} is empty")


def meet(fault: Fault, there: Commands) -> None:
    """A night while the store misbehaves: it ends as it should and says why, and what was published stays; afterwards it runs."""
    before = published_run(there.warehouse).run_id
    with fault.during():
        text = there("nightly", "--run-date", THIRD, "--force", expected=(fault.exit_code,))
    if fault.says not in text:
        raise SystemExit(f"{fault.name}: the night did not say {fault.says!r} but:\n{text[-3000:]}")
    after = published_run(there.warehouse).run_id
    if fault.exit_code and after != before:
        raise SystemExit(f"{fault.name}: {after} is published, expected {before} to stay so")
    print(
        f"{fault.name}: exit code {fault.exit_code}, published is {after}" + (f'; it says "{fault.says}"' if fault.says else ""), flush=True
    )


@contextmanager
def killing_an_executor() -> Iterator[list[int]]:
    """While the block runs: SIGKILL for the first executor of a process that this one started, once it has a Python worker at work."""
    killed: list[int] = []

    def watch(over: threading.Event) -> None:
        while not over.wait(0.1):
            running = processes()
            for process, (parent, command) in running.items():
                executor = b"executors.daemon" in command and b"CoarseGrainedExecutorBackend" in running.get(parent, (0, b""))[1]
                if executor and descends(process, running):
                    with suppress(ProcessLookupError):  # it ended by itself: another one then
                        os.kill(parent, signal.SIGKILL)
                        killed.append(parent)
                        return

    with in_background(watch):
        yield killed


def processes() -> dict[int, tuple[int, bytes]]:
    """Every process: its parent's id and its command line."""
    listed = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            listed[int(folder.name)] = (parent, (folder / "cmdline").read_bytes())
    return listed


def descends(process: int, parents: dict[int, tuple[int, bytes]]) -> bool:
    """Say whether this process started that one, or one that did."""
    while process in parents:
        process = parents[process][0]
        if process == os.getpid():
            return True
    return False


class Commands:
    """The command line, for one warehouse."""

    def __init__(self, folder: Path, warehouse: str, settings: dict[str, str]) -> None:
        self.warehouse = warehouse
        self._folder, self._log = folder, folder / "commands.log"
        paths = {"warehouse": warehouse, "state": folder / "state", "node_cache": folder / "copies"}
        paths |= {"jars": ROOT / ".jars", "s3a_jars": ROOT / ".jars-s3a"}
        values = {**{f"paths.{name}": str(value) for name, value in paths.items()}, "online.snapshots": str(folder / "snapshots")}
        values |= {"retrieval.mode": "ivf"} | {f"spark.conf.{name}": value for name, value in settings.items()}
        self._options = [
            "--conf",
            str(ROOT / "conf" / "smoke.toml"),
            *(part for item in values.items() for part in ("--set", "=".join(item))),
        ]

    def __call__(self, command: str, *words: str, expected: tuple[int, ...] = (0,)) -> str:
        """Run a command; what it said."""
        began, said_before = time.monotonic(), self._log.stat().st_size if self._log.exists() else 0
        script = [str(Path(sys.executable).parent / "recsys-batch"), command, *self._options, *words]
        with self._log.open("ab") as log:
            environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"}  # executors of their own would listen for every machine
            code = subprocess.run(
                script, cwd=self._folder, stdout=log, stderr=log, env=environment, timeout=_SECONDS, check=False
            ).returncode
        where = self.warehouse.partition("://")[0] if "://" in self.warehouse else "local"
        print(f"{where}: {command} {' '.join(words)}: exit code {code}, {time.monotonic() - began:.0f} s", flush=True)
        if code not in expected:
            raise SystemExit("\n".join(self._log.read_text(errors="replace").splitlines()[-40:]))
        return self._log.read_bytes()[said_before:].decode(errors="replace")


def some_events(path: Path, sizes: argparse.Namespace) -> Path:
    """Events of one user in twenty, on items that exist, after all others."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("user_id", "item_id", "event_ts", "weight"))
        for number in range(sizes.users // 20):
            writer.writerow((20 * number + 1, (7 * number) % sizes.items + 1, f"2025-12-31 23:{number % 60:02d}:00", 1.0))
    return path


def compare(ours: str, theirs: str) -> None:
    """Inputs, and every table of both nights, row by row."""
    for name in INPUTS:
        both = [sorted(map(str, read_table(place, name).to_pylist())) for place in (ours, theirs)]
        if both[0] != both[1] or not both[0]:
            raise SystemExit(f"{name}: {len(both[0])} rows in the store, {len(both[1])} on the local path, and not the same")
    runs = [{run.run_id: run for run in run_rows(place) if run.status == "PUBLISHED"} for place in (ours, theirs)]
    if set(runs[0]) != set(runs[1]) or set(runs[0]) != {f"{FIRST}-r1", f"{SECOND}-r1"}:
        raise SystemExit(f"published: {sorted(runs[0])} in the store, {sorted(runs[1])} on the local path")
    for place, found in zip((ours, theirs), runs, strict=True):
        if found[f"{SECOND}-r1"].metrics["incremental"] != 1.0:
            raise SystemExit(f"the second night of {place} was a full one")
    for run_id in sorted(runs[0]):
        counted = []
        for name in OUTPUTS:
            found_there, expected = (rows(place, name, run_id) for place in (ours, theirs))
            if found_there != expected:
                raise SystemExit(f"{name} of run {run_id} in the store is not what it is on a local path")
            counted.append(f"{name} {len(expected)}")
        print(f"all rows of {run_id} are those of the local path: {', '.join(counted)}", flush=True)


def dropped(warehouse: str) -> None:
    """After maintenance that keeps one run there are that run's rows alone."""
    kept = published_run(warehouse).run_id
    for name in ("topk", "candidates", "user_embeddings"):
        found = set(pc.unique(read_table(warehouse, name)["run_id"]).to_pylist())
        if found != {kept}:
            raise SystemExit(f"maintain kept {found} in {name}, expected {kept} alone")


def nothing_here_but_copies(folder: Path, warehouse: str) -> None:
    """No table and no artefact of the store's warehouse lies on this machine, and each artefact that was mapped is here once."""
    strays = [
        path
        for path in folder.rglob("*")
        if path.name in ("s3a:", "hdfs:", "_artifacts", "_delta_log") and not path.is_relative_to(folder / "local")
    ]
    if strays:
        raise SystemExit(f"written to this machine, not to the store: {', '.join(map(str, strays))}")
    copies = {path.name for path in (folder / "copies").iterdir() if not path.name.startswith(".")}
    for kind in ("bundles", "catalogues"):
        missing = {entry.name for entry in list_entries(join(warehouse, "_artifacts", kind))} - copies
        if missing:
            raise SystemExit(f"{kind} without a copy: {missing}")
    left = [path.name for path in (folder / "copies").glob(".draft-*")] + [path.name for path in (folder / "state").glob("recsys-batch-*")]
    if left:
        raise SystemExit(f"left behind: {', '.join(left)}")
    print(f"{len(copies)} artefacts were copied to this machine, and nothing else of the warehouse is on it", flush=True)


if __name__ == "__main__":
    sys.exit(main())
