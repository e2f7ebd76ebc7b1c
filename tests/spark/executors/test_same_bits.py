"""Parts of one night have the same bits on processors of every kind: libraries are told to use other instructions, in a process each."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from recsys_batch.ann.index import build_index
from recsys_batch.config import Retrieval
from recsys_batch.dataset.catalogue import Catalogue, write_catalogue
from recsys_batch.dataset.seen_policy import make_seen_policy
from recsys_batch.model.towers import pool_history
from recsys_batch.schemas import IdTypes
from recsys_batch.spark.executors.new_items import insert_items
from recsys_batch.spark.executors.retrieve import RetrieveTask, make_retriever
from recsys_batch.storage.node_cache import NodeCache
from recsys_batch.tables.list_columns import matrix_column

N_ITEMS, N_USERS, DIM, N = 5000, 300, 64, 40
IDS = IdTypes("STRING", "STRING")
KINDS = [f"{searched} {metric}" for searched in ("exact float32", "ivf float32", "ivf int8") for metric in ("ip", "cosine")]
LEVELS = {
    "NONE": {
        "FAISS_SIMD_LEVEL": "NONE",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3",
    },
    "AVX2": {"FAISS_SIMD_LEVEL": "AVX2", "OPENBLAS_CORETYPE": "Haswell"},
    "AVX512": {"FAISS_SIMD_LEVEL": "AVX512", "OPENBLAS_CORETYPE": "SkylakeX"},
}
NEEDS: dict[str, set[str]] = {"NONE": set(), "AVX2": {"avx2", "fma"}, "AVX512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}}


def has(level: str) -> bool:
    """Whether this processor has a level; libraries take the word for it, and die of the first instruction that it lacks."""
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return NEEDS[level] <= set(flags.split())


def vectors(seed: int, n: int) -> np.ndarray:
    """float32 [n, DIM]; every fifth is another one's copy with the last bits of one dimension changed."""
    made = np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)
    made[4::5] = made[3::5]
    made[4::5, 7] = np.nextafter(made[3::5, 7], np.float32(9))
    return made


def write_inputs(folder: Path) -> None:
    """Write what a night makes once: the catalogue, and an index of each kind."""
    catalogue = Catalogue(
        item_ids=pa.array([f"i{code:05d}" for code in range(N_ITEMS)]),
        embeddings=vectors(1, N_ITEMS),
        history=vectors(2, N_ITEMS),
        log_popularity=np.zeros(N_ITEMS, np.float32),
        retrievable=np.ones(N_ITEMS, bool),
    )
    (folder / "catalogue").mkdir()
    write_catalogue(folder / "catalogue", catalogue)
    for kind in KINDS:
        mode, storage, metric = kind.split()
        settings = Retrieval.model_validate({"mode": mode, "storage": storage, "metric": metric})
        info = build_index(catalogue.embeddings, settings, folder / "indexes", 1)
        (folder / f"{kind}.json").write_text(json.dumps(info.to_dict()))


def write_rows(folder: Path, target: Path) -> None:
    """Write the rows of some users: embeddings from their events, candidates of each index, and candidates with new items."""
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 60, N_USERS)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    cache = NodeCache(str(folder / "cache"))
    history = np.load(folder / "catalogue" / "history.npy", mmap_mode="r")
    embeddings = pool_history(history, rng.integers(0, N_ITEMS, offsets[-1]), offsets, 0.37)
    rows = pa.table({"user_id": [f"u{number}" for number in range(N_USERS)], "embedding": matrix_column(embeddings)})
    batch = pa.RecordBatch.from_arrays(
        [*(column.combine_chunks() for column in rows.columns), pa.nulls(N_USERS, pa.list_(pa.string())), pa.nulls(N_USERS, pa.string())],
        names=["user_id", "embedding", "seen", "segment"],
    )
    columns = {"embedding": rows["embedding"]}
    for kind in KINDS:
        task = RetrieveTask(
            run_id="r1",
            ids=IDS,
            catalogue_dir=str(folder / "catalogue"),
            index_dir=str(folder / "indexes"),
            index=json.loads((folder / f"{kind}.json").read_text()),
            nprobe=8,
            overfetch=1.5,
            n_candidates=N,
            popular={"all": (np.array([1]), np.array([9], np.float32))},
            seen=make_seen_policy("exclude", dt.date(2026, 3, 1)),
            cache=cache,
        )
        (found,) = make_retriever(task)(iter([batch]))
        columns[kind] = found["items"]
        codes = np.arange(0, N_ITEMS, 7)
        nobody = np.zeros(0, np.int64), np.zeros(0, np.int64)
        is_cosine = kind.endswith("cosine")
        columns[f"{kind}, new items"] = insert_items(found, rows, codes, task.catalogue(), is_cosine, N, nobody)["items"]
    feather.write_feather(pa.table(columns), target, compression="uncompressed")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("night")
    write_inputs(folder)
    return folder


def rows_at(level: str, inputs: Path) -> pa.Table:
    target = inputs / f"{level}.feather"
    if not target.exists():
        environment = {name: value for name, value in os.environ.items() if not any(name in given for given in LEVELS.values())}
        command = [sys.executable, __file__, str(inputs), str(target)]
        ended = subprocess.run(command, env=environment | LEVELS[level], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    return feather.read_table(target, memory_map=False)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["AVX2", "AVX512"])
def test_parts_of_a_night_have_the_same_bits_whatever_instructions_libraries_use(inputs: Path, level: str) -> None:
    if not has(level):
        pytest.skip(f"this processor has no {level}")
    expected, found = rows_at("NONE", inputs), rows_at(level, inputs)
    assert {name: found[name].equals(expected[name]) for name in expected.column_names} == dict.fromkeys(expected.column_names, True)


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]), Path(sys.argv[2]))
