"""Benchmark candidate generation: MLlib's recommendForAllUsers, our exact and ivf, and raw faiss, on the same factors in one run.

All of Spark's share one session and its settings, read the same Parquet factors and write Delta, ours from its tasks as a night does,
MLlib's by Spark. faiss runs in one
process with as many threads as the session has cores; the ratios to it are taken without a sink. faiss's inverted file is given
the very lists, centroids and nprobe of ours, so both reach the same recall. Recall is measured on what was written, for users that
the tuning did not see, against all products in float64.

    make bench-retrieval USERS=100000 ITEMS=50000 DIM=64 K=200
    python benchmarks/retrieval.py --vectors words|WAREHOUSE
"""

import argparse
import datetime as dt
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import ROOT, WorkerMemory, interleaved, per_second, report, seconds
from mllib import name_blas, prepare_jvm, recommend, write_als
from vectors import Factors, generated, published, words

from recsys_batch.ann.index import IndexInfo, build_index
from recsys_batch.ann.kernels import import_faiss, limit_threads
from recsys_batch.ann.search import open_retriever
from recsys_batch.ann.tuning import Tuning, TuningSample, tune
from recsys_batch.config import Config, load_config
from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.night.run_context import write_files
from recsys_batch.night.task_sizing import count_user_tasks, count_users_per_task
from recsys_batch.read import read_table
from recsys_batch.schemas import TABLES, IdTypes, spark_ddl
from recsys_batch.spark.executors.functions import BatchFunction
from recsys_batch.spark.executors.retrieve import RetrieveTask, make_retriever
from recsys_batch.spark.session import get_session
from recsys_batch.spark.tables import WarehouseTables
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.delta_log import commit
from recsys_batch.tables.list_columns import matrix_column
from recsys_batch.tables.slice_writer import TableSlice

IDS = IdTypes("BIGINT", "BIGINT")
_WARM_UP = 2_000
_HELD_OUT = 2_000
_FAISS_BLOCK = 10_000
_FILE_BYTES = 2**26


