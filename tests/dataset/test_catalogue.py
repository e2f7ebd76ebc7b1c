"""The catalogue gives codes in id order, for both kinds of ids."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.dataset.catalogue import Catalogue, open_catalogue, write_catalogue
from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.business_rules import ItemRules


def make(ids: pa.Array, **changes: np.ndarray) -> Catalogue:
    n = len(ids)
    arrays = {
        "embeddings": np.arange(2 * n, dtype=np.float32).reshape(n, 2),
        "history": np.zeros((n, 0), np.float32),
        "log_popularity": np.zeros(n, np.float32),
        "retrievable": np.arange(n) % 2 == 0,
    }
    return Catalogue(ids, **{**arrays, **changes})


@pytest.mark.parametrize("ids", [pa.array([-3, 5, 10]), pa.array(["10", "5", "é"])], ids=["BIGINT", "STRING"])
def test_round_trip_and_lookups(tmp_path: Path, ids: pa.Array) -> None:
    write_catalogue(tmp_path, make(ids))
    opened = open_catalogue(str(tmp_path))
    assert opened.item_ids.equals(ids)
    np.testing.assert_array_equal(opened.embeddings, [[0, 1], [2, 3], [4, 5]])
    unknown = pa.array([99], ids.type) if pa.types.is_integer(ids.type) else pa.array(["99"])
    asked = pa.concat_arrays([ids.take(pa.array([2, 0])), unknown, pa.nulls(1, ids.type)])
    np.testing.assert_array_equal(opened.codes(asked), [2, 0, -1, -1])
    assert opened.ids(np.array([1, 1])).equals(ids.take(pa.array([1, 1])))
    np.testing.assert_array_equal(opened.retrievable_codes(), [0, 2])


def test_segments_fall_under_their_rule_or_under_everybodys(tmp_path: Path) -> None:
    rules = {"kids": np.array([True, False, True]), "all": np.array([True, True, False])}
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    write_catalogue(tmp_path / "with", Catalogue(**{**make(pa.array([1, 2, 3])).__dict__, "eligible": rules}))
    write_catalogue(tmp_path / "without", make(pa.array([1, 2, 3])))
    segments = pa.array(["kids", None, "others", "all"])
    opened = open_catalogue(str(tmp_path / "with"))
    np.testing.assert_array_equal(opened.rules_by_segment(segments), [0, 1, 1, 1])
    np.testing.assert_array_equal(opened.eligible_mask(0), [True, False, True])  # items 1 and 3 are retrievable
    np.testing.assert_array_equal(opened.eligible_mask(1), [True, False, False])
    opened = open_catalogue(str(tmp_path / "without"))
    np.testing.assert_array_equal(opened.rules_by_segment(segments), [-1] * 4)
    np.testing.assert_array_equal(opened.eligible_mask(-1), opened.retrievable)


@pytest.mark.parametrize("ids", [pa.array([2, 1]), pa.array([1, 1]), pa.array(["b", "a"])])
def test_ids_out_of_order_or_twice_are_refused(tmp_path: Path, ids: pa.Array) -> None:
    with pytest.raises(RecsysBatchError, match="unique and ascending"):
        write_catalogue(tmp_path, make(ids))


def test_a_value_that_is_not_finite_names_its_item(tmp_path: Path) -> None:
    broken = np.array([[0, 0], [np.nan, 0], [0, 0]], np.float32)
    with pytest.raises(RecsysBatchError, match="embeddings of item b is not finite"):
        write_catalogue(tmp_path, make(pa.array(["a", "b", "c"]), embeddings=broken))


def test_a_catalogue_without_a_file_says_what_to_do(tmp_path: Path) -> None:
    write_catalogue(tmp_path, make(pa.array([1, 2, 3])))
    (tmp_path / "rules.json").unlink()
    with pytest.raises(RecsysBatchError, match=r"lacks rules\.json.*begin a new run"):
        open_catalogue(str(tmp_path))


@pytest.mark.parametrize("ids", [[5, 6, 9], [-7, 0, 3], [1, 1_000_000, 2_000_000]])
def test_numbers_are_looked_up_however_far_apart_they_are(ids: list[int]) -> None:
    catalogue = make(pa.array(ids))
    asked = [*ids, ids[0] - 1, ids[-1] + 1, ids[0] + 1, 2**62, -(2**62)]
    expected = [ids.index(one) if one in ids else -1 for one in asked]
    np.testing.assert_array_equal(catalogue.codes(pa.array(asked)), expected)


def test_arrays_of_other_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecsysBatchError, match="2 rows of log_popularity"):
        write_catalogue(tmp_path, make(pa.array([1, 2, 3]), log_popularity=np.zeros(2, np.float32)))


def test_rules_come_back_as_they_were_however_they_lie_in_memory(tmp_path: Path) -> None:
    boost, offsets = np.arange(6, dtype=np.float32)[::2], np.arange(6, -1, -1, dtype=np.int64)[::-2]
    rules = ItemRules(boost=boost, category_codes=np.arange(12, dtype=np.int32)[::2], category_offsets=offsets, max_per_category=2)
    eligible = {"kids": np.arange(6)[::-2] > 2}
    write_catalogue(tmp_path, Catalogue(**{**make(pa.array([1, 2, 3])).__dict__, "eligible": eligible, "item_rules": rules}))
    opened = open_catalogue(str(tmp_path))
    assert opened.item_rules.boost is not None and opened.item_rules.boost.tolist() == [0, 2, 4]
    assert opened.item_rules.category_codes is not None and opened.item_rules.category_codes.tolist() == [0, 2, 4, 6, 8, 10]
    assert opened.item_rules.category_offsets is not None and opened.item_rules.category_offsets.tolist() == [0, 2, 4, 6]
    assert opened.eligible["kids"].tolist() == [True, True, False]
