"""Index files: named by content, described in JSON, verified when opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys_batch.ann import search
from recsys_batch.ann.backends import ExactRetriever, IvfRetriever
from recsys_batch.ann.index import IndexInfo, build_index, choose_mode
from recsys_batch.ann.search import open_retriever
from recsys_batch.bundle import sha256_file
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, UsageError

VECTORS = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
IVF = Retrieval(mode="ivf")


@pytest.mark.parametrize("mode", ["exact", "ivf"])
def test_every_file_carries_its_checksum_and_nothing_else_is_left_behind(tmp_path: Path, mode: str) -> None:
    info = build_index(VECTORS, Retrieval(mode=mode), tmp_path, n_threads=1)
    named = {info.file: info.sha256, info.vectors_file: info.vectors_sha256}
    assert {path.name for path in tmp_path.iterdir()} == set(named)
    for name, digest in named.items():
        assert sha256_file(tmp_path / name) == digest
        assert digest[:24] in name
    assert info.n_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_same_vectors_build_the_same_files(tmp_path: Path) -> None:
    assert build_index(VECTORS, IVF, tmp_path / "a", 1) == build_index(VECTORS, IVF, tmp_path / "b", 1)


def test_info_survives_json(tmp_path: Path) -> None:
    info = build_index(VECTORS, IVF, tmp_path, n_threads=1)
    assert IndexInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


def test_info_of_another_release_is_refused() -> None:
    with pytest.raises(IndexDamaged, match="build the index again"):
        IndexInfo.from_dict({"mode": "exact"})


@pytest.mark.parametrize(
    ("mode", "n_items", "chosen", "reason"),
    [
        ("exact", 10**7, "exact", "retrieval.mode = exact"),
        ("ivf", 10, "ivf", "retrieval.mode = ivf"),
        ("auto", 20_000, "exact", "at most retrieval.exact_max_items"),
        ("auto", 20_001, "ivf", "more than retrieval.exact_max_items"),
    ],
)
def test_the_mode_is_chosen_by_size_and_says_why(mode: str, n_items: int, chosen: str, reason: str) -> None:
    found, why = choose_mode(Retrieval(mode=mode), n_items, 64)
    assert found == chosen
    assert reason in why


@pytest.mark.parametrize("n_items", [1, 2, 17])
def test_tiny_catalogues_can_be_indexed(tmp_path: Path, n_items: int) -> None:
    info = build_index(VECTORS[:n_items], IVF, tmp_path, n_threads=1)
    _, codes = open_retriever(tmp_path, info).search(VECTORS[:1], 20)
    assert set(codes[0, :n_items]) == set(range(n_items))


@pytest.mark.parametrize(
    ("vectors", "settings", "message"),
    [
        (VECTORS[:0], IVF, "an index needs items, found 0"),
        (VECTORS.astype(np.float64), IVF, "needs float32"),
        (np.where(np.arange(500)[:, None] == 3, np.float32(np.inf), VECTORS), IVF, "embedding in row 3 is not finite"),
        (VECTORS, Retrieval(mode="ivf", nlist=501), "nlist = 501 is more than the 500 items"),
    ],
)
def test_vectors_that_cannot_be_indexed_are_refused(tmp_path: Path, vectors: np.ndarray, settings: Retrieval, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_index(vectors, settings, tmp_path, n_threads=1)


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def damage_swap(path: Path) -> None:
    other = build_index(VECTORS[::-1].copy(), IVF, path.parent / "other", n_threads=1)
    shutil.copy(path.parent / "other" / (other.file if path.suffix == ".faiss" else other.vectors_file), path)


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_swap, Path.unlink])
@pytest.mark.parametrize("attribute", ["file", "vectors_file"])
@pytest.mark.parametrize("already_open", [False, True])
def test_a_damaged_file_is_refused_even_under_an_open_index(tmp_path: Path, damage: object, attribute: str, already_open: bool) -> None:
    info = build_index(VECTORS, IVF, tmp_path, n_threads=1)
    if already_open:
        open_retriever(tmp_path, info)
    damage(tmp_path / getattr(info, attribute))
    with pytest.raises(IndexDamaged, match="run the index step again"):
        open_retriever(tmp_path, info)


def test_a_description_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    info = build_index(VECTORS, IVF, tmp_path, n_threads=1)
    search._opened.clear()
    for description, wrong in ((info, {"nlist": 3}), (info.exact(), {"n_items": 499}), (info.exact(), {"embedding_dim": 4})):
        with pytest.raises(IndexDamaged, match="its description says"):
            open_retriever(tmp_path, IndexInfo.from_dict({**description.to_dict(), **wrong}))
        search._opened.clear()


def test_a_file_is_verified_once_and_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(search, "sha256_file", count)
    first, second = (build_index(vectors, IVF, tmp_path, n_threads=1) for vectors in (VECTORS, VECTORS[:400]))
    ivf, exact = open_retriever(tmp_path, first, nprobe=3), open_retriever(tmp_path, first.exact())
    assert isinstance(ivf, IvfRetriever)
    assert isinstance(exact, ExactRetriever)
    assert ivf.vectors.matrix is exact.vectors.matrix  # one matrix serves both
    assert open_retriever(tmp_path, first, nprobe=7).nprobe == 7
    assert sorted(read) == sorted([first.file, first.vectors_file])
    open_retriever(tmp_path, second)
    assert len(search._opened) == 2  # the first night's were let go
    open_retriever(tmp_path, first)
    assert len(read) == 6


def test_the_matrix_is_mapped_and_not_copied(tmp_path: Path) -> None:
    info = build_index(VECTORS, Retrieval(mode="exact"), tmp_path, n_threads=1)
    matrix = open_retriever(tmp_path, info).vectors.matrix
    assert isinstance(matrix.base, np.memmap)
    assert not matrix.flags.writeable


def test_importing_the_package_loads_no_faiss() -> None:
    script = "import sys, recsys_batch.ann.search, recsys_batch.ann.tuning; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
