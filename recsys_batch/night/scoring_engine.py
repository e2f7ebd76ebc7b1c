"""Choose the engine that scores a run, once for all nodes, by what they have installed. Called where a run begins."""

import logging

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from recsys_batch.config import Config
from recsys_batch.errors import ConfigError
from recsys_batch.registry.bundle import Bundle
from recsys_batch.schemas import spark_ddl
from recsys_batch.spark.executors.engines import NODE_SCHEMA, ScoringEngine, describe_node

logger = logging.getLogger("recsys_batch.night")


def choose_scoring_engine(spark: SparkSession, config: Config, bundle: Bundle) -> ScoringEngine:
    """Choose the engine of a run's scores.

    A ranker that was brought is an ONNX model. The reference ranker is scored by torch where all nodes that answer have it, else by
    ONNX Runtime; ``scoring.engine`` decides otherwise.

    Raises:
        ConfigError: the bundle lacks the ONNX model, or nodes lack torch, that is needed.
    """
    setting, has_onnx = config.scoring.engine, bundle.ranker_path is not None
    if bundle.ranker_weights is None:
        return "onnx" if has_onnx else "none"
    if setting == "onnx":
        if not has_onnx:
            raise ConfigError("scoring.engine = onnx, and the model has no ranker.onnx: train it again, or set scoring.engine = torch")
        return "onnx"
    nodes = _ask_nodes(spark)
    without = pc.unique(nodes.filter(pc.invert(nodes["has_torch"]))["host"]).to_pylist()
    if not without:
        return "torch"
    found = f"{', '.join(without[:3])}{' and others' if len(without) > 3 else ''} of {len(nodes['host'].unique())} nodes without torch"
    if setting == "torch" or not has_onnx:
        why = "scoring.engine = torch" if setting == "torch" else "the model has no ranker.onnx"
        raise ConfigError(f"{why}, and there are {found}: install torch there, or set scoring.engine = onnx with a model that was exported")
    logger.info("scoring by ONNX Runtime: %s", found)
    return "onnx"


def _ask_nodes(spark: SparkSession) -> pa.Table:
    """Ask the executors that are there, a task per core: rows of NODE_SCHEMA. A node that joins later is found by its first task."""
    n = spark.sparkContext.defaultParallelism
    return spark.range(0, n, 1, n).mapInArrow(describe_node, spark_ddl(NODE_SCHEMA)).toArrow()
