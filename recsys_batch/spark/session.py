"""The Spark session: one way to get it, whether started by the command line, spark-submit or a test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import UsageError
from recsys_batch.spark.java import ensure_java

_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Between the JVM and its Python workers: starting a task takes 37 ms instead of 72, and nothing listens on a port.
    "spark.python.unix.domain.socket.enabled": "true",
    # Timestamps mean the same on every machine, and in every reader that is not Spark.
    "spark.sql.session.timeZone": "UTC",
}


def get_session(config: Config) -> SparkSession:
    """The running session, or a new one by ``config.spark``.

    Under spark-submit the master, jars and resources are those of the submit; here only what every session has is added.

    Raises:
        UsageError: started without spark-submit and the Delta jars are not in ``paths.jars``.
    """
    builder = SparkSession.builder.appName(config.spark.app_name)
    for key, value in {**_SETTINGS, **config.spark.conf}.items():
        builder = builder.config(key, value)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not submitted:
        ensure_java()
        # Another Spark's home, where the shell has one, would start that Spark instead of the installed one.
        os.environ.pop("SPARK_HOME", None)
        # Executors of a local master are children of this process: same interpreter, same packages.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = builder.master(config.spark.master).config("spark.jars", _delta_jars(config))
        builder = builder.config("spark.ui.showConsoleProgress", "false").config("spark.driver.extraJavaOptions", _java_options(config))
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def _java_options(config: Config) -> str:
    """What the config asks for, and this package's log settings: Spark's default prints a page at every start."""
    settings = f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}"
    return f"{config.spark.conf.get('spark.driver.extraJavaOptions', '')} {settings}".strip()


def _delta_jars(config: Config) -> str:
    jars = sorted(Path(config.paths.jars).glob("*.jar"))
    if not any("delta-spark" in jar.name for jar in jars):
        raise UsageError(
            f"no Delta jars in {config.paths.jars} (paths.jars): run `make setup`, which resolves them once, "
            "or submit with spark-submit --packages"
        )
    return ",".join(str(jar.resolve()) for jar in jars)
