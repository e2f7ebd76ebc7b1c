"""Resolve the Delta jars once into .jars/, so that every session starts without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from recsys_batch.errors import UsageError
from recsys_batch.spark.java import ensure_java

TARGET = Path(".jars")
TRIES = 3
PAUSE_S = 5
TRY_SECONDS = 600


def main(target: Path = TARGET) -> int:
    spark_minor = ".".join(version("pyspark").split(".")[:2])
    release = version("delta-spark")
    stamp = target / f"delta-{release}-spark-{spark_minor}.resolved"
    if stamp.exists():
        return 0
    try:
        ensure_java()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    coordinates = f"io.delta:delta-spark_{spark_minor}_2.13:{release}"
    said = ""
    for attempt in range(1, TRIES + 1):
        print(f"resolving {coordinates} (try {attempt} of {TRIES}) ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="recsys-batch-ivy-") as folder:
            jars, said = _resolve(coordinates, Path(folder))
            if jars:
                _keep(jars, target, stamp)
                return 0
        if attempt < TRIES:
            time.sleep(PAUSE_S * attempt)
    print(said[-2000:], file=sys.stderr)
    print(
        f"error: {coordinates} could not be resolved in {TRIES} tries (Spark's words are above); is there a network? "
        "Behind a mirror, set DEFAULT_ARTIFACT_REPOSITORY to its address and run make again",
        file=sys.stderr,
    )
    return 1


def _resolve(coordinates: str, folder: Path) -> tuple[list[Path], str]:
    """Let Spark's own Ivy download into ``folder``; Delta's jars, or none, and what Spark said.

    user.home is moved there too: a ~/.m2 that holds POMs without jars would break the resolution. SPARK_HOME is left out,
    or spark-submit would be that of another Spark. Of the 33 jars that Ivy brings, sessions need Delta's own five; the
    others come with pyspark already, or talk to a Unity Catalog server.
    """
    script = folder / "nothing.py"
    script.write_text("")
    submit = str(Path(sys.executable).with_name("spark-submit"))
    command = [submit, "--master", "local[1]", "--packages", coordinates, "--conf", f"spark.jars.ivy={folder / 'ivy'}", str(script)]
    environ = {key: value for key, value in os.environ.items() if key != "SPARK_HOME"}
    environ |= {"SPARK_SUBMIT_OPTS": f"-Duser.home={folder}", "PYSPARK_PYTHON": sys.executable}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TRY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [], f"no end after {TRY_SECONDS} seconds"
    jars = sorted((folder / "ivy" / "jars").glob("io.delta_*.jar"))
    return (jars if done.returncode == 0 else []), done.stderr


def _keep(jars: list[Path], target: Path, stamp: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for jar in jars:
        shutil.copyfile(jar, target / jar.name.removeprefix("io.delta_"))
    stamp.touch()
    print(f"Delta jars: {', '.join(path.name for path in sorted(target.glob('*.jar')))}")


if __name__ == "__main__":
    sys.exit(main())
