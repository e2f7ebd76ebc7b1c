"""Benchmark export-snapshot of a published run of 1,000,000 users x 100 items: seconds, bytes, peak memory of the exporting process.

The run is made up and written with Arrow and deltalake, in the layout that a night's tasks write (ranges of user_id, files of 64 MB).

    make bench-snapshot USERS=1000000 ITEMS=100000 DIM=64 K=100
"""

import argparse
import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from measuring import ROOT, report

from recsys_batch import __version__
from recsys_batch.ann.index import build_index
from recsys_batch.config import Retrieval
from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.model.onnx_export import export_ranker_onnx
from recsys_batch.model.ranker import RankerParameters
from recsys_batch.ranking.features import FeatureSpec
from recsys_batch.registry.bundle import write_bundle
from recsys_batch.schemas import ALL_SEGMENTS, SCHEMA_VERSION, TABLES, IdTypes
from recsys_batch.storage.artifacts import artifact_root, put_folder, set_pointer
from recsys_batch.storage.filesystems import basename
from recsys_batch.tables.delta_log import commit
from recsys_batch.tables.list_columns import list_column, matrix_column
from recsys_batch.tables.slice_writer import TableSlice

IDS, RUN, DATE = IdTypes("BIGINT", "BIGINT"), "2026-01-01-r1", dt.date(2026, 1, 1)
NOW = dt.datetime.now(dt.UTC)
BLOCK = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=100, help="candidates and rows per user")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-snapshot-"))
    try:
        measure(arguments, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    publish(arguments, folder / "warehouse")
    command = [sys.executable, "-c", "from recsys_batch.cli import main; main()", "export-snapshot"]
    options = ["--set", f"paths.warehouse={folder / 'warehouse'}", "--out", str(folder / "snapshots")]
    began = time.monotonic()
    process = subprocess.Popen([*command, *options], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    peak = {"VmHWM": 0, "RssAnon": 0}
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        for name in peak:
            match = re.search(rf"{name}:\s+(\d+)", status)
            peak[name] = max(peak[name], int(match[1]) if match else 0)
        time.sleep(0.1)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"export-snapshot ended with {process.returncode}")
    files = {str(path.relative_to(folder)): path.stat().st_size for path in (folder / "snapshots").rglob("*") if path.is_file()}
    size = sum(files.values())
    result = {"users": arguments.users, "seconds": round(seconds, 1), "users_per_s": round(arguments.users / seconds)}
    result |= {"size_mb": round(size / 2**20), "bytes_per_user": round(size / arguments.users)}
    result |= {"peak_rss_mb": round(peak["VmHWM"] / 1024), "peak_own_mb": round(peak["RssAnon"] / 1024)}
    report("snapshot", vars(arguments), {"files": files}, result)


def publish(arguments: argparse.Namespace, warehouse: Path, inputs: Sequence[tuple[str, int]] = (("items", 1),)) -> None:
    """Write tables and artefacts of a published run."""
    began, rng = time.monotonic(), np.random.default_rng(0)
    vectors = rng.standard_normal((arguments.items, arguments.dim), dtype=np.float32)
    ids = pa.array(np.arange(arguments.items))
    items = {
        "item_id": ids,
        "title": [f"Item {n}" for n in range(arguments.items)],
        "categories": [[f"c{n % 20}"] for n in range(arguments.items)],
    }
    items |= {
        "is_available": np.ones(arguments.items, bool),
        "first_seen_ts": [NOW] * arguments.items,
        "attributes": [[]] * arguments.items,
    }
    write(warehouse, "items", iter([table("items", items)]))
    ranks = np.arange(1, 1001, dtype=np.int32)
    popular = {"segment": [ALL_SEGMENTS] * 1000, "rank": ranks, "item_id": ids[:1000], "score": ranks[::-1].astype(np.float32)}
    write(warehouse, "popular", iter([table("popular", popular)]))
    for name, rows in (("user_embeddings", embeddings), ("candidates", candidates), ("topk", topk)):
        write(warehouse, name, (table(name, rows(arguments, first)) for first in range(0, arguments.users, BLOCK)))
    artefacts(arguments, warehouse, ids, vectors)
    row: dict[str, Any] = {"run_id": RUN, "run_date": DATE, "attempt": 1, "status": "PUBLISHED", "published_at": NOW, "table_versions": []}
    row |= {
        "input_versions": list(inputs),
        "model_version": "1",
        "code_version": __version__,
        "config_hash": "",
        "n_users": arguments.users,
    }
    row |= {"n_rows": arguments.users * arguments.k, "metrics": [("started_at", NOW.timestamp())], "mlflow_run_id": None}
    write(warehouse, "runs", iter([table("runs", {name: [value] for name, value in (row | {"schema_version": SCHEMA_VERSION}).items()})]))
    print(f"a run of {arguments.users} users in {time.monotonic() - began:.0f} s", flush=True)


def artefacts(arguments: argparse.Namespace, warehouse: Path, ids: pa.Array, vectors: np.ndarray) -> None:
    root, n = artifact_root(str(warehouse)), arguments.items
    catalogue = Catalogue(ids, vectors, np.zeros((n, 0), np.float32), np.zeros(n, np.float32), np.ones(n, bool))
    folder = put_folder(root, "catalogues", lambda target: write_catalogue(target, catalogue))
    set_pointer(root, RUN, "catalogue", {"folder": basename(folder)})
    index = build_index(vectors, Retrieval(), Path(root) / "indexes", os.cpu_count() or 1)
    set_pointer(root, RUN, "index", {"index": index.to_dict()})
    spec = FeatureSpec.default()
    ranker = export_ranker_onnx(RankerParameters.initialize(arguments.dim, len(spec.names), 1).to_arrays())
    manifest = {"kind": "embeddings", "embedding_dim": arguments.dim, "features": spec.to_dict()}
    folder = put_folder(root, "bundles", lambda target: write_bundle(target, manifest, ranker_onnx=ranker) and None)
    set_pointer(root, RUN, "bundle", {"folder": basename(folder)})


def block(arguments: argparse.Namespace, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate (users [n], items [n, k], scores [n, k]) of a block, the same at every call."""
    rng = np.random.default_rng(first)
    users = np.arange(first, min(first + BLOCK, arguments.users))
    codes = (
        rng.integers(arguments.items, size=(len(users), 1)) + np.arange(arguments.k) * (arguments.items // arguments.k)
    ) % arguments.items
    return users, codes, -np.sort(-rng.standard_normal(codes.shape, dtype=np.float32), axis=1)


def embeddings(arguments: argparse.Namespace, first: int) -> dict[str, Any]:
    users = block(arguments, first)[0]
    vectors = np.random.default_rng(first).standard_normal((len(users), arguments.dim), dtype=np.float32)
    return {"user_id": users, "embedding": matrix_column(vectors), "n_events": np.full(len(users), 20, np.int32)}


def candidates(arguments: argparse.Namespace, first: int) -> dict[str, Any]:
    users, codes, scores = block(arguments, first)
    pairs = pa.StructArray.from_arrays([pa.array(codes.ravel()), pa.array(scores.ravel())], names=["item_id", "score"])
    return {"user_id": users, "items": list_column(pairs, np.arange(len(users) + 1) * arguments.k)}


def topk(arguments: argparse.Namespace, first: int) -> dict[str, Any]:
    users, codes, scores = block(arguments, first)
    ranks = np.tile(np.arange(1, arguments.k + 1, dtype=np.int32), len(users))
    rows = {
        "user_id": np.repeat(users, arguments.k),
        "rank": ranks,
        "item_id": codes.ravel(),
        "score": scores.ravel(),
        "candidate_rank": ranks,
    }
    n = len(ranks)
    words = {"source": pa.repeat("model", n).dictionary_encode(), "model_version": pa.repeat("1", n).dictionary_encode()}
    return rows | words | {"generated_at": pa.repeat(pa.scalar(NOW, pa.timestamp("us", "UTC")), n)}


def table(name: str, columns: dict[str, Any]) -> pa.RecordBatch:
    where = slice_of(Path(), name)
    arrays = [columns[field.name] for field in where.file_schema]
    made = []
    for one, kept, plain in zip(arrays, where.file_schema.types, where.schema.types, strict=True):
        made.append((one if isinstance(one, pa.Array) else pa.array(one, plain)).cast(kept))
    return pa.RecordBatch.from_arrays(made, schema=where.file_schema)


def slice_of(warehouse: Path, name: str) -> TableSlice:
    spec, values = TABLES[name], {"run_id": RUN, "run_date": DATE}
    return TableSlice(str(warehouse / name), spec, IDS, {column: values[column] for column in spec.partition_by}, 64 * 2**20)


def write(warehouse: Path, name: str, batches: Iterator[pa.RecordBatch]) -> None:
    where = slice_of(warehouse, name)
    DeltaTable.create(where.root, schema=where.spec.arrow_schema(IDS), partition_by=list(where.spec.partition_by) or None)
    commit(where, list(where.write(batches, 0)), {"by": "benchmark"})


if __name__ == "__main__":
    main()
