"""Resolve jars once into folders of their own, so that every session starts without a network: Delta's into .jars/, others by option."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from recsys_batch.errors import UsageError
from recsys_batch.spark.java import ensure_java
from recsys_batch.spark.versions import name_delta_jar

TARGET = Path(".jars")
KAFKA_RELEASE = "4.3.1"
JUNIT_RELEASE = "5.10.2"
TRIES = 3
PAUSE_S = 5
TRY_SECONDS = 600


@dataclass(frozen=True)
class Jars:
    """What is resolved: coordinates, the name of the file that says so, the beginnings of the names of jars that are kept ("" for all)."""

    what: str
    coordinates: str
    stamp: str
    group: str | tuple[str, ...]


def delta_jars() -> Jars:
    """Name the jars of the installed delta-spark for the installed pyspark. Raises UsageError where there are none for it."""
    spark_minor, release = ".".join(version("pyspark").split(".")[:2]), version("delta-spark")
    coordinates = f"io.delta:{name_delta_jar(version('pyspark'), release)}:{release}"
    return Jars("Delta jars", coordinates, f"delta-{release}-spark-{spark_minor}.resolved", "io.delta_")


def s3a_jars() -> Jars:
    """Of the Hadoop that pyspark brings: other releases do not fit it. Amazon's SDK, which they need, is 650 MB."""
    release = _hadoop_release()
    return Jars("jars for s3a://", f"org.apache.hadoop:hadoop-aws:{release}", f"hadoop-aws-{release}.resolved", "")


def _hadoop_release() -> str:
    import pyspark

    (client,) = (Path(pyspark.__file__).parent / "jars").glob("hadoop-client-api-*.jar")
    return client.stem.removeprefix("hadoop-client-api-")


def hdfs_server_jars() -> Jars:
    """A name node and data node, which tests start on loopback; 3.5.0 needs JUnit, which its own POM leaves out."""
    release = _hadoop_release()
    coordinates = f"org.apache.hadoop:hadoop-client-minicluster:{release},org.junit.jupiter:junit-jupiter-api:{JUNIT_RELEASE}"
    return Jars("HDFS server", coordinates, f"hadoop-minicluster-{release}.resolved", "")


def kafka_jars() -> Jars:
    """Spark's Kafka source, of Spark's own release; others that Ivy brings come with pyspark already."""
    release = version("pyspark")
    coordinates, stamp = f"org.apache.spark:spark-sql-kafka-0-10_2.13:{release}", f"spark-sql-kafka-{release}.resolved"
    ours = ("org.apache.spark_spark-sql-kafka", "org.apache.spark_spark-token", "org.apache.kafka_", "org.apache.commons_commons-pool2")
    return Jars("jars for Kafka", coordinates, stamp, ours)


def kafka_broker_jars() -> Jars:
    """A Kafka broker, which tests start on loopback."""
    return Jars("Kafka broker", f"org.apache.kafka:kafka_2.13:{KAFKA_RELEASE}", f"kafka-{KAFKA_RELEASE}.resolved", "")


OTHERS = {"s3a": s3a_jars, "hdfs": hdfs_server_jars, "kafka": kafka_jars, "kafka-broker": kafka_broker_jars}
"""Option -> jars; they go into .jars-OPTION."""


def main(target: Path = TARGET, wanted: Jars | None = None) -> int:
    try:
        wanted = wanted or delta_jars()
        stamp = target / wanted.stamp
        if stamp.exists():
            return 0
        ensure_java()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    coordinates, said = wanted.coordinates, ""
    for attempt in range(1, TRIES + 1):
        print(f"resolving {coordinates} (try {attempt} of {TRIES}) ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="recsys-batch-ivy-") as folder:
            jars, said = _resolve(coordinates, Path(folder))
            if jars:
                _keep([jar for jar in jars if jar.name.startswith(wanted.group)], target, stamp, wanted.what)
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
    """Let Spark's own Ivy download into ``folder``; the jars, or none, and what Spark said.

    user.home is moved there too: a ~/.m2 that holds POMs without jars would break the resolution. SPARK_HOME is left out,
    or spark-submit would be that of another Spark. Of the 33 jars that Ivy brings for Delta, sessions need its own five;
    the others come with pyspark already, or talk to a Unity Catalog server.
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
    jars = sorted((folder / "ivy" / "jars").glob("*.jar"))
    return (jars if done.returncode == 0 else []), done.stderr


def _keep(jars: list[Path], target: Path, stamp: Path, what: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for jar in jars:
        shutil.copyfile(jar, target / jar.name.partition("_")[2])  # GROUP_NAME-RELEASE.jar
    stamp.touch()
    print(f"{what}: {', '.join(path.name for path in sorted(target.glob('*.jar')))}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=OTHERS, action="append", default=[], help="Others than Delta's: for s3a:// about 690 MB.")
    parser.add_argument("--target", type=Path, default=TARGET, help="The folder of Delta's.  [default: .jars]")
    arguments = parser.parse_args()
    wanted = arguments.of
    sys.exit(max(main(Path(f".jars-{name}"), OTHERS[name]()) for name in wanted) if wanted else main(arguments.target))
