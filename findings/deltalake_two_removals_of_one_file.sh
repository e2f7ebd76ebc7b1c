#!/usr/bin/env bash
# deltalake (delta-rs, Python) 1.6.6: two compactions of one data file are both committed where their actions say dataChange = false, and the
# table then holds the rows twice.
#
# Delta's protocol calls two commits that remove the same file a conflict, whatever their dataChange says: the second writer has to fail or
# look again. With DeltaTable.create_write_transaction (explicit RemoveAction and AddAction, mode "append") a handle of an older version that
# commits after another has removed the file is refused with CommitFailedError if dataChange is true; if it is false, as a compaction's actions
# have to be so that followers read no row again, it is moved to the next free version without an exception. Seen: 3 rows became 6.
# CommitProperties(max_commit_retries=0) refuses it in both cases; the caller then looks again.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'deltalake==1.6.6' 'pyarrow==25.0.1'
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import os
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction


def replace(table: DeltaTable, root: str, old: dict, name: str, data_change: bool, properties: CommitProperties) -> None:
    """Replace a file of three rows by a copy of it."""
    pq.write_table(pa.table({"n": [1, 2, 3]}), f"{root}/{name}")
    size, now = os.path.getsize(f"{root}/{name}"), int(time.time() * 1000)
    actions = [
        RemoveAction(old["path"], data_change, now, old["size_bytes"], {}),
        AddAction(name, size, {}, now, data_change, json.dumps({"numRecords": 3})),
    ]
    table.create_write_transaction(actions, "append", table.schema(), [], commit_properties=properties)


def rows_after_two(root: str, data_change: bool, properties: CommitProperties) -> str:
    write_deltalake(root, pa.table({"n": [1, 2, 3]}))
    (old,) = pa.table(DeltaTable(root).get_add_actions()).to_pylist()
    first, second = DeltaTable(root), DeltaTable(root)  # both see version 0
    replace(first, root, old, "a.parquet", data_change, properties)
    try:
        replace(second, root, old, "b.parquet", data_change, properties)
    except CommitFailedError:
        return "the second commit was refused"
    now = DeltaTable(root)
    return f"both were committed, version {now.version()}, {now.to_pyarrow_table().num_rows} rows of 3"


root = sys.argv[1]
seen = {
    "dataChange = true": rows_after_two(f"{root}/true", True, CommitProperties()),
    "dataChange = false": rows_after_two(f"{root}/false", False, CommitProperties()),
    "dataChange = false, max_commit_retries = 0": rows_after_two(f"{root}/none", False, CommitProperties(max_commit_retries=0)),
}
for name, what in seen.items():
    print(f"{name}: {what}")
refused = "the second commit was refused"
expected = [refused, "both were committed, version 2, 6 rows of 3", refused]
sys.exit(0 if list(seen.values()) == expected else "the behaviour has changed")
PYTHON
