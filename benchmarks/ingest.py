"""Ingest of daily files: 305 of CSV against the build of another commit, and 1,000 of Parquet. By the command line, JVM included.

csv_vs_before is the other build's seconds over this one's, medians of runs in turn; parquet_seconds and rows_per_s are of the Parquet
files. Run by ``make bench-ingest BEFORE=COMMIT``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import ROOT, checked_out, interleaved, report, scratch_folder, seconds

_COLUMNS = "user_id=visitorid,item_id=itemid,event_ts=timestamp,event_type=event"
_TYPES = ("view", "addtocart", "transaction")
_SHARES = (0.9, 0.07, 0.03)


def write_csv_days(folder: Path, n_days: int, n_rows: int) -> None:
    """Write days of a shop's events as text: milliseconds, five columns, one of them empty."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(n_days):
        day = dt.datetime(2025, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=number)
        millis = (int(day.timestamp()) + np.sort(rng.integers(0, 86_400, n_rows))) * 1000
        users, items = rng.integers(1, 20_000, n_rows), rng.zipf(1.3, n_rows) % 5_000
        rows = zip(millis, users, rng.choice(_TYPES, n_rows, p=_SHARES), items, strict=True)
        lines = ["timestamp,visitorid,event,itemid,transactionid", *(f"{time},{user},{kind},{item}," for time, user, kind, item in rows)]
        (folder / f"{day:%Y-%m-%d}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet_days(folder: Path, n_days: int, n_rows: int) -> None:
    """Write days of events as Parquet."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(n_days):
        day = np.datetime64("2022-01-01", "us") + np.timedelta64(number, "D")
        table = pa.table(
            {
                "user_id": rng.integers(1, 200_000, n_rows),
                "item_id": rng.zipf(1.2, n_rows) % 50_000,
                "event_ts": day + np.sort(rng.integers(0, 86_400_000_000, n_rows)).astype("timedelta64[us]"),
                "event_type": rng.choice(_TYPES, n_rows, p=_SHARES),
                "weight": np.ones(n_rows, dtype=np.float32),
            }
        )
        pq.write_table(table, folder / f"{day.astype('datetime64[D]')}.parquet")


def run_ingest(code: Path, folder: Path, *options: str) -> None:
    """Ingest into a new warehouse with the package of ``code``."""
    warehouse = folder / f"warehouse-{os.urandom(4).hex()}"
    settings = (f"paths.warehouse={warehouse}", f"paths.state={folder / 'state'}", f"paths.jars={ROOT / '.jars'}")
    command = [sys.executable, "-m", "recsys_batch", "ingest", "--conf", str(ROOT / "conf" / "local.toml"), *options]
    command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(code)}, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default="ad3ef34", help="commit whose build is measured beside this one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--days", type=int, default=305)
    parser.add_argument("--parquet-days", type=int, default=1_000)
    options = parser.parse_args()
    with scratch_folder("bench-ingest-") as folder, checked_out(options.before, folder) as before:
        write_csv_days(folder / "csv", options.days, 1_410)
        csv = ("--source", str(folder / "csv"), "--format", "csv", "--columns", _COLUMNS)
        times = interleaved(options.repeats, before=lambda: run_ingest(before, folder, *csv), now=lambda: run_ingest(ROOT, folder, *csv))
        write_parquet_days(folder / "parquet", options.parquet_days, 10_000)
        parquet = seconds(lambda: run_ingest(ROOT, folder, "--source", str(folder / "parquet"), "--format", "parquet"))
    result = {
        "csv_vs_before": round(statistics.median(times["before"]) / statistics.median(times["now"]), 2),
        "parquet_seconds": round(parquet, 1),
        "rows_per_s": round(options.parquet_days * 10_000 / parquet),
    }
    report("ingest", vars(options), {"csv_seconds": times}, result)


if __name__ == "__main__":
    main()
