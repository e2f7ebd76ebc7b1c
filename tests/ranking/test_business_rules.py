"""Rules on one block of users, against an oracle that walks lists of tuples."""

from dataclasses import dataclass, fields, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.business_rules import ItemRules, Selection, select_with_rules
from recsys_batch.ranking.top_k import select_top_k_per_row

RULES = ("boosts", "blocklist", "freshness", "max_per_category")
SUBSETS = [names for size in range(5) for names in combinations(RULES, size)]
FIELDS = {
    "boosts": ("boost",),
    "blocklist": ("blocked",),
    "freshness": ("stale",),
    "max_per_category": ("category_codes", "category_offsets", "max_per_category"),
}

# Few distinct values, so that ties are the rule; 0.1 + 0.2 differs between float32 and float64, 16777216 swallows small boosts.
SCORES = st.sampled_from([np.float32(v) for v in (-np.inf, -1.5, -0.0, 0.0, 0.1, 0.3, 1.0, 16777216.0)])
BOOSTS = st.sampled_from([np.float32(v) for v in (-1.5, -0.1, 0.0, 0.2, 0.9)])
NOTHING = (-np.inf, -1)


@dataclass(frozen=True)
class Block:
    scores: np.ndarray
    codes: np.ndarray
    k: int
    rules: ItemRules


@st.composite
def blocks(draw: st.DrawFn, max_users: int = 4) -> Block:
    """Users of 0 to C candidates in any order and at any places, under all four rules."""
    n = draw(st.integers(1, 12))
    users, columns = draw(st.integers(0, max_users)), draw(st.integers(0, 14))
    codes = np.full((users, columns), -1, dtype=np.int64)
    scores = np.full((users, columns), -np.inf, dtype=np.float32)
    for row in range(users):
        items = draw(st.lists(st.integers(0, n - 1), unique=True, max_size=columns))
        places = draw(st.permutations(range(columns)))[: len(items)]
        codes[row, places] = items
        scores[row, places] = draw(st.lists(SCORES, min_size=len(items), max_size=len(items)))
    categories = draw(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=n, max_size=n))
    rules = ItemRules(
        boost=np.array(draw(st.lists(BOOSTS, min_size=n, max_size=n)), dtype=np.float32),
        blocked=np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))),
        stale=np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))),
        **ragged_categories(categories),
        max_per_category=draw(st.integers(1, 3)),
    )
    return Block(scores, codes, draw(st.integers(1, 16)), rules)


def ragged_categories(categories: list[list[int]]) -> dict[str, np.ndarray]:
    return {
        "category_codes": np.array([code for of_item in categories for code in of_item], dtype=np.int32),
        "category_offsets": np.cumsum([0, *map(len, categories)], dtype=np.int64),
    }


def only(rules: ItemRules, names: tuple[str, ...]) -> ItemRules:
    kept = {field for name in names for field in FIELDS[name]}
    return replace(rules, **{field.name: None for field in fields(rules) if field.name not in kept})


def oracle(block: Block) -> tuple[list[list[tuple[float, int]]], dict[str, int]]:
    """Every user's list of (score, code), and the places that each rule changed."""
    k = min(block.k, block.scores.shape[1])
    lists, changed = [], dict.fromkeys(block.rules.active, 0)
    for scores, codes in zip(block.scores, block.codes, strict=True):
        pairs = [(score, int(code)) for score, code in zip(scores, codes, strict=True) if score > -np.inf]
        found = first(pairs, k)
        for rule in block.rules.active:
            pairs = under(rule, pairs, block.rules, k)
            after = first(pairs, k)
            changed[rule] += sum(a[1] != b[1] for a, b in zip(found, after, strict=True))
            found = after
        lists.append(found)
    return lists, changed


def under(rule: str, pairs: list[tuple[np.float32, int]], rules: ItemRules, k: int) -> list[tuple[np.float32, int]]:
    if rule == "boosts":
        return [(np.float32(score + rules.boost[code]), code) for score, code in pairs]
    if rule == "blocklist":
        return [pair for pair in pairs if not rules.blocked[pair[1]]]
    if rule == "freshness":
        return [pair for pair in pairs if not rules.stale[pair[1]]]
    taken: list[tuple[np.float32, int]] = []
    counts: dict[int, int] = {}
    for pair in sorted(pairs, key=lambda pair: (-pair[0], pair[1])):
        start, end = rules.category_offsets[pair[1] : pair[1] + 2]
        categories = set(rules.category_codes[start:end].tolist())
        if len(taken) < k and all(counts.get(category, 0) < rules.max_per_category for category in categories):
            taken.append(pair)
            counts |= {category: counts.get(category, 0) + 1 for category in categories}
    return taken


