"""Nights with their warehouse in an object store: an S3 server on loopback, every command a process of its own. `make object-store-test`.

Ingest, a full and an incremental night, rollback, export and maintenance; in the end all tables have the rows of the same commands
on a local path, and nothing of the warehouse is on this machine but copies of artefacts, one each.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.compute as pc
from cluster_test import OUTPUTS, rows
from pyarrow import fs
from s3_server import s3_server

from recsys_batch.read import published_run, read_table, run_rows
from recsys_batch.storage.filesystems import join, list_entries

ROOT = Path(__file__).parent.parent
INPUTS = ("interactions", "items", "users")
FIRST, SECOND = "2026-01-01", "2026-01-02"
BUCKET = "recsys-test"
_SECONDS = 900  # of one command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--keep", action="store_true", help="Leave the folder with state, copies and logs.")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="object-store-test-"))
    try:
        with s3_server() as environment, reached(environment):
            filesystem = fs.S3FileSystem(endpoint_override=environment["AWS_ENDPOINT_URL"], region="us-east-1", allow_bucket_creation=True)
            filesystem.create_dir(BUCKET)
            there = Commands(folder, f"s3a://{BUCKET}/recs/warehouse", s3a_settings(environment))
            here = Commands(folder, str(folder / "local"), {})
            sizes = ("--users", str(arguments.users), "--items", str(arguments.items), "--events", str(arguments.events), "--seed", "5")
            later = some_events(folder / "later.csv", arguments)
            there("generate", *sizes)
            there("train", "--max-seconds", "20")
            here("generate", *sizes)
            for place in (there, here):  # both by the one champion
                nights(place, later)
            compare(there.warehouse, here.warehouse)
            there("export-snapshot")
            there("rollback")
            there("rollback", "--to", f"{SECOND}-r1")
            there("evaluate", "--holdout", "--k", "10", expected=(4,))  # nothing was held out
            there("status")
            there("maintain", "--keep-runs", "1")
            dropped(there.warehouse)
            nothing_here_but_copies(folder, there.warehouse)
    finally:
        if arguments.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("object store test passed")
    return 0


def nights(place: Commands, later: Path) -> None:
    """A full night, events that come, a night that goes on from it; and both commands again, which do nothing."""
    place("nightly", "--run-date", FIRST)
    columns = "user_id=user_id,item_id=item_id,event_ts=event_ts,weight=weight"
    for _ in range(2):
        place("ingest", "--source", str(later), "--format", "csv", "--columns", columns)
    place("nightly", "--run-date", SECOND, "--incremental")
    place("nightly", "--run-date", SECOND, "--incremental")


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

    def __call__(self, command: str, *words: str, expected: tuple[int, ...] = (0,)) -> None:
        began = time.monotonic()
        script = [str(Path(sys.executable).parent / "recsys-batch"), command, *self._options, *words]
        with self._log.open("ab") as log:
            code = subprocess.run(script, cwd=self._folder, stdout=log, stderr=log, timeout=_SECONDS, check=False).returncode
        where = self.warehouse.partition("://")[0] if "://" in self.warehouse else "local"
        print(f"{where}: {command} {' '.join(words)}: exit code {code}, {time.monotonic() - began:.0f} s", flush=True)
        if code not in expected:
            raise SystemExit("\n".join(self._log.read_text(errors="replace").splitlines()[-40:]))


@contextmanager
def reached(environment: dict[str, str]) -> Iterator[None]:
    """The store's credentials and endpoint in this process and those that it starts: the only place that has them."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def s3a_settings(environment: dict[str, str]) -> dict[str, str]:
    """What a user of a store with S3's interface puts into [spark.conf]; for S3 itself none of it is needed."""
    return {
        "spark.hadoop.fs.s3a.endpoint": environment["AWS_ENDPOINT_URL"],
        "spark.hadoop.fs.s3a.endpoint.region": environment["AWS_REGION"],
        "spark.hadoop.fs.s3a.path.style.access": "true",
    }


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
        if path.name in ("s3a:", "_artifacts", "_delta_log") and not path.is_relative_to(folder / "local")
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
