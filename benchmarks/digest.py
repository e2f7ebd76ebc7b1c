"""Benchmark digest of a published run of 1,000,000 users x 20 items with 20 interactions each: seconds and
peak memory of a first digest and of the next one, which leaves out the items that the first one sent.

    make bench-digest USERS=1000000 ITEMS=100000 DIM=64 K=20
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measuring import ROOT, report
from snapshot import BLOCK, DATE, NOW, publish, table, write

EVENTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=20, help="rows per user")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-digest-"))
    try:
        warehouse = folder / "warehouse"
        write(warehouse, "interactions", interactions(arguments))
        publish(arguments, warehouse, [("items", 1), ("interactions", 1)])
        first, next_one = (digest(warehouse, folder / "out", name) for name in ("first", "next"))
        size = sum(path.stat().st_size for path in (folder / "out").iterdir()) / 2
        result = {
            "users": arguments.users,
            "seconds": first[0],
            "users_per_s": round(arguments.users / first[0]),
            "next_seconds": next_one[0],
        }
        result |= {"peak_own_mb": max(first[1], next_one[1]), "bytes_per_user": round(size / arguments.users)}
        report("digest", vars(arguments), {"first": first, "next": next_one}, result)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def interactions(arguments: argparse.Namespace) -> Iterator[pa.RecordBatch]:
    """Yield interactions in blocks, users in random order, as in a table that grows by day."""
    rng = np.random.default_rng(1)
    moment = pa.scalar(NOW, pa.timestamp("us", "UTC"))
    for _ in range(0, arguments.users, BLOCK):
        n = BLOCK * EVENTS
        rows: dict[str, Any] = {"user_id": rng.integers(arguments.users, size=n), "item_id": rng.integers(arguments.items, size=n)}
        rows |= {"event_ts": pa.repeat(moment, n), "event_type": pa.repeat("view", n), "weight": np.ones(n, np.float32)}
        yield table("interactions", rows | {"event_date": pa.repeat(pa.scalar(DATE), n)})


def digest(warehouse: Path, out: Path, name: str) -> tuple[float, int]:
    """Run the command; return (seconds, peak MiB of its private memory)."""
    command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "digest", "--run-date", str(DATE), "--digest-id", name]
    options = ["--set", f"paths.warehouse={warehouse}", "--out", f"{out}/{name}.jsonl", "--as-of", NOW.isoformat()]
    began, peak = time.monotonic(), 0
    process = subprocess.Popen([*command, *options], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while process.poll() is None:
        match = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(match[1]) if match else 0)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"digest ended with {process.returncode}")
    return round(time.monotonic() - began, 1), round(peak / 1024)


if __name__ == "__main__":
    main()
