#!/usr/bin/env bash
# pyspark 4.2.0: a streaming query that is killed while it writes the offsets of its first batch does not start again from its checkpoint.
#
# Spark writes offsets/0 as a hidden file beside it and renames that. One would expect the hidden file of a process that died to be passed
# over, as Spark does from the second batch on. Before batch 0 it now requires the folder to be empty, and counts the hidden file: the same
# command fails with STATE_STORE_CHECKPOINT_LOCATION_NOT_EMPTY until somebody removes the folder, whether the query keeps state or not.
# Seen after a SIGKILL in a query's first moment; here the hidden file is put there.
#
# Prints what it saw, and fails when that changes. Needs Java 17 or newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pyspark==4.2.0'
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
spark.sparkContext.setLogLevel("OFF")


def start(checkpoint: Path) -> str:
    """Start a query without state; what became of it."""
    batches: list[int] = []
    writer = spark.readStream.format("rate").load().writeStream.foreachBatch(lambda batch, number: batches.append(number))
    query = writer.option("checkpointLocation", str(checkpoint)).trigger(availableNow=True).start()
    try:
        query.awaitTermination()
    except StreamingQueryException as error:
        return next((word for word in str(error).replace("[", " ").replace("]", " ").split() if "NOT_EMPTY" in word), str(error)[:200])
    return f"batches {batches}"


def with_hidden_file(name: str, after_a_batch: bool) -> str:
    checkpoint = Path(sys.argv[1]) / name
    if after_a_batch:
        start(checkpoint)
    (checkpoint / "offsets").mkdir(parents=True, exist_ok=True)
    (checkpoint / "offsets" / f".{int(after_a_batch)}.4f1c.tmp").write_text("v1")
    return start(checkpoint)


first, later = with_hidden_file("first", False), with_hidden_file("later", True)
print(f"a half-written file of the first offsets: {first}; of the second ones: {later}")
spark.stop()
sys.exit(0 if first == "STATE_STORE_CHECKPOINT_LOCATION_NOT_EMPTY" and later.startswith("batches") else "the behaviour has changed")
PYTHON
