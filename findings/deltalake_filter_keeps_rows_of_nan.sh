#!/usr/bin/env bash
# deltalake 1.6.6 with pyarrow 25.0.1: DeltaTable.to_pyarrow_dataset() gives rows that the filter does not hold for, where a column has NaN.
#
# Statistics of a file leave NaN out, as Delta and Parquet allow: of 1.0 and NaN both bounds are 1.0. deltalake hands them to Arrow as a
# guarantee of every row of the file. Arrow then knows that score < 10 holds, takes the filter out, and the NaN row comes back, though NaN < 10
# is false in Arrow's own arithmetic. The same filter on the same rows in memory, or on the files by themselves, leaves it out; and score > 10
# agrees, as no row is there. So one filter has two answers, by whether a file holds values on both sides of the bound. Store no NaN, or filter
# again in memory.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'deltalake==1.6.6' 'pyarrow==25.0.1'
"$folder/venv/bin/python" - "$folder/table" <<'PYTHON'
import sys

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable, write_deltalake

root = sys.argv[1]
rows = pa.table({"name": ["one", "not a number"], "score": [1.0, float("nan")]})
write_deltalake(root, rows)
table = DeltaTable(root)
bounds = pa.table(table.get_add_actions(flatten=True)).select(["min.score", "max.score"]).to_pylist()
low = pc.field("score") < 10.0

in_memory = rows.filter(low)["name"].to_pylist()
of_files = ds.dataset(table.file_uris()).to_table(filter=low)["name"].to_pylist()
of_table = table.to_pyarrow_dataset().to_table(filter=low)["name"].to_pylist()
write_deltalake(root, pa.table({"name": ["one", "not a number", "hundred"], "score": [1.0, float("nan"), 100.0]}), mode="overwrite")
mixed = DeltaTable(root).to_pyarrow_dataset().to_table(filter=low)["name"].to_pylist()

print(f"deltalake {deltalake.__version__}, pyarrow {pa.__version__}; bounds of the file: {bounds}")
print(f"score < 10 in memory: {in_memory}")
print(f"score < 10 of the files by themselves: {of_files}")
print(f"score < 10 of the table's dataset: {of_table}")
print(f"score < 10 of the table's dataset, 100.0 in the file, too: {mixed}")
expected = in_memory == of_files == mixed == ["one"] and of_table == ["one", "not a number"]
sys.exit(0 if expected else "this has changed")
PYTHON
