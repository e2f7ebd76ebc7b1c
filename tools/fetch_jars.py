"""Resolve the Delta jars once into .jars/, so that every session starts without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from recsys_batch.spark.java import ensure_java

TARGET = Path(".jars")
TRIES = 3


def main() -> int:
    spark_minor = ".".join(version("pyspark").split(".")[:2])
    release = version("delta-spark")
    stamp = TARGET / f"delta-{release}-spark-{spark_minor}.resolved"
    if stamp.exists():
        return 0
    ensure_java()
    coordinates = f"io.delta:delta-spark_{spark_minor}_2.13:{release}"
    for attempt in range(1, TRIES + 1):
        print(f"resolving {coordinates} (try {attempt} of {TRIES}) ...")
        with tempfile.TemporaryDirectory(prefix="recsys-batch-ivy-") as folder:
            said = _resolve(coordinates, Path(folder))
            jars = sorted((Path(folder) / "ivy" / "jars").glob("io.delta_*.jar"))
            if said.returncode == 0 and jars:
                _keep(jars, stamp)
                return 0
    print(said.stderr[-2000:], file=sys.stderr)
    print(f"error: {coordinates} could not be resolved from the Maven repositories that Spark knows; is there a network?", file=sys.stderr)
    return 1


def _resolve(coordinates: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let Spark's own Ivy download into ``folder``.

    user.home is moved there too: a ~/.m2 that holds POMs without jars would break the resolution.
    """
    script = folder / "nothing.py"
    script.write_text("")
    submit = Path(sys.executable).with_name("spark-submit")
    command = [submit, "--master", "local[1]", "--packages", coordinates, "--conf", f"spark.jars.ivy={folder / 'ivy'}", script]
    environ = {**os.environ, "SPARK_SUBMIT_OPTS": f"-Duser.home={folder}", "PYSPARK_PYTHON": sys.executable}
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600, check=False)


def _keep(jars: list[Path], stamp: Path) -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir()
    for jar in jars:
        shutil.copyfile(jar, TARGET / jar.name.removeprefix("io.delta_"))
    stamp.touch()
    print(f"Delta jars: {', '.join(path.name for path in sorted(TARGET.glob('*.jar')))}")


if __name__ == "__main__":
    sys.exit(main())
