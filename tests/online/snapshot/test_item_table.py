from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.dataset.catalogue import Catalogue
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
    looked_up = [*others, *reversed(ids), "\ud800", 7] * 3
    assert items.code_array(looked_up).tolist() == [items.code(one) for one in looked_up]
    assert items.code_array(looked_up * 50).tolist() == [items.code(one) for one in looked_up] * 50
    assert items.code_array([]).tolist() == []


def test_number_ids_are_found_also_as_digits_and_nothing_else_is(tmp_path: Path) -> None:
    items = table_of(tmp_path, [-5, 0, 7, 2**62])
    assert [items.code(one) for one in (-5, 0, "7", str(2**62))] == [0, 1, 2, 3]
    assert [items.code(one) for one in (1, "x", "", 2**70, "7.0")] == [-1] * 5
    assert items.codes([7, "nobody", -5]) == [2, 0]
    given = [7, "nobody", -5, 2**70, -6, 2**63 - 1, "-5", 0, "", 2**62]
    assert items.code_array(given).tolist() == [items.code(one) for one in given] == [2, -1, 0, -1, -1, -1, 0, 1, -1, 3]
    assert items.item_ids(np.array([3, 0])) == [2**62, -5] and items.titles([1]) == ["Title of 0"]


def test_categories_are_any_of_an_items_own(tmp_path: Path) -> None:
    items = table_of(tmp_path, [1, 2, 3, 4], [["a", "b"], None, ["b", None], []])
    codes = np.array([3, 2, 1, 0, 2])
    assert items.in_categories(codes, ["b"]).tolist() == [False, True, False, True, True]
    assert items.in_categories(codes, ["a", "unheard of"]).tolist() == [False, False, False, True, False]
    assert not items.in_categories(codes, ["unheard of"]).any()
    assert [items.categories(code) for code in range(4)] == [["a", "b"], [], ["b"], []]
