#!/usr/bin/env bash
# Polars 2.1.0 (1.44.2 alike): a lazy join on a Delta table's partition column opens the files of every partition, a filter by value does not.
#
# "Which is the newest run, and its rows" is naturally one lazy query: scan_delta(runs) down to a row, joined with scan_delta(rows). Spark
# (dynamic partition pruning) and DuckDB (the build side's value as a filter) then open one partition's files. Polars has every file of the
# table opened and read, with an inner join as with a semi join. Collecting the one row first and filtering by its value opens one
# partition, so does is_in with several values. What was opened is what the kernel says (inotify), not what a plan says.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'polars==2.1.0' 'deltalake==1.6.6' 'pyarrow==25.0.1'
"$folder/venv/bin/python" - "$folder/table" <<'PYTHON'
import ctypes
import os
import struct
import sys
from pathlib import Path

import polars as pl
from deltalake import write_deltalake

root, n_days = Path(sys.argv[1]), 8
days = [f"2026-03-{day:02d}" for day in range(1, n_days + 1)]
write_deltalake(str(root), pl.DataFrame({"day": days * 2, "n": range(2 * n_days)}).to_arrow(), partition_by=["day"])
newest = pl.LazyFrame({"day": days}).sort("day").last()
rows = pl.scan_delta(str(root))
libc, event, in_open = ctypes.CDLL(None), struct.Struct("iIII"), 0x20


def opened(query: pl.LazyFrame) -> int:
    """Parquet files that are opened while a query runs."""
    queue = libc.inotify_init1(os.O_NONBLOCK)
    folders = {libc.inotify_add_watch(queue, os.fsencode(path), in_open): path for path in root.glob("day=*")}
    assert len(query.collect()) > 0
    names = set()
    try:
        while events := os.read(queue, 2**16):
            while events:
                folder, _, _, length = event.unpack_from(events)
                names.add((folders[folder], events[event.size : event.size + length].rstrip(b"\0")))
                events = events[event.size + length :]
    except BlockingIOError:
        os.close(queue)
    return sum(name.endswith(b".parquet") for _, name in names)


queries = {
    "filter by the newest day": (lambda: rows.filter(pl.col("day") == newest.collect().item()), 1),
    "filter, is_in of two days": (lambda: rows.filter(pl.col("day").is_in([days[0], days[-1]])), 2),
    "inner join with the newest day": (lambda: rows.join(newest, on="day"), n_days),
    "semi join with the newest day": (lambda: rows.join(newest, on="day", how="semi"), n_days),
}
print("polars", pl.__version__, "on", n_days, "files, one a partition; files opened by")
for name, (make, expected) in queries.items():
    n_opened = opened(make())
    print(f"    {name}: {n_opened}")
    assert n_opened == expected, "it changed"
PYTHON
