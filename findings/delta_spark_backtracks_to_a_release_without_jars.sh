#!/usr/bin/env bash
# delta-spark 4.1.0 beside pyspark 4.3.0: what pip chooses for the newest pyspark is a Delta release that has no jars for it.
#
# delta-spark 4.2 and later cap pyspark in their metadata, 4.1.0 and 4.0 do not. So `pip install pyspark==4.3.0 delta-spark` neither takes the
# newest Delta nor says that none fits yet: it goes back to 4.1.0 and succeeds. configure_spark_with_delta_pip then names a jar by the
# installed pyspark (delta-spark_4.3_2.13:4.1.0) that was never published, and the session fails at Ivy's "not found". Who leaves both open in
# requirements gets this on the day of a Spark release: bound pyspark by what the wanted delta-spark allows (<=4.2.0 for 4.4.0).
#
# Resolves with pip (Delta releases up to 4.4.1), has Spark look for the jar, prints what it saw, and fails when that changes. Needs Java 17.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'pyspark==4.3.0' 'delta-spark<=4.4.1'
"$folder/venv/bin/pip" check
cd "$folder"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from delta import configure_spark_with_delta_pip
from pyspark.sql import SparkSession

chosen = version("delta-spark")
coordinates = configure_spark_with_delta_pip(SparkSession.builder)._options["spark.jars.packages"]
print(f"pip chose delta-spark {chosen} for pyspark {version('pyspark')}; its own configuration asks for {coordinates}")
script = Path(sys.argv[1], "nothing.py")
script.write_text("")
submit = [Path(sys.executable).with_name("spark-submit"), "--master", "local[1]", "--packages", coordinates]
submit += ["--conf", f"spark.jars.ivy={sys.argv[1]}/ivy", script]
environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_SUBMIT_OPTS": f"-Duser.home={sys.argv[1]}"}
environment.pop("SPARK_HOME", None)
done = subprocess.run(submit, env=environment, capture_output=True, text=True)
missing = [line.strip() for line in (done.stdout + done.stderr).splitlines() if "io.delta#" in line and line.strip(": ").endswith("not found")]
print(f"spark-submit: exit code {done.returncode}; {missing[:1]}")
sys.exit(0 if chosen == "4.1.0" and coordinates.endswith("_4.3_2.13:4.1.0") and done.returncode and missing else "the behaviour has changed")
PYTHON
