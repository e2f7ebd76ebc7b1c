"""Numbers of tasks that a pass over users or events is cut into: from the size of the data, never a constant."""

import math

from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.spark.tables import WarehouseTables

_TASK_BYTES = 64 * 2**20  # of candidates that a task writes: starting it does not show, and a lost one costs seconds
_CANDIDATE_BYTES = 12
_SHUFFLE_BYTES = 32 * 2**20  # of a table's compressed files per shuffle task: 100 to 200 MB once read
_SHUFFLE_PARTITIONS = "spark.sql.shuffle.partitions"


def count_users_per_task(n_candidates: int, embedding_dim: int) -> int:
    """Count the users whose candidates and embeddings are about ``_TASK_BYTES``, from 1,000 to 50,000."""
    per_user = n_candidates * _CANDIDATE_BYTES + embedding_dim * 4
    return min(max(_TASK_BYTES // per_user, 1_000), 50_000)


def count_user_tasks(n_users: int, per_task: int, n_cores: int) -> int:
    """Count tasks of at most ``per_task`` users, in whole rounds of ``n_cores``: a last round of one task leaves the others idle."""
    return n_cores * max(1, math.ceil(n_users / (per_task * n_cores)))


def set_shuffle_partitions(spark: SparkSession, config: Config, tables: WarehouseTables) -> None:
    """Set the number of shuffle tasks by the size of interactions, unless config or spark-submit says how many."""
    if _SHUFFLE_PARTITIONS in config.spark.conf or spark.sparkContext.getConf().contains(_SHUFFLE_PARTITIONS):
        return
    wanted = max(spark.sparkContext.defaultParallelism, math.ceil(tables.n_bytes("interactions") / _SHUFFLE_BYTES))
    spark.conf.set(_SHUFFLE_PARTITIONS, str(wanted))
