"""The only reader and writer of Delta tables on Spark: by path under the warehouse, or by name in a catalog.

Every write names itself in the commit's userMetadata, and the version it returns is found by that, not by "latest":
maintenance may commit right after.
"""

import json
import uuid
from collections.abc import Mapping
from typing import Any, cast

import pyarrow as pa
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, DataFrameWriter, SparkSession
from pyspark.sql.types import StringType

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing, UsageError
from recsys_batch.schemas import TABLES, Column, IdTypes, spark_type
from recsys_batch.storage.filesystems import absolute, join
from recsys_batch.tables.delta_log import find_commit, open_delta_table

_PROPERTIES = {
    # Readers without a JVM (deltalake, DuckDB, Polars) need protocol version 1: see docs/decisions.
    "delta.enableDeletionVectors": "false",
    "delta.checkpointPolicy": "classic",
    "delta.columnMapping.mode": "none",
}


class WarehouseTables:
    """Delta tables of one warehouse: ``config.catalog`` or ``config.paths.warehouse`` says where, ``config.tables`` how they are kept."""

    def __init__(self, spark: SparkSession, config: Config) -> None:
        self._spark = spark
        self._config = config

    def identifier(self, name: str) -> str:
        """Name the table as SQL does: a catalog name or delta.`path`."""
        return f"{self._config.catalog}.{name}" if self._config.catalog else f"delta.`{self.path(name)}`"

    def path(self, name: str) -> str:
        """Locate the table's folder under the warehouse; absolute, as SQL takes only absolute paths for table names."""
        warehouse = self._config.paths.warehouse
        return join(warehouse if warehouse.startswith("file:") else absolute(warehouse), name)

    def folder(self, name: str) -> str:
        """Locate the table's folder, in a catalog too: a path that every node mounts under the same name, or a URI.

        Raises UsageError where the table is kept in a store that a night cannot write to.
        """
        location = cast("Any", self.delta(name).detail().select("location").head())[0] if self._config.catalog else self.path(name)
        return absolute(str(location))

    def exists(self, name: str) -> bool:
        if self._config.catalog:
            return self._spark.catalog.tableExists(self.identifier(name))
        return bool(DeltaTable.isDeltaTable(self._spark, self.path(name)))

    def delta(self, name: str) -> DeltaTable:
        """Open Delta's own handle of a table (history, merge, optimize). Raises InputMissing where the table does not exist."""
        self._require(name)
        if self._config.catalog:
            return DeltaTable.forName(self._spark, self.identifier(name))
        return DeltaTable.forPath(self._spark, self.path(name))

    def version(self, name: str) -> int:
        """Read the newest committed version of a table."""
        return int(cast("Any", self.delta(name).history(1).head())["version"])

    def read(self, name: str, version: int | None = None) -> DataFrame:
        """Read a table, or a past version of it. Raises InputMissing where the table does not exist."""
        self._require(name)
        reader = self._spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        return reader.table(self.identifier(name)) if self._config.catalog else reader.load(self.path(name))

    def ids(self) -> IdTypes | None:
        """Read the id types of this warehouse, as the interactions table has them; None before the first ingest."""
        return self.require_ids() if self.exists("interactions") else None

    def require_ids(self) -> IdTypes:
        """Read the id types of this warehouse. Raises InputMissing before the first ingest."""
        schema = self.read("interactions").schema
        text = {name: isinstance(schema[name].dataType, StringType) for name in ("user_id", "item_id")}
        return IdTypes(user="STRING" if text["user_id"] else "BIGINT", item="STRING" if text["item_id"] else "BIGINT")

    def ensure(self, name: str, ids: IdTypes) -> bool:
        """Create the table by the contract if it is missing, and the catalog's schema; whether it was. One that an older release wrote
        gets the nullable columns that it lacks.
        """
        if self.exists(name):
            self._add_missing_columns(name, ids)
            return False
        catalog = self._config.catalog
        if catalog and not self._spark.catalog.databaseExists(catalog):
            self._spark.sql(f"CREATE DATABASE IF NOT EXISTS {catalog}")
        spec = TABLES[name]
        columns = ", ".join(_column_sql(column, ids) for column in spec.columns)
        layout = f" PARTITIONED BY ({', '.join(spec.partition_by)})" if spec.partition_by else ""
        layout += f" CLUSTER BY ({', '.join(spec.cluster_by)})" if spec.cluster_by else ""
        retention = f"interval {self._config.tables.retention_days} days"
        properties = {
            **_PROPERTIES,
            "delta.deletedFileRetentionDuration": retention,
            "delta.logRetentionDuration": retention,
            "delta.dataSkippingStatsColumns": ",".join(spec.stats_columns(ids)),
            **{f"delta.constraints.{check}": sql for check, sql in spec.checks.items()},
            **({"delta.checkpointInterval": str(spec.checkpoint_interval)} if spec.checkpoint_interval else {}),
        }
        property_list = ", ".join(f"{_sql_string(k)} = {_sql_string(v)}" for k, v in properties.items())
        self._spark.sql(
            f"CREATE TABLE IF NOT EXISTS {self.identifier(name)} ({columns}) USING delta{layout} "
            f"COMMENT {_sql_string(spec.comment)} TBLPROPERTIES ({property_list})"
        )
        return True

    def _add_missing_columns(self, name: str, ids: IdTypes) -> None:
        existing = set(self.read(name).columns)
        missing = [_column_sql(column, ids) for column in TABLES[name].columns if column.nullable and column.name not in existing]
        if missing:
            self._spark.sql(f"ALTER TABLE {self.identifier(name)} ADD COLUMNS ({', '.join(missing)})")

    def append(self, name: str, df: DataFrame, metadata: Mapping[str, Any]) -> int:
        """Append rows; returns the committed version."""
        return self._write(name, df.write.mode("append"), metadata)

    def append_batch(self, name: str, df: DataFrame, batch: str) -> None:
        """Append the rows of a numbered batch, which ``delta_log.find_last_batch`` finds again.

        Delta's own txnAppId and txnVersion would do it, but for their look-up the table's state is read anew in every append: 0.45 s
        instead of 0.13 on two cores.

        Args:
            batch: of ``delta_log.batch_metadata``.
        """
        self._save(name, df.write.mode("append").option("userMetadata", batch))

    def replace_slice(self, name: str, df: DataFrame, predicate: str, metadata: Mapping[str, Any]) -> int:
        """Replace the rows for which ``predicate`` (SQL over partition columns) holds; the same call again changes nothing."""
        return self._write(name, df.write.mode("overwrite").option("replaceWhere", predicate), metadata)

    def upsert(self, name: str, df: DataFrame, key: str, metadata: Mapping[str, Any]) -> int:
        """Update the rows whose ``key`` is already there, insert the others; returns the committed version."""
        token = self._commit_token(metadata)
        self._spark.conf.set("spark.databricks.delta.commitInfo.userMetadata", token)
        try:
            merge = self.delta(name).alias("old").merge(df.alias("new"), f"old.`{key}` = new.`{key}`")
            merge.whenMatchedUpdateAll().whenNotMatchedInsertAll().execute()
        finally:
            self._spark.conf.unset("spark.databricks.delta.commitInfo.userMetadata")
        return self._committed_version(name, token)

    def n_bytes(self, name: str) -> int:
        """Sum the sizes of an existing table's newest files, by deltalake, which needs no job for it."""
        return sum(pa.table(open_delta_table(self.folder(name)).get_add_actions())["size_bytes"].to_pylist())

    def set_property(self, name: str, key: str, value: str) -> None:
        self._spark.sql(f"ALTER TABLE {self.identifier(name)} SET TBLPROPERTIES ({_sql_string(key)} = {_sql_string(value)})")

    def property(self, name: str, key: str) -> str | None:
        properties = cast("Any", self.delta(name).detail().select("properties").head())["properties"]
        return cast("str | None", properties.get(key))

    def _require(self, name: str) -> None:
        if not self.exists(name):
            raise InputMissing(f"table {name} does not exist ({self.identifier(name)}): {_command_hint(name)}")

    def _write(self, name: str, writer: DataFrameWriter, metadata: Mapping[str, Any]) -> int:
        token = self._commit_token(metadata)
        self._save(name, writer.option("userMetadata", token))
        return self._committed_version(name, token)

    def _save(self, name: str, writer: DataFrameWriter) -> None:
        if self._config.catalog:
            writer.format("delta").saveAsTable(self.identifier(name))
        else:
            writer.format("delta").save(self.path(name))

    @staticmethod
    def _commit_token(metadata: Mapping[str, Any]) -> str:
        return json.dumps({**metadata, "commit": uuid.uuid4().hex}, sort_keys=True)

    def _committed_version(self, name: str, token: str) -> int:
        """Find the version whose commit has the token; the newest one where Delta found nothing to change and made no commit."""
        if not self._config.catalog:  # without a job of Spark's, which takes 0.4 s
            version = find_commit(self.folder(name), token)
            return self.version(name) if version is None else version
        history = self.delta(name).history(20).select("version", "userMetadata").collect()
        versions = [int(row["version"]) for row in history if row["userMetadata"] == token]
        return versions[0] if versions else int(history[0]["version"])


def parse_identifier(spark: SparkSession, text: str) -> DataFrame:
    """Read a table that a user names: a catalog name, or a folder that holds Delta or Parquet files.

    Raises UsageError where nothing readable is there.
    """
    try:
        if DeltaTable.isDeltaTable(spark, text):
            return spark.read.format("delta").load(text)
        if "/" in text or text.endswith(".parquet"):
            return spark.read.parquet(text)
        return spark.read.table(text)
    except Exception as error:
        first_line = str(error).splitlines()[0]
        raise UsageError(f"{text} is neither a Delta table, a Parquet folder nor a catalog table: {first_line}") from None


def _command_hint(name: str) -> str:
    if name in ("exposures", "feedback"):
        return "run `recsys-batch ingest --format exposures` first"
    if name in ("interactions", "items", "users", "holdout"):
        return "run `recsys-batch ingest` first"
    return "run `recsys-batch nightly` first"


def _column_sql(column: Column, ids: IdTypes) -> str:
    null = "" if column.nullable else " NOT NULL"
    return f"`{column.name}` {spark_type(column.arrow(ids).type)}{null} COMMENT {_sql_string(column.comment)}"


def _sql_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
