"""The run whose lists are refreshed: that which readers see, from the moment that it is published."""

import logging

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import InputMissing
from recsys_batch.read import rows_in
from recsys_batch.schemas import TABLES, IdTypes
from recsys_batch.spark.run_artifacts import RunArtifacts
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.artifacts import artifact_root
from recsys_batch.stream.refresher import Refresher
from recsys_batch.tables import run_manifest
from recsys_batch.tables.delta_log import open_delta_table
from recsys_batch.tables.slice_writer import TableSlice

logger = logging.getLogger("recsys_batch.stream")


class RunFollower:
    """Gives the refresher of the published run. Used by one thread."""

    def __init__(self, spark: SparkSession, config: Config) -> None:
        self._spark, self._config = spark, config
        self._tables = WarehouseTables(spark, config)
        self._ids: IdTypes = self._tables.require_ids()
        self._root = artifact_root(config.paths.warehouse)
        self._tables.ensure("topk_live", self._ids)
        self._runs_folder = self._tables.folder("runs") if self._tables.exists("runs") else None
        self._runs_version: int | None = None
        self._refresher: Refresher | None = None

    def follow(self) -> Refresher:
        """Give the refresher of the run that readers see: the same one until another run is published.

        Raises:
            InputMissing: nothing is published, or it was made with other settings than these.
        """
        version = open_delta_table(self._runs_folder).version() if self._runs_folder else None
        if self._refresher is not None and version == self._runs_version:
            return self._refresher
        rows = rows_in(self._runs_folder) if self._runs_folder else []
        self._runs_version, run = version, run_manifest.newest_published(rows)
        if run is None:
            raise InputMissing(f"no night is published yet in {self._config.paths.warehouse}: run `recsys-batch nightly`")
        if self._refresher is not None and self._refresher.artifacts.run.run_id == run.run_id:
            return self._refresher
        if run.config_hash != self._config.config_hash():
            hashes = f"config hash {run.config_hash}, now {self._config.config_hash()}"
            raise InputMissing(f"run {run.run_id} was made with other settings ({hashes}): stream with those, or publish a new run")
        self.close()
        artifacts = RunArtifacts(self._config, run, self._ids, self._root)
        folder, partition = self._tables.folder("topk_live"), {"run_id": run.run_id}
        where = TableSlice(folder, TABLES["topk_live"], self._ids, partition, artifacts.file_bytes)
        layers = artifacts.list_layers(run_manifest.latest_state_by_run(rows))
        self._refresher = Refresher(self._spark, artifacts, layers, self._tables, where)
        logger.info("refreshing lists of run %s, from version %d of interactions", run.run_id, self._refresher.version)
        return self._refresher

    def close(self) -> None:
        if self._refresher is not None:
            self._refresher.close()
