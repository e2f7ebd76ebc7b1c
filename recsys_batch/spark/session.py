"""The Spark session: one way to get it, whether started by the command line, spark-submit or a test. Prints nothing of its own."""

import os
import sys
from importlib.metadata import version
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession
from pyspark.util import default_api_mode

from recsys_batch.config import Config
from recsys_batch.errors import UsageError
from recsys_batch.spark.java import ensure_java
from recsys_batch.spark.versions import require_delta_jar
from recsys_batch.storage.stores import find_store

_SETTINGS = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Between the JVM and its Python workers: starting a task takes 37 ms instead of 72, and nothing listens on a port.
    "spark.python.unix.domain.socket.enabled": "true",
    # Timestamps mean the same on every machine, and in every reader that is not Spark.
    "spark.sql.session.timeZone": "UTC",
    # Spark's default is INT96, which has no zone: DuckDB takes it for the wall clock of its session, and gives other instants outside UTC.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
}
_DAEMON = "recsys_batch.spark.executors.daemon"
_LAUNCHER_HOOK = Path(__file__).with_name("launcher.sh")


def get_session(config: Config) -> SparkSession:
    """Get the running session, or start one by ``config.spark``.

    Under spark-submit the master, jars and resources are those of the submit; here only what every session has is added.

    Raises:
        UsageError: the session would be one of Spark Connect; or, started without spark-submit, the Delta jars of the installed pyspark
            are not in ``paths.jars``, or those for a warehouse in a store nowhere.
    """
    _refuse_connect(config)
    builder = SparkSession.builder.appName(config.spark.app_name)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    # Other executors may get the package with their first task, which is too late for their daemon.
    daemon = {} if submitted or not config.spark.master.startswith("local") else {"spark.python.daemon.module": _DAEMON}
    for key, value in {**_SETTINGS, **daemon, **config.spark.conf}.items():
        builder = builder.config(key, value)
    if not submitted:
        ensure_java()
        # Another Spark's home, where the shell has one, would start that Spark instead of the installed one.
        os.environ.pop("SPARK_HOME", None)
        # Executors of a local master are children of this process: same interpreter, same packages.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("BASH_ENV", str(_LAUNCHER_HOOK))
        builder = builder.master(config.spark.master).config("spark.jars", _jars(config))
        builder = builder.config("spark.ui.showConsoleProgress", "false").config("spark.driver.extraJavaOptions", _java_options(config))
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def is_stopped(session: SparkSession) -> bool:
    """Whether the JVM of a session no longer answers."""
    try:
        session.sparkContext._jvm.java.lang.System.nanoTime()  # type: ignore[union-attr]
    except (Py4JError, OSError):
        return True
    return False


def _refuse_connect(config: Config) -> None:
    """Refuse a session of Spark Connect, whichever of pyspark's ways asks for one: a night needs the driver's SparkContext.

    pyspark 4 takes a URL from ``spark.remote`` or SPARK_REMOTE, and starts a server of its own for ``spark.api.mode`` or SPARK_API_MODE
    "connect"; the package pyspark-connect does the last unasked.
    """
    settings, environ = config.spark.conf, os.environ
    api_mode = settings.get("spark.api.mode", environ.get("SPARK_API_MODE", "")).lower()
    asked = {  # by name alone: the URL may hold a token
        "spark.master (sc://...)": config.spark.master.startswith("sc://"),
        "spark.remote": "spark.remote" in settings,
        "SPARK_REMOTE in the environment": "SPARK_REMOTE" in environ,
        "spark.api.mode or SPARK_API_MODE = connect": api_mode == "connect",
        "a Spark Connect session in this process (SPARK_CONNECT_MODE_ENABLED)": "SPARK_CONNECT_MODE_ENABLED" in environ,
        "the package pyspark-connect, or SPARK_CONNECT_MODE = 1": api_mode != "classic" and default_api_mode() == "connect",
    }
    ways = [way for way, is_asked in asked.items() if is_asked]
    if ways:
        raise UsageError(
            f"Spark Connect was asked for ({'; '.join(ways)}) and is not supported, as the jobs need a driver with a SparkContext: "
            "unset it, then use spark-submit for a cluster or spark.master = local[*] for this machine"
        )


def _java_options(config: Config) -> str:
    """Join the configured Java options and this package's log settings: Spark's default prints a page at every start."""
    settings = f"-Dlog4j2.configurationFile={Path(__file__).with_name('log4j2.properties')}"
    return f"{config.spark.conf.get('spark.driver.extraJavaOptions', '')} {settings}".strip()


def _jars(config: Config) -> str:
    """List the jars of a session: Delta's, those for a warehouse in a store or for Kafka, and what the config names."""
    configured = config.spark.conf.get("spark.jars", "")
    jars = [*_delta_jars(config), *(jar for jar in configured.split(",") if jar)]
    store = find_store(config.paths.warehouse)
    if store is not None and store.jars is not None:
        folder = str(getattr(config.paths, store.jars.setting))
        store_jars = sorted(Path(folder).glob("*.jar"))
        if not store_jars and store.jars.name not in configured + config.spark.conf.get("spark.jars.packages", ""):
            raise UsageError(
                f"paths.warehouse is {config.paths.warehouse}, and no jars for it are in {folder} (paths.{store.jars.setting}): "
                f"run `{store.jars.command}`, name them in spark.jars or spark.jars.packages, or submit with spark-submit --packages"
            )
        jars += [str(jar.resolve()) for jar in store_jars]
    if config.stream.source == "kafka":  # the stream says what to do where they are missing; a night does without them
        jars += [str(jar.resolve()) for jar in sorted(Path(config.paths.kafka_jars).glob("*.jar"))]
    return ",".join(jars)


def _delta_jars(config: Config) -> list[str]:
    jars = sorted(Path(config.paths.jars).glob("*.jar"))
    require_delta_jar([jar.name for jar in jars], config.paths.jars, version("pyspark"), version("delta-spark"))
    return [str(jar.resolve()) for jar in jars]
