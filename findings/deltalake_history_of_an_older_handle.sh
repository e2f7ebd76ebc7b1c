#!/usr/bin/env bash
# deltalake (delta-rs, Python) 1.6.6: DeltaTable.history() on a handle that is older than the log gives commits wrong version numbers.
#
# A handle shows the table as of its version, so its history should end there, and the "version" of an entry should be the number of the
# commit's file in _delta_log. Instead it reads every commit that is there by now and numbers them downwards from the handle's own version:
# what came later has the handle's number, and the first ones have negative ones. A limit is not kept to either: history(1) gives all. Whoever
# tails a table by version with a handle that lives while others write handles commits twice, or under another's number. Reading
# _delta_log/VERSION.json gives the right ones.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'deltalake==1.6.6' 'pyarrow==25.0.1'
"$folder/venv/bin/python" - "$folder/table" <<'PYTHON'
import json
import sys
from pathlib import Path

import deltalake
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake

root = sys.argv[1]


def append(name: str) -> None:
    properties = CommitProperties(custom_metadata={"name": name})
    write_deltalake(root, pa.table({"n": [1]}), mode="append", commit_properties=properties)


def said(history: list[dict]) -> list[tuple[int, str]]:
    return [(entry["version"], entry["name"]) for entry in history]


append("zero")
older = DeltaTable(root)
for name in ("one", "two", "three"):
    append(name)
in_log = []
for path in sorted(Path(root, "_delta_log").glob("*.json")):
    actions = [json.loads(line) for line in path.read_text().splitlines()]
    in_log.append((int(path.stem), next(action["commitInfo"]["name"] for action in actions if "commitInfo" in action)))

print("deltalake", deltalake.__version__)
print("in the log:                       ", in_log)
print("history of a handle of version 3: ", said(DeltaTable(root).history()))
print("history of a handle of version 0: ", said(older.history()), "of version", older.version())
print("of it by history(1):              ", said(older.history(1)))
assert said(DeltaTable(root).history()) == in_log[::-1]
assert older.version() == 0
assert len(DeltaTable(root).history(1)) == 1
assert said(older.history()) == said(older.history(1)) == [(0, "three"), (-1, "two"), (-2, "one"), (-3, "zero")], "it changed"
PYTHON
