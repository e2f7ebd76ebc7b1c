#!/usr/bin/env bash
# pyarrow 25.0.1: strptime with error_is_null=True takes days that do not exist, and gives the days after the month's end.
#
# Whoever reads a column of text times with pyarrow.compute.strptime(..., error_is_null=True) counts the nulls as the rows that cannot be
# used. 31.02.2023 is none of them: it becomes 3 March, as 30.02.2023 becomes 2 March and 31.04.2023 1 May. Day 32 and month 13 are null.
# Python's own datetime.strptime refuses all of them. So rows with a wrong date pass for good ones, on another day. Check by formatting what
# was parsed again, or parse the distinct values with datetime.strptime.
#
# Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pyarrow==25.0.1' 'tzdata==2025.2'
"$folder/venv/bin/python" - <<'PYTHON'
import datetime as dt
import sys

import pyarrow as pa
import pyarrow.compute as pc

TEXTS = ["28.02.2023", "30.02.2023", "31.02.2023", "31.04.2023", "32.01.2023", "01.13.2023"]
EXPECTED = ["2023-02-28", "2023-03-02", "2023-03-03", "2023-05-01", None, None]


def by_python(text):
    try:
        return dt.datetime.strptime(text, "%d.%m.%Y").date().isoformat()
    except ValueError:
        return None


parsed = pc.strptime(pa.array(TEXTS), format="%d.%m.%Y", unit="us", error_is_null=True).to_pylist()
found = [None if time is None else time.date().isoformat() for time in parsed]
print(f"pyarrow {pa.__version__}")
for text, arrow in zip(TEXTS, found):
    print(f"{text}: pyarrow {arrow}, datetime.strptime {by_python(text)}")
sys.exit(0 if found == EXPECTED and [by_python(text) for text in TEXTS] == ["2023-02-28", *[None] * 5] else "this has changed")
PYTHON
