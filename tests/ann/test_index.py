"""Index files: named by content, described in JSON, verified when opened."""

import json
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from recsys_batch.ann import index, index_files
from recsys_batch.ann.index import IndexInfo, assign_to_lists, build_index, choose_layout, choose_nlist
from recsys_batch.ann.index_files import IndexFile, Verifier
from recsys_batch.ann.retrievers import ExactRetriever, IvfRetriever, Retriever
from recsys_batch.ann.search import open_retriever
from recsys_batch.ann.vector_storage import FloatRows, Int8Rows
from recsys_batch.config import Retrieval
from recsys_batch.errors import IndexDamaged, UsageError
from recsys_batch.ranking.vector_lengths import normalise_rows
from recsys_batch.storage.checksums import sha256_file

VECTORS = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
EXACT, IVF = Retrieval(mode="exact"), Retrieval(mode="ivf")
SETTINGS = {
    "exact": EXACT,
    "ivf": IVF,
    "int8": Retrieval(mode="ivf", storage="int8"),
    "sharded": Retrieval(mode="sharded"),
}


@pytest.fixture
def three_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        index, "choose_layout", lambda *a: (lambda layout: replace(layout, n_shards=min(3, 2 * layout.n_shards - 1)))(choose_layout(*a))
    )


def files_of(info: IndexInfo) -> list[IndexFile]:
    return [*info.vectors, *(file for file in (info.lists, info.int8) if file)]


def rewritten(info: IndexInfo, **values: Any) -> IndexInfo:
    return IndexInfo.from_dict({**json.loads(json.dumps(info.to_dict())), **values})