def first(pairs: list[tuple[np.float32, int]], k: int) -> list[tuple[float, int]]:
    ordered = [(float(score), code) for score, code in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))][:k]
    return ordered + [NOTHING] * (k - len(ordered))


def as_lists(picked: Selection, codes: np.ndarray) -> list[list[tuple[float, int]]]:
    found = np.where(picked.values > -np.inf, np.take_along_axis(codes, picked.columns, axis=1), -1)
    return [list(zip(values, items, strict=True)) for values, items in zip(picked.values.tolist(), found.tolist(), strict=True)]


def picked_by(block: Block) -> Selection:
    return select_with_rules(block.scores, block.codes, block.k, block.rules)


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(names) or "none")
@settings(max_examples=60)
@given(block=blocks())
def test_every_subset_of_rules_gives_the_lists_and_counts_of_the_oracle(names: tuple[str, ...], block: Block) -> None:
    block = replace(block, rules=only(block.rules, names))
    picked = picked_by(block)
    lists, changed = oracle(block)
    assert as_lists(picked, block.codes) == lists
    assert dict(picked.changed) == changed
    assert tuple(picked.changed) == block.rules.active == names
    assert (picked.columns.dtype, picked.values.dtype) == (np.int64, np.float32)
    assert picked.columns.shape == picked.values.shape == (len(block.scores), min(block.k, block.scores.shape[1]))


@settings(max_examples=200)
@given(blocks(), st.sampled_from([None, ItemRules()]))
def test_without_rules_the_result_is_bit_for_bit_the_stable_sort_by_code_then_top_k(block: Block, rules: ItemRules | None) -> None:
    by_code = np.argsort(np.where(block.codes >= 0, block.codes, np.iinfo(np.int64).max), axis=1, kind="stable")
    values, places = select_top_k_per_row(np.take_along_axis(block.scores, by_code, axis=1), block.k)
    picked = select_with_rules(block.scores, block.codes, block.k, rules)
    assert picked.values.tobytes() == values.tobytes()
    assert picked.columns.tobytes() == np.take_along_axis(by_code, places, axis=1).tobytes()
    assert picked.changed == {}


@given(blocks(), st.integers(1, 3))
def test_users_and_sums_of_counts_do_not_depend_on_how_users_are_batched(block: Block, size: int) -> None:
    whole = picked_by(block)
    parts = [
        picked_by(replace(block, scores=block.scores[start : start + size], codes=block.codes[start : start + size]))
        for start in range(0, len(block.scores), size)
    ]
    if parts:
        np.testing.assert_array_equal(np.concatenate([part.columns for part in parts]), whole.columns)
        np.testing.assert_array_equal(np.concatenate([part.values for part in parts]), whole.values)
    assert {rule: sum(part.changed[rule] for part in parts) for rule in RULES} == whole.changed


@given(blocks(), st.integers(1, 5))
def test_empty_places_behind_the_candidates_change_neither_lists_nor_counts(block: Block, more: int) -> None:
    behind = ((0, 0), (0, more))
    padded = replace(
        block,
        scores=np.pad(block.scores, behind, constant_values=-np.inf).astype(np.float32),
        codes=np.pad(block.codes, behind, constant_values=-1),
    )
    narrow, wide = picked_by(block), picked_by(padded)
    for expected, found in zip(as_lists(narrow, block.codes), as_lists(wide, padded.codes), strict=True):
        assert [pair for pair in found if pair != NOTHING] == [pair for pair in expected if pair != NOTHING]
    assert narrow.changed == wide.changed


@given(blocks(max_users=8), st.sampled_from([1, 7, 20]), st.integers(1, 3))
def test_lists_do_not_depend_on_how_much_is_worked_on_at_once(block: Block, counts: int, columns: int) -> None:
    whole = picked_by(block)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys_batch.ranking.business_rules._MAX_COUNT_CELLS", counts)
        patch.setattr("recsys_batch.ranking.business_rules._COLUMNS_PER_BLOCK", columns)
        pieces = picked_by(block)
    np.testing.assert_array_equal(pieces.columns, whole.columns)
    np.testing.assert_array_equal(pieces.values, whole.values)
    assert pieces.changed == whole.changed


