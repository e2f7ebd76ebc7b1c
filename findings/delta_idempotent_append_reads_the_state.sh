#!/usr/bin/env bash
# delta-spark 4.4.0 on pyspark 4.2.0: an append with the options txnAppId and txnVersion reads the state of the whole table, every time.
#
# Idempotent writes are the documented way to write from foreachBatch, one small append per micro-batch. The newest version of an
# application is in the table's checksum file (NNN.crc, setTransactions), so a look-up could be free. But the append rebuilds the snapshot's
# state instead: four Spark jobs for each append, beside one without the options; three and a half times the seconds on two cores (0.45 and
# 0.13 s), and more the more files the table has. Who cannot afford that names the batch in userMetadata and looks in the log after a restart.
#
# Counts the jobs of appends to one table, prints what it saw, and fails when that changes. Needs Java 17 or newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pyspark==4.2.0' 'delta-spark==4.4.0'
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

from delta import configure_spark_with_delta_pip
from pyspark.sql import SparkSession

root = f"{sys.argv[1]}/table"
settings = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
}
builder = SparkSession.builder.master("local[2]")
for name, value in settings.items():
    builder = builder.config(name, value)
spark = configure_spark_with_delta_pip(builder).getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
tracker = spark.sparkContext.statusTracker()


def jobs_of_append(options: dict[str, object]) -> int:
    before = len(tracker.getJobIdsForGroup(None))
    writer = spark.range(10).coalesce(1).write.format("delta").mode("append")
    for name, value in options.items():
        writer = writer.option(name, value)
    writer.save(root)
    return len(tracker.getJobIdsForGroup(None)) - before


jobs_of_append({"txnAppId": "stream", "txnVersion": 0})
plain = [jobs_of_append({}) for _ in range(3)]
idempotent = [jobs_of_append({"txnAppId": "stream", "txnVersion": number}) for number in (1, 2, 3)]
newest = max(Path(root, "_delta_log").glob("*.crc"))
known = [entry for entry in json.loads(newest.read_text()).get("setTransactions", []) if entry["appId"] == "stream"]
print(f"Spark jobs of an append: {plain}; with txnAppId and txnVersion: {idempotent}")
print(f"the checksum file of the newest version has the application's version: {[entry['version'] for entry in known]}")
spark.stop()
sys.exit(0 if plain == [1, 1, 1] and idempotent == [4, 4, 4] and [entry["version"] for entry in known] == [3] else "the behaviour has changed")
PYTHON