class Bench:
    """Factors in the formats of the night and of MLlib."""

    def __init__(self, factors: Factors, k: int, mllib_users: int, config: Config, folder: Path) -> None:
        self.factors, self.k, self.folder = factors, k, folder
        self.n_users = len(factors.users)
        self.mllib_users = min(mllib_users, self.n_users)
        settings = config.retrieval.model_copy(update={"mode": "ivf", "n_candidates": k})
        n_items, dim = factors.items.shape
        catalogue = Catalogue(
            item_ids=pa.array(np.arange(n_items)),
            embeddings=factors.items,
            history=np.zeros((n_items, 0), np.float32),
            log_popularity=np.zeros(n_items, np.float32),
            retrievable=np.ones(n_items, bool),
        )
        (folder / "catalogue").mkdir()
        write_catalogue(folder / "catalogue", catalogue)
        self.n_cores = os.cpu_count() or 1
        self.build_seconds = seconds(lambda: self._build(settings))
        self.tune_seconds = seconds(lambda: self._tune(settings))
        table = pa.table({"user_id": pa.array(np.arange(self.n_users)), "embedding": matrix_column(factors.users)})
        pq.write_table(table, folder / "users.parquet", row_group_size=10_000)
        write_als(folder / "als", factors.users[: self.mllib_users], factors.items)
        write_als(folder / "als-warm", factors.users[: min(_WARM_UP, self.mllib_users)], factors.items)
        prepare_jvm()
        self.spark = get_session(config)
        self.tables = WarehouseTables(self.spark, config)
        self.tables.ensure("candidates", IDS)
        self.n_tasks = count_user_tasks(self.n_users, count_users_per_task(k, dim), self.spark.sparkContext.defaultParallelism)

    def _build(self, settings: Any) -> None:
        self.info = build_index(self.factors.items, settings, self.folder / "index", self.n_cores)

    def _tune(self, settings: Any) -> None:
        # Tuned on the users from the end, measured on the users from the start.
        retriever, exact = self._retriever(self.info), self._retriever(self.info.as_exact())
        sample = TuningSample(self.factors.users[-settings.tuning_users :], retriever, exact)
        self.tuning: Tuning = tune(retriever, [sample], self.k, settings.target_recall, settings)

    def _retriever(self, info: IndexInfo) -> Any:
        return open_retriever(self.folder / "index", info, n_threads=self.n_cores)

    def mllib(self, name: str = "als") -> None:
        recommend(self.folder / name, self.k, self.folder / "mllib")

    def users(self, n_users: int) -> Any:
        """Read the first users as the night's tasks have them: by ranges, in order."""
        from pyspark.sql import functions as F

        users = self.spark.read.parquet(str(self.folder / "users.parquet")).where(F.col("user_id") < n_users)
        nothing = F.lit(None)
        users = users.select("user_id", "embedding", nothing.cast("array<bigint>").alias("seen"), nothing.cast("string").alias("segment"))
        return users.repartitionByRange(self.n_tasks, "user_id").sortWithinPartitions("user_id")

    def retriever(self, mode: str) -> BatchFunction:
        """Make the night's executor code that computes rows of candidates."""
        info = self.info if mode == "ivf" else self.info.as_exact()
        none = np.zeros(0, np.int64), np.zeros(0, np.float32)
        task = RetrieveTask(
            run_id=mode,
            ids=IDS,
            catalogue_dir=str(self.folder / "catalogue"),
            index_dir=str(self.folder / "index"),
            index=info.to_dict(),
            nprobe=self.tuning.nprobe,
            overfetch=self.tuning.overfetch,
            n_candidates=self.k,
            popular={"all": none},
            seen=make_seen_policy("exclude", dt.date(2026, 3, 1)),
            cache=NodeCache(str(self.folder / "cache")),
        )
        return make_retriever(task)

    def to_delta(self, mode: str, n_users: int | None = None) -> None:
        target = TableSlice(self.tables.folder("candidates"), TABLES["candidates"], IDS, {"run_id": mode}, _FILE_BYTES)
        commit(target, write_files(target, self.users(n_users or self.n_users), self.retriever(mode)), {"run_id": mode})

    def to_nowhere(self, mode: str) -> None:
        rows = self.users(self.n_users).mapInArrow(self.retriever(mode), spark_ddl(TABLES["candidates"].arrow_schema(IDS)))
        rows.write.format("noop").mode("overwrite").save()

    def faiss_index(self, mode: str) -> Any:
        faiss = import_faiss()
        items, dim = self.factors.items, self.factors.items.shape[1]
        limit_threads(self.n_cores)
        if mode == "exact":
            index = faiss.IndexFlatIP(dim)
            index.add(items)
            return index
        ours = self._retriever(self.info)
        centroids = faiss.IndexFlatIP(dim)
        centroids.add(ours.centroids)
        index = faiss.IndexIVFFlat(centroids, dim, ours.nlist, faiss.METRIC_INNER_PRODUCT)
        index.is_trained = True
        codes, lists = ours.items.codes, np.repeat(np.arange(ours.nlist), ours.lists.sizes)
        rows = np.ascontiguousarray(items[codes])
        index.add_core(len(rows), *(faiss.swig_ptr(array) for array in (rows, codes, lists)))
        index.nprobe = self.tuning.nprobe
        return index

    def faiss_all(self, index: Any) -> None:
        limit_threads(self.n_cores)
        for start in range(0, self.n_users, _FAISS_BLOCK):
            index.search(self.factors.users[start : start + _FAISS_BLOCK], self.k)

    def recall(self, mode: str) -> float:
        """Compute the mean share of the true top k that was written, for the first users; ties with the true k-th count."""
        import pyarrow.dataset as ds

        n = min(_HELD_OUT, self.n_users)
        where = (ds.field("run_id") == mode) & (ds.field("user_id") < n)
        table = read_table(str(self.folder), "candidates", columns=["user_id", "items"], where=where).sort_by("user_id")
        assert table.num_rows == n, f"{table.num_rows} of {n} users were written"
        truth = self.factors.users[:n].astype(np.float64) @ self.factors.items.astype(np.float64).T
        shares = []
        for row, items in enumerate(table["items"].to_pylist()):
            item_ids = {item["item_id"] for item in items}
            assert len(item_ids) == min(self.k, truth.shape[1])
            kth = np.partition(truth[row], -len(item_ids))[-len(item_ids)]
            shares.append(np.count_nonzero(truth[row, list(item_ids)] >= kth - 1e-6 * abs(kth)) / len(item_ids))
        return float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--mllib-users", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vectors", default="generated", help="generated, words, or a warehouse with a night")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.vectors == "generated":
        factors = generated(arguments.users, arguments.items, arguments.dim, arguments.seed)
    elif arguments.vectors == "words":
        factors = words(arguments.users, arguments.seed)
    else:
        factors = published(Path(arguments.vectors))
    folder = Path(tempfile.mkdtemp(prefix="bench-retrieval-"))
    try:
        settings = [f"paths.warehouse={folder}", f"paths.jars={ROOT / '.jars'}", *arguments.set]
        bench = Bench(factors, arguments.k, arguments.mllib_users, load_config(ROOT / "conf" / "local.toml", settings), folder)
        measure(bench, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(bench: Bench, arguments: argparse.Namespace) -> None:
    n_items, dim = bench.factors.items.shape
    print(f"{bench.n_users} users x {n_items} items x {dim}, k = {bench.k}: {bench.factors.origin}")
    print(f"built in {bench.build_seconds:.1f} s, tuned in {bench.tune_seconds:.1f} s")
    print(f"{bench.tuning.nprobe} of {bench.info.nlist} lists searched")
    warm = min(_WARM_UP, bench.n_users)
    bench.mllib("als-warm")
    flat = bench.faiss_index("exact")
    # Where all lists would be searched, ours is an exact product, and faiss's flat index is the better opponent.
    ivf = flat if bench.tuning.nprobe == bench.info.nlist else bench.faiss_index("ivf")
    with WorkerMemory() as memory:
        for mode in ("exact", "ivf"):
            bench.to_delta(mode, warm)
        delta = interleaved(arguments.repeats, exact=lambda: bench.to_delta("exact"), ivf=lambda: bench.to_delta("ivf"))
        bare = interleaved(
            arguments.repeats,
            exact=lambda: bench.to_nowhere("exact"),
            faiss_exact=lambda: bench.faiss_all(flat),
            ivf=lambda: bench.to_nowhere("ivf"),
            faiss_ivf=lambda: bench.faiss_all(ivf),
        )
    recall = {mode: bench.recall(mode) for mode in ("exact", "ivf")}
    mllib = interleaved(1, mllib=bench.mllib)["mllib"]
    rate = {f"{name}_delta": per_second(bench.n_users, times) for name, times in delta.items()}
    rate |= {f"{name}_noop": per_second(bench.n_users, times) for name, times in bare.items()}
    mllib_rate = per_second(bench.mllib_users, mllib)
    result = {
        "mllib_users_per_s": round(mllib_rate, 1),
        "mllib_blas": name_blas(bench.spark),
        "exact_users_per_s": round(rate["exact_delta"], 1),
        "ivf_users_per_s": round(rate["ivf_delta"], 1),
        "ivf_recall": round(recall["ivf"], 5),
        "exact_vs_mllib": round(rate["exact_delta"] / mllib_rate, 2),
        "ivf_vs_mllib": round(rate["ivf_delta"] / mllib_rate, 2),
        "exact_vs_faiss": round(rate["exact_noop"] / rate["faiss_exact_noop"], 3),
        "ivf_vs_faiss": round(rate["ivf_noop"] / rate["faiss_ivf_noop"], 3),
        "peak_worker_rss_mb": round(memory.peak_rss_mb, 1),
    }
    details = {
        "vectors": bench.factors.origin,
        "users_per_s": {name: round(value, 1) for name, value in rate.items()},
        "seconds": {"delta": delta, "noop": bare, "mllib": mllib},
        "exact_recall": recall["exact"],
        "peak_worker_own_mb": round(memory.peak_own_mb, 1),
        "n_tasks": bench.n_tasks,
        "index": {"nlist": bench.info.nlist, "imbalance": bench.info.imbalance, "n_bytes": bench.info.n_bytes},
        "tuning": bench.tuning.to_dict(),
        "build_seconds": bench.build_seconds,
        "tune_seconds": bench.tune_seconds,
    }
    settings = {
        "users": bench.n_users,
        "items": n_items,
        "dim": dim,
        "k": bench.k,
        "mllib_users": bench.mllib_users,
        "seed": arguments.seed,
    }
    name = "retrieval" if arguments.vectors == "generated" else f"retrieval_{'words' if arguments.vectors == 'words' else 'trained'}"
    report(name, settings | {"seed": arguments.seed, "set": arguments.set}, details, result, arguments.output)


if __name__ == "__main__":
    main()
