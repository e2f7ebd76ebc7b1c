#!/usr/bin/env bash
# DuckDB 1.4.4 with its delta extension: TIMESTAMP columns of a Delta table whose files are INT96 are other instants in a session outside UTC.
#
# A Delta TIMESTAMP is an instant in UTC, and Spark writes it as Parquet's INT96 unless spark.sql.parquet.outputTimestampType says otherwise.
# INT96 carries no zone: DuckDB's Parquet reader makes a TIMESTAMP without one of it, and delta_scan then casts that to the table's TIMESTAMP
# WITH TIME ZONE, as if it were the wall clock of the session's TimeZone, which is the machine's by default. The same rows are hours apart on
# two machines, silently; conditions and joins by time are wrong with them. Files with INT64 timestamps (isAdjustedToUTC) are right in every
# zone, and deltalake reads both alike. So: write TIMESTAMP_MICROS, or SET TimeZone = 'UTC' before the query.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'duckdb==1.4.4' 'duckdb-ext-delta==1.4.4.20260205' 'deltalake==1.6.6' 'pyarrow==25.0.1'
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import datetime as dt
import sys
from importlib.metadata import distribution
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, convert_to_deltalake

noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
rows = pa.table({"moment": pa.array([noon], pa.timestamp("us", "UTC"))})
for name, int96 in (("int96", True), ("int64", False)):
    table = Path(sys.argv[1], name)
    table.mkdir()
    pq.write_table(rows, table / "part-0.parquet", use_deprecated_int96_timestamps=int96)
    convert_to_deltalake(str(table))

(extension,) = [file for file in distribution("duckdb-ext-delta").files if file.name == "delta.duckdb_extension"]
seen = {}
for name in ("int96", "int64"):
    folder = str(Path(sys.argv[1], name))
    field = next(field for field in DeltaTable(folder).schema().fields if field.name == "moment")
    (at,) = pc.cast(DeltaTable(folder).to_pyarrow_table()["moment"], pa.timestamp("us", "UTC")).to_pylist()
    print(f"{name}: Delta type {field.type}; deltalake: {at}")
    assert at == noon
    for zone in ("UTC", "Asia/Tokyo"):
        connection = duckdb.connect()
        connection.execute(f"LOAD '{extension.locate()}'")
        connection.execute(f"SET TimeZone = '{zone}'")
        kind, micros = connection.execute(f"SELECT typeof(moment), epoch_us(moment) FROM delta_scan('{folder}')").fetchone()
        seen[name, zone] = dt.datetime.fromtimestamp(micros / 1e6, dt.UTC)
        print(f"    DuckDB {duckdb.__version__} in {zone}: {kind}, {seen[name, zone]}")
assert seen["int96", "UTC"] == seen["int64", "UTC"] == seen["int64", "Asia/Tokyo"] == noon
assert seen["int96", "Asia/Tokyo"] == noon - dt.timedelta(hours=9), "it changed"
PYTHON