def test_a_wide_block_agrees_with_the_oracle_where_the_walk_goes_far_beyond_k() -> None:
    rng = np.random.default_rng(0)
    n, users, columns = 400, 30, 150
    categories = [rng.integers(0, 25, size=rng.integers(0, 4)).tolist() for _ in range(n)]
    rules = ItemRules(
        boost=rng.integers(0, 3, n).astype(np.float32),
        blocked=rng.random(n) < 0.2,
        stale=rng.random(n) < 0.2,
        **ragged_categories(categories),
        max_per_category=2,
    )
    codes = np.array([rng.permutation(n)[:columns] for _ in range(users)])
    codes[::3, 40:] = -1
    scores = np.where(codes >= 0, rng.integers(0, 20, codes.shape), -np.inf).astype(np.float32)
    for k in (1, 25, 60, 150):
        block = Block(scores, codes, k, rules)
        picked = picked_by(block)
        assert (as_lists(picked, codes), dict(picked.changed)) == oracle(block)


def test_a_skipped_item_takes_no_place_in_its_other_categories() -> None:
    rules = ItemRules(**ragged_categories([[0], [0, 1], [1], []]), max_per_category=1)
    picked = select_with_rules(np.array([[4, 3, 2, 1]], dtype=np.float32), np.arange(4)[None], 4, rules)
    assert as_lists(picked, np.arange(4)[None]) == [[(4.0, 0), (2.0, 2), (1.0, 3), NOTHING]]
    assert picked.changed == {"max_per_category": 3}


def test_an_item_listed_twice_in_a_category_counts_once() -> None:
    rules = ItemRules(**ragged_categories([[0, 0], [0], [0]]), max_per_category=2)
    picked = select_with_rules(np.array([[3, 2, 1]], dtype=np.float32), np.arange(3)[None], 3, rules)
    assert as_lists(picked, np.arange(3)[None]) == [[(3.0, 0), (2.0, 1), NOTHING]]


def test_a_blocked_items_boost_counts_for_the_boosts_and_its_loss_for_the_blocklist() -> None:
    rules = ItemRules(boost=np.array([0, 5, 0], np.float32), blocked=np.array([False, True, False]))
    picked = select_with_rules(np.array([[3, 2, 1]], dtype=np.float32), np.arange(3)[None], 2, rules)
    assert as_lists(picked, np.arange(3)[None]) == [[(3.0, 0), (1.0, 2)]]
    assert picked.changed == {"boosts": 2, "blocklist": 2}


def test_rules_for_no_items_let_a_block_without_candidates_pass() -> None:
    rules = ItemRules(np.zeros(0, np.float32), np.zeros(0, bool), np.zeros(0, bool), **ragged_categories([]), max_per_category=1)
    picked = select_with_rules(np.full((2, 3), -np.inf, np.float32), np.full((2, 3), -1), 2, rules)
    assert (picked.values == -np.inf).all()
    assert picked.changed == dict.fromkeys(RULES, 0)


def test_what_it_was_given_stays_as_it_was() -> None:
    scores, codes = np.array([[1, 3, 2]], dtype=np.float32), np.array([[2, 0, 1]])
    select_with_rules(scores, codes, 2, ItemRules(boost=np.ones(3, np.float32), blocked=np.array([True, False, False])))
    np.testing.assert_array_equal(scores, [[1, 3, 2]])
    np.testing.assert_array_equal(codes, [[2, 0, 1]])


SCORED, CODED = np.zeros((2, 3), np.float32), np.tile(np.arange(3), (2, 1))
BOOSTED = ItemRules(boost=np.zeros(3, np.float32))


