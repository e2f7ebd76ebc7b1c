from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset.catalogue import Catalogue
from recsys_batch.online.snapshot import vector_search
from recsys_batch.online.snapshot.item_table import ItemMetadata, ItemTable, open_items, write_items


def table_of(folder: Path, ids: list[int] | list[str], categories: list[list[str | None] | None] | None = None) -> ItemTable:
    n = len(ids)
    rng = np.random.default_rng(n)
    vectors = rng.standard_normal((n, 4)).astype(np.float32)
    catalogue = Catalogue(pa.array(ids), vectors, np.zeros((n, 0), np.float32), np.zeros(n, np.float32), np.ones(n, bool))
    named = pa.array(categories or [[] for _ in ids], pa.list_(pa.string()))
    write_items(folder / "items", catalogue, ItemMetadata.from_columns(pa.array([f"Title of {one}" for one in ids]), named))
    return open_items(folder / "items")


@given(st.lists(st.text(), unique=True, min_size=1, max_size=30), st.lists(st.text(), max_size=10))
def test_text_ids_are_found_by_halving(tmp_path_factory: pytest.TempPathFactory, ids: list[str], others: list[str]) -> None:
    able = [one for one in ids if one.isprintable() or one.encode(errors="ignore").decode() == one]
    ids = sorted(able, key=str.encode)
    if not ids:
        return
    items = table_of(tmp_path_factory.mktemp("items"), ids)
    for place, one in enumerate(ids):
        assert items.code(one) == place and items.item_id(place) == one
    assert all(items.code(one) == -1 for one in others if one not in ids)


def test_number_ids_are_found_also_as_digits_and_nothing_else_is(tmp_path: Path) -> None:
    items = table_of(tmp_path, [-5, 0, 7, 2**62])
    assert [items.code(one) for one in (-5, 0, "7", str(2**62))] == [0, 1, 2, 3]
    assert [items.code(one) for one in (1, "x", "", 2**70, "7.0")] == [-1] * 5
    assert items.codes([7, "nobody", -5]) == [2, 0]
    assert items.item_ids(np.array([3, 0])) == [2**62, -5] and items.titles([1]) == ["Title of 0"]


def test_categories_are_any_of_an_items_own(tmp_path: Path) -> None:
    items = table_of(tmp_path, [1, 2, 3, 4], [["a", "b"], None, ["b", None], []])
    codes = np.array([3, 2, 1, 0, 2])
    assert items.in_categories(codes, ["b"]).tolist() == [False, True, False, True, True]
    assert items.in_categories(codes, ["a", "unheard of"]).tolist() == [False, False, False, True, False]
    assert not items.in_categories(codes, ["unheard of"]).any()
    assert [items.categories(code) for code in range(4)] == [["a", "b"], [], ["b"], []]


def planted(n: int, d: int = 8) -> np.ndarray:
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((30, d))
    return (centres[rng.integers(0, 30, n)] + 0.2 * rng.standard_normal((n, d))).astype(np.float32)


def test_few_items_are_searched_exactly_and_only_the_allowed_ones() -> None:
    vectors, allowed = planted(400), np.arange(400) % 3 != 0
    codes, scores = vector_search.search_nearest(vectors[1], vectors, allowed, vector_search.build_kmeans_lists(vectors, allowed), 25)
    expected = sorted(np.flatnonzero(allowed), key=lambda code: (-float(vectors[code] @ vectors[1]), code))[:25]
    assert codes.tolist() == expected and (np.diff(scores) <= 0).all()


def test_lists_find_nearly_what_an_exact_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_search, "EXACT_ITEMS", 1000)
    monkeypatch.setattr(vector_search, "_MIN_SCANNED", 800)
    vectors, allowed = planted(6000), np.ones(6000, bool)
    lists = vector_search.build_kmeans_lists(vectors, allowed)
    assert lists is not None and sorted(lists.codes.tolist()) == list(range(6000))
    shares = []
    for query in range(0, 6000, 200):
        found, _ = vector_search.search_nearest(vectors[query], vectors, allowed, lists, 50, cosine=True)
        exact, _ = vector_search.search_nearest(vectors[query], vectors, allowed, None, 50, cosine=True)
        shares.append(len(set(found.tolist()) & set(exact.tolist())) / 50)
    assert np.mean(shares) > 0.95
    codes, _ = vector_search.search_nearest(vectors[0], vectors, np.arange(6000) % 2 == 1, lists, 50)
    assert len(codes) == 50 and (codes % 2 == 1).all()
