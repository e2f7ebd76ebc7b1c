"""Benchmark pairs per second of the score step in Spark, files to files, against the same torch model in one process with as many threads.

Spark reads candidates and embeddings from Parquet, looks up ids, scores, takes the top K, writes topk and commits. The model alone
gets users, codes and scores as arrays in memory and only scores them (the gather of item vectors included).

    make bench-scoring USERS=100000 ITEMS=50000 DIM=64 K=200
"""

import argparse
import datetime as dt
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measuring import ROOT, WorkerMemory, interleaved, per_second, report
from vectors import generated

from recsys_batch.config import load_config
from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.model.ranker import Ranker, RankerParameters
from recsys_batch.night.task_sizing import count_user_tasks, count_users_per_task
from recsys_batch.ranking.features import FeatureSpec, PairFeatures
from recsys_batch.registry.bundle import write_bundle
from recsys_batch.schemas import TABLES, IdTypes, spark_ddl
from recsys_batch.spark.executors.functions import apply_by_range
from recsys_batch.spark.executors.part_writer import make_part_writer
from recsys_batch.spark.executors.score import ScoreTask, ScoringInput, score_range
from recsys_batch.spark.session import get_session
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.delta_log import commit
from recsys_batch.tables.list_columns import list_column, matrix_column
from recsys_batch.tables.slice_writer import DATA_FILE_SCHEMA, DataFile, TableSlice, data_file_from_row
from recsys_batch.tables.user_ranges import UserSortedFiles, ranges_of_files

IDS = IdTypes("BIGINT", "BIGINT")
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=200, help="candidates per user")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-scoring-"))
    try:
        measure(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    n, k = arguments.users, arguments.k
    config = load_config(ROOT / "conf" / "local.toml", [f"paths.warehouse={folder}", f"paths.jars={ROOT / '.jars'}"])
    factors = generated(n, arguments.items, arguments.dim, arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    codes = np.sort(rng.integers(0, arguments.items // k, size=(n, k)) + np.arange(k) * (arguments.items // k), axis=1)
    retrieval = rng.normal(size=(n, k)).astype(np.float32)
    popularity = rng.normal(size=arguments.items).astype(np.float32)
    catalogue = Catalogue(
        pa.array(np.arange(arguments.items)),
        factors.items,
        np.zeros((arguments.items, 0), np.float32),
        popularity,
        np.ones(arguments.items, bool),
    )
    (folder / "catalogue").mkdir()
    write_catalogue(folder / "catalogue", catalogue)
    parameters = RankerParameters.initialize(arguments.dim, len(FeatureSpec.default().names), arguments.seed)
    parameters.output += 0.01
    manifest = {"kind": "two_tower", "embedding_dim": arguments.dim, "features": FeatureSpec.default().to_dict()}
    bundle = write_bundle(folder / "bundle", manifest, tensors=parameters.to_arrays())
    spark = get_session(config)
    tables = WarehouseTables(spark, config)

    def slice_of(name: str) -> TableSlice:
        tables.ensure(name, IDS)
        partition = {"run_id": "r1"} | ({"run_date": NOW.date()} if name == "topk" else {})
        return TableSlice(tables.folder(name), TABLES[name], IDS, partition, config.tables.target_file_mb * 2**20)

    candidates, embeddings, topk = (slice_of(name) for name in ("candidates", "user_embeddings", "topk"))
    parts: list[DataFile] = []
    known: list[DataFile] = []
    per_file = -(-n // count_user_tasks(n, count_users_per_task(k, arguments.dim), spark.sparkContext.defaultParallelism))
    for start in range(0, n, per_file):
        rows = slice(start, min(start + per_file, n))
        users = pa.array(np.arange(rows.start, rows.stop))
        pairs = pa.StructArray.from_arrays([pa.array(codes[rows].ravel()), pa.array(retrieval[rows].ravel())], ["item_id", "score"])
        lists = list_column(pairs, np.arange(len(users) + 1) * k)
        parts += candidates.write([pa.RecordBatch.from_arrays([users, lists], names=["user_id", "items"])], start)
        vectors = matrix_column(factors.users[rows])
        columns = [users, vectors, pa.array(np.full(len(users), 9, np.int32))]
        known += embeddings.write([pa.RecordBatch.from_arrays(columns, names=["user_id", "embedding", "n_events"])], start)
    commit(candidates, parts, {})
    commit(embeddings, known, {})
    task = ScoreTask(
        "r1",
        NOW.date(),
        NOW,
        "1",
        IDS,
        str(bundle.path),
        str(folder / "catalogue"),
        k,
        arguments.top_k,
        config.scoring.batch_users,
        NodeCache.from_paths(config.paths),
        "torch" if config.scoring.engine == "auto" else config.scoring.engine,
    )

    lists, bounds = ScoringInput(UserSortedFiles(candidates, parts), UserSortedFiles(embeddings, known)), ranges_of_files(parts)

    def in_spark() -> None:
        numbers = spark.range(0, len(bounds), 1, len(bounds))
        rows = numbers.mapInArrow(
            make_part_writer(apply_by_range(partial(score_range, task, lists), bounds), topk), spark_ddl(DATA_FILE_SCHEMA)
        ).collect()
        commit(topk, [data_file_from_row(row.asDict()) for row in rows], {})

    ranker = Ranker.from_bundle(bundle)
    torch.set_num_threads(os.cpu_count() or 1)

    def raw() -> None:
        for start in range(0, n, config.scoring.batch_users):
            rows = slice(start, start + config.scoring.batch_users)
            features = PairFeatures.from_raw(
                FeatureSpec.default(),
                retrieval_score=retrieval[rows],
                log_popularity=popularity[codes[rows]],
                n_events=np.full(len(codes[rows]), 9),
            )
            ranker.score_without_context(factors.users[rows], factors.items, codes[rows], features)

    in_spark()
    with WorkerMemory() as memory:
        times = interleaved(arguments.repeats, spark=in_spark, raw=raw)
    rate, raw_rate = per_second(n * k, times["spark"]), per_second(n * k, times["raw"])
    result = {"pairs_per_s": round(rate), "raw_pairs_per_s": round(raw_rate), "ratio": round(rate / raw_rate, 3)}
    report("scoring", vars(arguments), {"seconds": times, "peak_worker_rss_mb": memory.peak_rss_mb, "users_per_s": rate / k}, result)


if __name__ == "__main__":
    main()