@pytest.mark.parametrize("rules", [None, BOOSTED], ids=["plain", "ruled"])
@pytest.mark.parametrize(
    ("scores", "codes", "k", "message"),
    [
        (SCORED.astype(np.float64), CODED, 1, r"float32 matrix .* found float64 of shape \(2, 3\)"),
        (SCORED[0], CODED[0], 1, r"float32 matrix .* found float32 of shape \(3,\)"),
        (np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), CODED[:, ::-1], 1, "row 1, column 1 is NaN"),
        (SCORED, CODED[:, :2], 1, r"shape \(2, 3\), found int64 of shape \(2, 2\)"),
        (SCORED, CODED.astype(np.float32), 1, "must be int64 .* found float32"),
        (SCORED, CODED, 0, "k >= 1, found 0"),
    ],
)
def test_a_block_that_is_not_as_it_should_be_is_refused(
    scores: np.ndarray, codes: np.ndarray, k: int, message: str, rules: ItemRules | None
) -> None:
    with pytest.raises(RecsysBatchError, match=message):
        select_with_rules(scores, codes, k, rules)


@pytest.mark.parametrize("names", [(name,) for name in RULES])
def test_a_code_beyond_the_rules_is_refused_and_named(names: tuple[str, ...]) -> None:
    rules = ItemRules(np.zeros(3, np.float32), np.zeros(3, bool), np.zeros(3, bool), **ragged_categories([[], [0], []]), max_per_category=1)
    select_with_rules(SCORED, CODED, 1, only(rules, names))
    with pytest.raises(RecsysBatchError, match="item code 3, but the rules are for 3 items"):
        select_with_rules(SCORED, CODED + 1, 1, only(rules, names))


def test_under_rules_a_score_without_a_code_is_refused_and_its_place_named() -> None:
    with pytest.raises(RecsysBatchError, match=r"row 0, column 0 has score .* but no item code"):
        select_with_rules(SCORED, CODED - 1, 1, BOOSTED)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_boosted_score_beyond_float32_is_refused(sign: int) -> None:
    huge = np.full(3, sign * 3e38, dtype=np.float32)
    with pytest.raises(RecsysBatchError, match="item with code 0 add up beyond float32"):
        select_with_rules(huge[None], np.arange(3)[None], 1, ItemRules(boost=huge))


@pytest.mark.parametrize(
    ("given_rules", "message"),
    [
        ({"boost": np.zeros(3)}, "boost as float32 .* found float64"),
        ({"boost": np.zeros((3, 1), np.float32)}, r"boost as float32 .* shape \(3, 1\)"),
        ({"boost": np.array([0, np.nan], np.float32)}, "boost of the item with code 1 is nan"),
        ({"boost": np.array([-np.inf, 0], np.float32)}, "boost of the item with code 0 is -inf"),
        ({"blocked": np.zeros(3, np.int64)}, "blocked as bool .* found int64"),
        ({"stale": np.zeros(3, np.int64)}, "stale as bool .* found int64"),
        ({"blocked": np.zeros(3, bool), "stale": np.zeros(4, bool)}, "blocked for 3, stale for 4"),
        ({"boost": np.zeros(3, np.float32), **ragged_categories([[0]]), "max_per_category": 1}, "boost for 3, category_offsets for 1"),
        ({"max_per_category": 1}, "max_per_category needs category_codes and category_offsets"),
        ({"category_codes": np.zeros(3, np.int32)}, "max_per_category needs category_codes and category_offsets"),
        ({**ragged_categories([[0]]), "max_per_category": 0}, "max_per_category must be at least 1, found 0"),
        ({**ragged_categories([[0], [-2]]), "max_per_category": 1}, "category codes start at 0, found -2"),
        ({"category_codes": np.zeros(3, np.int32), "category_offsets": np.array([0, 2])}, "from 0 up to 3"),
        ({"category_codes": np.zeros(3, np.int32), "category_offsets": np.array([1, 3])}, "from 0 up to 3"),
        ({"category_codes": np.zeros(3, np.int32), "category_offsets": np.array([0, 4, 3])}, "from 0 up to 3"),
        ({"category_codes": np.zeros(0, np.int32), "category_offsets": np.zeros(0, np.int64)}, "from 0 up to 0"),
        ({"category_codes": np.zeros(3, np.int64), "category_offsets": np.array([0, 3])}, "category_codes as int32"),
        ({"category_codes": np.zeros(3, np.int32), "category_offsets": np.array([0, 3], np.int32)}, "category_offsets as int64"),
    ],
)
def test_rules_that_do_not_fit_together_are_refused(given_rules: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(RecsysBatchError, match=message):
        ItemRules(**given_rules)