@pytest.mark.parametrize(("name", "n_files"), [("exact", 1), ("ivf", 2), ("int8", 3), ("sharded", 4)])
@pytest.mark.usefixtures("three_shards")
def test_every_file_carries_its_checksum_and_nothing_else_is_left_behind(tmp_path: Path, name: str, n_files: int) -> None:
    info = build_index(VECTORS, SETTINGS[name], tmp_path, n_threads=1)
    assert len(files_of(info)) == n_files
    assert {path.name for path in tmp_path.iterdir()} == {file.name for file in files_of(info)}
    for file in files_of(info):
        path = tmp_path / file.name
        assert (sha256_file(path), path.stat().st_size) == (file.sha256, file.n_bytes)
        assert file.sha256[:24] in file.name
    assert info.n_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sum(file.rows for file in info.vectors) == 500


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        index_files.store_index_file(tmp_path, "vectors", ".npy", fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_the_same_vectors_build_the_same_files(tmp_path: Path, name: str, metric: str) -> None:
    settings = SETTINGS[name].model_copy(update={"metric": metric})
    first, second = (build_index(VECTORS, settings, tmp_path / folder, 1) for folder in ("a", "b"))
    assert first == second
    assert build_index(VECTORS[::-1].copy(), settings, tmp_path / "c", 1) != first


def test_an_index_may_be_built_again_over_one_that_is_open(tmp_path: Path) -> None:
    info = build_index(VECTORS, IVF, tmp_path, n_threads=1)
    retriever = open_retriever(tmp_path, info)
    before = retriever.search(VECTORS, 20)
    assert build_index(VECTORS, IVF, tmp_path, n_threads=1) == info
    for again in (retriever, open_retriever(tmp_path, info)):
        for found, expected in zip(again.search(VECTORS, 20), before, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_info_survives_json(tmp_path: Path, name: str) -> None:
    info = build_index(VECTORS, SETTINGS[name], tmp_path, n_threads=1)
    assert IndexInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


@pytest.mark.parametrize("change", [{"surplus": 1}, {"int8": ...}, {"mode": ...}])
def test_info_of_another_release_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    values = {**build_index(VECTORS, IVF, tmp_path, n_threads=1).to_dict(), **change}
    with pytest.raises(IndexDamaged, match="build the index again"):
        IndexInfo.from_dict({key: value for key, value in values.items() if value is not ...})


def test_info_says_what_is_searched(tmp_path: Path) -> None:
    described = {
        name: (info.mode, info.storage, info.as_exact().mode, info.as_exact().storage, info.nlist, info.int8 is not None, len(info.vectors))
        for name, info in ((name, build_index(VECTORS, settings, tmp_path, 1)) for name, settings in SETTINGS.items())
    }
    assert described == {
        "exact": ("exact", "float32", "exact", "float32", None, False, 1),
        "ivf": ("ivf", "float32", "exact", "float32", 31, False, 1),
        "int8": ("ivf", "int8", "exact", "float32", 31, True, 1),
        "sharded": ("sharded", "float32", "exact", "float32", 31, False, 2),
    }


@pytest.mark.parametrize(
    ("settings", "n_items", "chosen", "reason"),
    [
        ({"mode": "exact"}, 10**7, ("exact", "float32", 1), "retrieval.mode = exact"),
        ({"mode": "exact", "storage": "int8"}, 10**7, ("exact", "float32", 1), "retrieval.mode = exact"),
        ({"mode": "ivf"}, 10, ("ivf", "float32", 1), "retrieval.mode = ivf"),
        ({"mode": "ivf", "memory_mb": 2}, 8193, ("ivf", "int8", 1), "retrieval.mode = ivf"),
        ({"mode": "ivf", "memory_mb": 2, "storage": "float32"}, 10**6, ("ivf", "float32", 1), "retrieval.mode = ivf"),
        ({"mode": "ivf", "storage": "int8"}, 10, ("ivf", "int8", 1), "retrieval.mode = ivf"),
        ({"mode": "sharded"}, 10_000, ("sharded", "float32", 2), "retrieval.mode = sharded"),
        ({"mode": "sharded"}, 1, ("sharded", "float32", 1), "retrieval.mode = sharded"),
        ({"mode": "sharded", "memory_mb": 2}, 20_001, ("sharded", "float32", 3), "retrieval.mode = sharded"),
        ({}, 20_000, ("exact", "float32", 1), "at most retrieval.exact_max_items = 20000"),
        ({"storage": "int8"}, 20_000, ("exact", "float32", 1), "at most retrieval.exact_max_items = 20000"),
        ({}, 20_001, ("ivf", "float32", 1), "more than retrieval.exact_max_items = 20000"),
        ({"storage": "int8"}, 20_001, ("ivf", "int8", 1), "more than retrieval.exact_max_items = 20000"),
        ({"memory_mb": 2}, 20_001, ("ivf", "int8", 1), "int8 as retrieval.memory_mb = 2"),
        ({"memory_mb": 2, "storage": "float32"}, 20_001, ("sharded", "float32", 3), "retrieval.memory_mb = 2 holds as float32"),
        ({"memory_mb": 1}, 20_001, ("sharded", "float32", 5), "retrieval.memory_mb = 1 holds as int8"),
        ({"memory_mb": 1, "storage": "int8"}, 20_001, ("sharded", "float32", 5), "retrieval.memory_mb = 1 holds as int8"),
        # At the edges: 4096 items of 64 dimensions are 1 MiB as float32, 16,384 as int8.
        ({"memory_mb": 1, "exact_max_items": 0}, 4096, ("ivf", "float32", 1), "more than retrieval.exact_max_items = 0"),
        ({"memory_mb": 1, "exact_max_items": 0}, 4097, ("ivf", "int8", 1), "int8 as retrieval.memory_mb = 1"),
        ({"memory_mb": 1, "exact_max_items": 0}, 16_384, ("ivf", "int8", 1), "int8 as retrieval.memory_mb = 1"),
        ({"memory_mb": 1, "exact_max_items": 0}, 16_385, ("sharded", "float32", 5), "retrieval.memory_mb = 1 holds as int8"),
    ],
)
def test_the_layout_is_chosen_by_size_and_says_why(
    settings: dict[str, Any], n_items: int, chosen: tuple[str, str, int], reason: str
) -> None:
    layout = choose_layout(Retrieval(**settings), n_items, 64)
    assert (layout.mode, layout.storage, layout.n_shards) == chosen
    assert reason in layout.reason
    assert layout.n_bytes == n_items * 64 * (1 if layout.storage == "int8" else 4)
    assert layout.resident_bytes * layout.n_shards >= layout.n_bytes


@pytest.mark.parametrize("n_items", [1, 5000, 16_385, 300_001])
@pytest.mark.parametrize("memory_mb", [1, 3, 50])
@pytest.mark.parametrize("storage", ["auto", "float32", "int8"])
def test_what_auto_chooses_above_exact_fits_into_memory(n_items: int, memory_mb: int, storage: str) -> None:
    settings = Retrieval(memory_mb=memory_mb, storage=storage, exact_max_items=0)
    assert choose_layout(settings, n_items, 64).resident_bytes <= memory_mb * 2**20


@pytest.mark.parametrize(("nlist", "n_items", "expected"), [(None, 1, 1), (None, 500, 31), (None, 10**6, 4000), (7, 10**6, 7)])
def test_lists_grow_with_the_root_of_the_items(nlist: int | None, n_items: int, expected: int) -> None:
    assert choose_nlist(Retrieval(nlist=nlist), n_items) == expected


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("n_items", [1, 2, 17])
def test_tiny_catalogues_can_be_indexed(tmp_path: Path, name: str, n_items: int) -> None:
    info = build_index(VECTORS[:n_items], SETTINGS[name], tmp_path, n_threads=1)
    _, codes = open_retriever(tmp_path, info).search(VECTORS[:1], 20)
    assert set(codes[0, :n_items]) == set(range(n_items))


@pytest.mark.parametrize(
    ("vectors", "settings", "message"),
    [
        (VECTORS[:0], IVF, "an index needs items, found 0"),
        (VECTORS[:, :0], IVF, "found 500 of 0 dimensions"),
        (VECTORS[0], IVF, "needs float32"),
        (VECTORS.astype(np.float64), IVF, "needs float32"),
        (np.where(np.arange(500)[:, None] == 3, np.float32(np.inf), VECTORS), IVF, "embedding in row 3 is not finite"),
        (VECTORS, Retrieval(mode="ivf", nlist=501), "nlist = 501 is more than the 500 items"),
        (VECTORS, Retrieval(mode="sharded", nlist=501), "nlist = 501 is more than the 500 items"),
    ],
)
def test_vectors_that_cannot_be_indexed_are_refused(tmp_path: Path, vectors: np.ndarray, settings: Retrieval, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_index(vectors, settings, tmp_path, n_threads=1)
    assert not list(tmp_path.iterdir())


def test_vectors_are_stored_as_the_metric_wants_them(tmp_path: Path) -> None:
    for metric, stored in (("ip", VECTORS), ("cosine", normalise_rows(VECTORS))):
        settings = Retrieval(mode="sharded", metric=metric)
        info = build_index(VECTORS, settings, tmp_path, n_threads=1)
        rows = np.concatenate([np.load(tmp_path / file.name) for file in info.vectors])
        assert info.lists is not None
        np.testing.assert_array_equal(rows, stored[load_file(tmp_path / info.lists.name)["codes"]])
        assert info.max_norm == pytest.approx(np.linalg.norm(stored, axis=1).max())


def test_lists_hold_the_rows_nearest_to_their_centroids_in_code_order(tmp_path: Path) -> None:
    info = build_index(VECTORS, IVF, tmp_path, n_threads=1)
    assert info.lists is not None
    tables = load_file(tmp_path / info.lists.name)
    distances = ((VECTORS[:, None].astype(np.float64) - tables["centroids"]) ** 2).sum(axis=2)
    for number, codes in enumerate(np.split(tables["codes"], tables["ends"][:-1])):
        assert (np.diff(codes) > 0).all()
        np.testing.assert_allclose(distances[codes, number], distances[codes].min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("name", ["ivf", "int8", "sharded"])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
@pytest.mark.parametrize("block", [64, 65_536])
def test_rows_assigned_elsewhere_give_the_same_index(
    tmp_path: Path, name: str, metric: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "ASSIGN_ROWS", block)
    seen: list[tuple[int, ...]] = []

    def elsewhere(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
        seen.append((*vectors.shape, *centroids.shape))
        np.testing.assert_array_equal(vectors, normalise_rows(VECTORS) if metric == "cosine" else VECTORS)
        return np.concatenate([assign_to_lists(vectors[start : start + block], centroids) for start in range(0, len(vectors), block)])

    settings = SETTINGS[name].model_copy(update={"metric": metric})
    assert build_index(VECTORS, settings, tmp_path, 1, assign_rows=elsewhere) == build_index(VECTORS, settings, tmp_path, 1)
    assert seen == [(500, 8, 31, 8)]


@pytest.mark.parametrize(
    ("list_of", "imbalance"),
    [
        (np.arange(500) % 4, 1.0),
        (np.full(500, 2), 4.0),
        (np.repeat([0, 3], [125, 375]), 4 * (0.25**2 + 0.75**2)),
    ],
)
def test_imbalance_is_one_for_equal_lists_and_nlist_for_a_single_one(tmp_path: Path, list_of: np.ndarray, imbalance: float) -> None:
    settings = Retrieval(mode="ivf", nlist=4)
    info = build_index(VECTORS, settings, tmp_path, n_threads=1, assign_rows=lambda vectors, centroids: list_of)
    assert info.imbalance == pytest.approx(imbalance, rel=1e-12)
    ivf = open_retriever(tmp_path, info)
    assert isinstance(ivf, IvfRetriever)
    np.testing.assert_array_equal(ivf.lists.sizes, np.bincount(list_of, minlength=4))
    found, expected = ivf.search_with_nprobe(VECTORS[:9], 20, 4), open_retriever(tmp_path, info.as_exact()).search(VECTORS[:9], 20)
    np.testing.assert_array_equal(found[1], expected[1])


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def damage_swap(path: Path) -> None:
    """Another night's file of the same kind and size under this one's name."""
    folder, stem, size = path.parent / "other", path.name.split("-")[0], path.stat().st_size
    built = [build_index(VECTORS[::-1].copy(), settings, folder, n_threads=1) for settings in SETTINGS.values()]
    same = [file for info in built for file in files_of(info) if file.name.split("-")[0] == stem and file.n_bytes == size]
    shutil.copy(folder / same[0].name, path)


FILES: list[tuple[str, Callable[[IndexInfo], IndexFile | None]]] = [
    ("exact", lambda info: info.vectors[0]),
    ("ivf", lambda info: info.vectors[0]),
    ("ivf", lambda info: info.lists),
    ("int8", lambda info: info.vectors[0]),
    ("int8", lambda info: info.lists),
    ("int8", lambda info: info.int8),
    ("sharded", lambda info: info.vectors[0]),
    ("sharded", lambda info: info.vectors[1]),
    ("sharded", lambda info: info.vectors[2]),
    ("sharded", lambda info: info.lists),
]
FILE_IDS = ["exact-vectors", "ivf-vectors", "ivf-lists", "int8-vectors", "int8-lists", "int8-int8", "shard-0", "shard-1", "shard-2"]
FILE_IDS.append("sharded-lists")


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_swap, Path.unlink])
@pytest.mark.parametrize(("name", "which"), FILES, ids=FILE_IDS)
@pytest.mark.parametrize("already_open", [False, True])
@pytest.mark.usefixtures("three_shards")
def test_a_damaged_file_is_refused_even_under_an_open_index(
    tmp_path: Path, damage: Callable[[Path], None], name: str, which: Callable[[IndexInfo], IndexFile | None], already_open: bool
) -> None:
    info = build_index(VECTORS, SETTINGS[name], tmp_path, n_threads=1)
    file = which(info)
    assert file is not None
    if already_open:
        open_retriever(tmp_path, info).search(VECTORS[:3], 5)
    damage(tmp_path / file.name)
    with pytest.raises(IndexDamaged, match="begin a new run") as raised:
        open_retriever(tmp_path, info)
    assert file.name in str(raised.value)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("wrong", [{"n_items": 499}, {"n_items": 501}, {"embedding_dim": 4}])
def test_a_description_that_does_not_fit_its_files_is_refused(tmp_path: Path, name: str, wrong: dict[str, Any]) -> None:
    info = build_index(VECTORS, SETTINGS[name], tmp_path, n_threads=1)
    described = rewritten(info, **wrong)
    for one in (described, described.as_exact()):
        with pytest.raises(IndexDamaged, match="description says"):
            open_retriever(tmp_path, one).search(VECTORS[:1, : described.embedding_dim], 5)


@pytest.mark.parametrize("name", ["exact", "ivf", "int8", "sharded"])
def test_rows_that_do_not_fit_their_file_are_refused(tmp_path: Path, name: str) -> None:
    info = build_index(VECTORS, SETTINGS[name], tmp_path, n_threads=1)
    last, *before = info.to_dict()["vectors"][::-1]
    with pytest.raises(IndexDamaged, match="hold 499 rows, their description says 500"):
        open_retriever(tmp_path, rewritten(info, vectors=[*before[::-1], {**last, "rows": last["rows"] - 1}]))


def test_rows_moved_from_one_shard_to_another_are_refused(tmp_path: Path) -> None:
    info = build_index(VECTORS, SETTINGS["sharded"], tmp_path, n_threads=1)
    one, other = (file.__dict__ for file in info.vectors)
    wrong = rewritten(info, vectors=[{**one, "rows": one["rows"] + 1}, {**other, "rows": other["rows"] - 1}])
    with pytest.raises(IndexDamaged, match="its description says"):
        open_retriever(tmp_path, wrong, nprobe=10**6).search(VECTORS[:3], 5)


def test_lists_of_another_night_do_not_fit_its_vectors(tmp_path: Path) -> None:
    info, other = (build_index(vectors, IVF, tmp_path, n_threads=1) for vectors in (VECTORS, VECTORS[:400]))
    with pytest.raises(IndexDamaged, match=r"lists, dimensions. .400, 25, 8., its description says .500, 31, 8."):
        open_retriever(tmp_path, replace(info, lists=other.lists))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_is_verified_once_and_then_kept(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    first, second = (build_index(vectors, SETTINGS[name], tmp_path, n_threads=1) for vectors in (VECTORS, VECTORS[:400]))
    monkeypatch.setattr(index_files, "sha256_file", count)
    for nprobe in (3, 7):
        retriever = open_retriever(tmp_path, first, nprobe=nprobe)
        assert isinstance(retriever, ExactRetriever) or retriever.nprobe == nprobe
        retriever.search(VECTORS[:3], 5)
        open_retriever(tmp_path, first.as_exact()).search(VECTORS[:3], 5)
    assert sorted(read) == sorted(file.name for file in files_of(first))
    open_retriever(tmp_path, second)
    open_retriever(tmp_path, first)
    assert sorted(read) == sorted(file.name for file in files_of(first) + files_of(second))


def test_a_file_that_is_put_in_the_place_of_another_is_verified_again(tmp_path: Path) -> None:
    file = index_files.store_index_file(tmp_path, "lists", ".bin", lambda path: path.write_bytes(b"content") and None)
    verifier, path = Verifier(), tmp_path / file.name
    known = verifier.check(tmp_path, file)
    assert known == (path, verifier.check(tmp_path, file)[1])
    shutil.copy2(path, tmp_path / "copy")
    (tmp_path / "copy").rename(path)
    assert verifier.check(tmp_path, file)[1] != known[1]  # the same content, but not the file that was mapped
    (tmp_path / "copy").write_bytes(b"CONTENT")
    (tmp_path / "copy").rename(path)
    with pytest.raises(IndexDamaged, match=r"\(7 bytes\) has checksum"):
        verifier.check(tmp_path, file)


def test_a_file_is_expected_by_its_checksum_and_not_by_its_name(tmp_path: Path) -> None:
    file = index_files.store_index_file(tmp_path, "lists", ".bin", lambda path: path.write_bytes(b"content") and None)
    verifier = Verifier()
    verifier.check(tmp_path, file)
    with pytest.raises(IndexDamaged, match="expected 000000000000"):
        verifier.check(tmp_path, replace(file, sha256="0" * 64))


def matrices(retriever: Retriever) -> list[np.ndarray]:
    assert isinstance(retriever, ExactRetriever | IvfRetriever)
    shards = [*retriever.items.shards, *(retriever.search_shards if isinstance(retriever, IvfRetriever) else ())]
    opened = [shard.open() for shard in shards]
    assert all(isinstance(rows, FloatRows | Int8Rows) for rows in opened)
    return [rows.matrix for rows in opened if isinstance(rows, FloatRows | Int8Rows)]


def is_mapped(matrix: np.ndarray) -> bool:
    base: Any = matrix
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap)


@pytest.mark.parametrize("name", SETTINGS)
def test_vectors_are_mapped_and_not_copied(tmp_path: Path, name: str) -> None:
    info = build_index(VECTORS, SETTINGS[name], tmp_path, n_threads=1)
    retriever = open_retriever(tmp_path, info)
    for matrix in matrices(retriever):
        assert is_mapped(matrix)
        assert not matrix.flags.writeable
    assert isinstance(retriever, ExactRetriever | IvfRetriever)
    rows = retriever.items.shards[0].open()
    assert isinstance(rows, FloatRows)
    assert np.shares_memory(rows.take(slice(None)), rows.matrix)


@pytest.mark.parametrize("name", ["ivf", "int8"])
def test_one_matrix_serves_lists_and_exact_search(tmp_path: Path, name: str) -> None:
    info = build_index(VECTORS, SETTINGS[name], tmp_path, n_threads=1)
    lists, exact, again = (matrices(open_retriever(tmp_path, one)) for one in (info, info.as_exact(), info))
    assert lists[0] is exact[0]
    assert [a is b for a, b in zip(lists, again, strict=True)] == [True, True]
    assert lists[-1].dtype == (np.uint8 if name == "int8" else np.float32)


def test_a_shard_leaves_memory_when_it_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = build_index(VECTORS, SETTINGS["sharded"], tmp_path, n_threads=1)
    mapped: list[weakref.ref[Any]] = []
    load = np.load

    def noted(path: Path, *arguments: Any, **options: Any) -> np.ndarray:
        matrix = load(path, *arguments, **options)
        mapped.append(weakref.ref(matrix))
        return matrix

    monkeypatch.setattr(np, "load", noted)
    retriever, exact = open_retriever(tmp_path, info, nprobe=3), open_retriever(tmp_path, info.as_exact())
    assert not mapped
    for searcher in (retriever, exact, retriever.restrict(VECTORS[:, 0] > 0), exact.restrict(VECTORS[:, 0] > 0)):
        mapped.clear()
        searcher.search(VECTORS[:9], 5)
        assert len(mapped) == 2
        assert [matrix() for matrix in mapped] == [None, None]


def test_the_matrices_of_earlier_nights_are_let_go(tmp_path: Path) -> None:
    nights = [build_index(VECTORS[: 500 - night], SETTINGS["int8"], tmp_path, n_threads=1) for night in range(2)]
    held = [weakref.ref(matrix) for matrix in matrices(open_retriever(tmp_path, nights[0]))]
    assert [matrix() is not None for matrix in held] == [True, True]
    matrices(open_retriever(tmp_path, nights[1]))
    assert [matrix() for matrix in held] == [None, None]


def test_importing_the_package_loads_no_faiss() -> None:
    names = ("search", "filtered_search", "tuning", "index", "inverted_lists", "vector_storage", "index_files")
    modules = ", ".join(f"recsys_batch.ann.{name}" for name in names)
    script = f"import sys, {modules}; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_long_vectors_are_in_the_sample_that_lists_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue with a few long vectors, which are what every user finds: an even sample of it had one in twenty of them."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(scale=0.1, size=(8_000, 16)).astype(np.float32)
    long = rng.permutation(8_000)[:80]
    vectors[long] *= 60
    monkeypatch.setattr(index, "_KMEANS_ROWS_PER_LIST", 4)
    info = build_index(vectors, Retrieval(mode="ivf", nlist=100), tmp_path, n_threads=1)
    assert info.lists is not None
    centroids = load_file(tmp_path / info.lists.name)["centroids"]
    assert np.count_nonzero(np.linalg.norm(centroids, axis=1) > 10) > 30
    sample = index._sample_training_rows(vectors, 400)
    assert len(np.unique(sample)) == 400
    assert np.isin(long, sample).mean() > 0.9
    assert 200 < np.count_nonzero(~np.isin(sample, long)) < 350
