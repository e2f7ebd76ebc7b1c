"""MLlib's recommendForAllUsers on given factors: an ALSModel is written as its own save would, and loaded."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import ROOT, seconds
from pyspark.sql import SparkSession

from recsys_batch.config import load_config
from recsys_batch.spark.session import get_session
from recsys_batch.tables.list_columns import matrix_column

_WARM_UP = 2_000


def write_als(folder: Path, users: np.ndarray, items: np.ndarray) -> None:
    """A fitted ALSModel on disk: its metadata, and the factors as Parquet."""
    for part, matrix in (("userFactors", users), ("itemFactors", items)):
        (folder / part).mkdir(parents=True)
        table = pa.table({"id": pa.array(np.arange(len(matrix)), pa.int32()), "features": matrix_column(matrix)})
        pq.write_table(table, folder / part / "part-0.parquet")
    parameters = {"blockSize": 4096, "coldStartStrategy": "nan", "userCol": "user", "itemCol": "item", "predictionCol": "prediction"}
    metadata = {
        "class": "org.apache.spark.ml.recommendation.ALSModel",
        "timestamp": 0,
        "sparkVersion": "4.2.0",
        "uid": "als",
        "paramMap": {},
        "defaultParamMap": parameters,
        "rank": users.shape[1],
    }
    (folder / "metadata").mkdir()
    (folder / "metadata" / "part-00000").write_text(json.dumps(metadata) + "\n", encoding="utf-8")


def recommend(model: Path, k: int, target: Path) -> None:
    """Load the model, and write the lists of all its users to a Delta table."""
    from pyspark.ml.recommendation import ALSModel

    ALSModel.load(str(model)).recommendForAllUsers(k).write.format("delta").mode("overwrite").save(str(target))


@dataclass(frozen=True)
class MllibRate:
    """Users per second of MLlib, and the library that multiplied."""

    users_per_s: float
    blas: str


def prepare_jvm() -> None:
    """Let the JVM that starts next multiply as MLlib does best: by a native BLAS of one thread per task, or Java's vector module."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    os.environ["BASH_ENV"] = os.devnull  # sessions leave the vector module out by this variable


def name_blas(session: SparkSession) -> str:
    """Name the library that MLlib multiplies by: the native one's file, or the class of Java's."""
    jvm: Any = session._jvm
    try:
        jvm.dev.ludovic.netlib.blas.NativeBLAS.getInstance()
    except Exception:
        return str(jvm.dev.ludovic.netlib.blas.JavaBLAS.getInstance().getClass().getSimpleName())
    maps = Path(f"/proc/{jvm.java.lang.ProcessHandle.current().pid()}/maps").read_text().split()
    return next((Path(word).resolve().parent.name for word in maps if Path(word).name.startswith("libblas")), "native")


def measure_mllib(users: np.ndarray, items: np.ndarray, k: int, overrides: list[str]) -> MllibRate:
    """Measure users per second, after a warm-up, in the session of conf/local.toml, which no other may be there before."""
    prepare_jvm()
    session = get_session(load_config(ROOT / "conf" / "local.toml", [f"paths.jars={ROOT / '.jars'}", *overrides]))
    with tempfile.TemporaryDirectory(prefix="bench-mllib-") as name:
        folder = Path(name)
        write_als(folder / "warm", users[:_WARM_UP], items)
        write_als(folder / "all", users, items)
        recommend(folder / "warm", k, folder / "lists")
        rate = len(users) / seconds(lambda: recommend(folder / "all", k, folder / "lists"))
        return MllibRate(rate, name_blas(session))
