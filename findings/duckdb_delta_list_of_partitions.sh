#!/usr/bin/env bash
# DuckDB 1.4.4 with its delta extension: a condition on several values of a partition column (IN, OR) opens the files of every partition.
#
# delta_scan skips files by partition values for =, < and BETWEEN, for IN of a single value, and even for a join with one row, whose value
# reaches the scan while it runs. A list of two values, the same written with OR, and a join with two rows that are not neighbours open
# every file of the table: the rows are right, the time and the bytes are those of all partitions. The two halves put together by UNION ALL
# open what they need, as does the list with a range beside it.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'duckdb==1.4.4' 'duckdb-ext-delta==1.4.4.20260205' 'deltalake==1.6.6' 'pyarrow==25.0.1'
"$folder/venv/bin/python" - "$folder/table" <<'PYTHON'
import re
import sys
from importlib.metadata import distribution

import duckdb
import pyarrow as pa
from deltalake import write_deltalake

root, n_days = sys.argv[1], 8
days = [f"2026-03-{day:02d}" for day in range(1, n_days + 1)]
write_deltalake(root, pa.table({"day": days * 2, "n": list(range(2 * n_days))}), partition_by=["day"])
(extension,) = [file for file in distribution("duckdb-ext-delta").files if file.name == "delta.duckdb_extension"]
first, last = days[0], days[-1]
table = f"(SELECT * FROM delta_scan('{root}'))"
conditions = {
    "day = X": (f"SELECT n FROM {table} WHERE day = '{first}'", 1),
    "day IN (X)": (f"SELECT n FROM {table} WHERE day IN ('{first}')", 1),
    "join with one row": (f"SELECT n FROM {table} JOIN (VALUES ('{first}')) AS wanted(day) USING (day)", 1),
    "day <= second": (f"SELECT n FROM {table} WHERE day <= '{days[1]}'", 2),
    "UNION ALL of day = X, day = Y": (f"SELECT n FROM {table} WHERE day = '{first}' UNION ALL SELECT n FROM {table} WHERE day = '{last}'", 2),
    "day IN (X, Y)": (f"SELECT n FROM {table} WHERE day IN ('{first}', '{last}')", n_days),
    "day = X OR day = Y": (f"SELECT n FROM {table} WHERE day = '{first}' OR day = '{last}'", n_days),
    "join with two rows": (f"SELECT n FROM {table} JOIN (VALUES ('{first}'), ('{last}')) AS wanted(day) USING (day)", n_days),
    "day IN (X, second) AND day <= second": (f"SELECT n FROM {table} WHERE day IN ('{first}', '{days[1]}') AND day <= '{days[1]}'", 2),
}
print("DuckDB", duckdb.__version__, "on", n_days, "files, one a partition; files read by")
for name, (query, expected) in conditions.items():
    connection = duckdb.connect()
    connection.execute(f"LOAD '{extension.locate()}'")
    plan = connection.execute(f"EXPLAIN ANALYZE {query}").fetchone()[1]
    n_read = sum(map(int, re.findall(r"Total Files Read: (\d+)", plan)))
    print(f"    {name}: {n_read}")
    assert n_read == expected, "it changed"
PYTHON
