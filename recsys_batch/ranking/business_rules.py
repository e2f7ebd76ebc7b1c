"""Business rules, applied to a block of users once the ranker has scored their candidates.

They apply in this order: boosts, blocklist, freshness, max_per_category. Every rule counts the places of the lists that it changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from recsys_batch.errors import RecsysBatchError
from recsys_batch.ranking.top_k import NO_CODE, select_top_k_per_row

_MAX_COUNT_CELLS = 8_000_000  # (user, category) counts worked on at once: 32 MB, of which only what is used is touched
_COLUMNS_PER_BLOCK = 32  # candidates per user whose categories are looked up at once; a walk can end after each lot


@dataclass(frozen=True)
class ItemRules:
    """The rules' values of each of n items, by catalogue code. None: that rule is not in force.

    Attributes:
        boost: float32 [n], finite, added to the score.
        blocked: bool [n], never recommended.
        stale: bool [n], older than allowed, so not recommended.
        category_codes: int32 [total], from 0: the categories of every item, one item after the other.
        category_offsets: int64 [n + 1]: item i has category_codes[category_offsets[i] : category_offsets[i + 1]], maybe none.
        max_per_category: at most so many of a user's list share any one category; an item counts in each of its categories.

    Raises RecsysBatchError for an array of another dtype, shape or length, a boost that is not finite, offsets that do not fit the
    category codes, a negative category code, max_per_category < 1 or without categories.
    """

    boost: np.ndarray | None = None
    blocked: np.ndarray | None = None
    stale: np.ndarray | None = None
    category_codes: np.ndarray | None = None
    category_offsets: np.ndarray | None = None
    max_per_category: int | None = None

    def __post_init__(self) -> None:
        for name, dtype in RULE_DTYPES.items():
            array = getattr(self, name)
            if array is not None and (array.ndim != 1 or array.dtype != dtype):
                raise RecsysBatchError(f"rules need {name} as {dtype} of one dimension, found {array.dtype} of shape {array.shape}")
        self._check_categories()
        lengths = self._lengths()
        if len(set(lengths.values())) > 1:
            sizes = ", ".join(f"{name} for {length}" for name, length in lengths.items())
            raise RecsysBatchError(f"rules are for different numbers of items ({sizes}): build all of them from one catalogue")
        if self.boost is not None and not np.isfinite(self.boost).all():
            code = int(np.flatnonzero(~np.isfinite(self.boost))[0])
            raise RecsysBatchError(
                f"the boost of the item with code {code} is {self.boost[code]}: boosts must be finite, use the blocklist to drop an item"
            )

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the rules in force, in the order in which they apply."""
        rules = {"boosts": self.boost, "blocklist": self.blocked, "freshness": self.stale, "max_per_category": self.max_per_category}
        return tuple(name for name, value in rules.items() if value is not None)

    @property
    def n_items(self) -> int | None:
        """Items that the arrays are for; None where there is no array."""
        return next(iter(self._lengths().values()), None)

    @cached_property
    def n_categories(self) -> int:
        """Number of categories: one more than the highest code."""
        return 0 if self.category_codes is None else int(self.category_codes.max(initial=-1)) + 1

    @cached_property
    def most_categories(self) -> int:
        """Categories of the item that has most."""
        return 0 if self.category_offsets is None else int(np.diff(self.category_offsets).max(initial=0))

    def _lengths(self) -> dict[str, int]:
        lengths = {name: len(array) for name in ("boost", "blocked", "stale") if (array := getattr(self, name)) is not None}
        return lengths if self.category_offsets is None else lengths | {"category_offsets": len(self.category_offsets) - 1}

    def _check_categories(self) -> None:
        codes, offsets = self.category_codes, self.category_offsets
        if self.max_per_category is not None and self.max_per_category < 1:
            raise RecsysBatchError(
                f"max_per_category must be at least 1, found {self.max_per_category}: leave it out to allow any number, "
                "or put the items on the blocklist"
            )
        if codes is None or offsets is None:
            if self.max_per_category is not None or codes is not offsets:
                raise RecsysBatchError("max_per_category needs category_codes and category_offsets, found at most one of them: pass both")
            return
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(codes) or (np.diff(offsets) < 0).any():
            raise RecsysBatchError(
                f"category_offsets must go from 0 up to {len(codes)}, the length of category_codes, and never fall: "
                "build both from the same lists"
            )
        if codes.min(initial=0) < 0:
            raise RecsysBatchError(f"category codes start at 0, found {codes.min()}: leave out categories that are not known")


RULE_DTYPES = {"boost": "float32", "blocked": "bool", "stale": "bool", "category_codes": "int32", "category_offsets": "int64"}
"""dtype of each array of ``ItemRules``, by name."""


@dataclass(frozen=True)
class Selection:
    """The lists of a block of B users.

    Attributes:
        columns: int64 [B, k'], places in the candidates; any place where there is nothing.
        values: float32 [B, k'], the scores with their boosts; -inf where there is nothing.
        changed: active rule -> places of all lists that hold another item, or nothing, because of it; numbers of blocks add up.
    """

    columns: np.ndarray
    values: np.ndarray
    changed: Mapping[str, int]


def select_with_rules(scores: np.ndarray, codes: np.ndarray, k: int, rules: ItemRules | None) -> Selection:
    """Select the k best candidates of every user that the rules allow, by score descending, then code ascending.

    Users do not depend on each other. Under max_per_category, candidates are taken in that order and one is passed over where
    the list already holds max_per_category items of any of its categories; an item without categories never is.

    Args:
        scores: float32 [B, C], -inf where there is no candidate.
        codes: int64 [B, C], catalogue codes in any order, unique in a row; -1 where there is no candidate.
        k: at least 1.
        rules: None for the plain k best.

    Returns the lists, of k' = min(k, C) places. Raises RecsysBatchError where scores are not a float32 matrix or hold a NaN, codes
    are of another shape or dtype, or k < 1; with rules also for a code that they do not cover, a score without a code, or a boosted
    score beyond float32.
    """
    _check_inputs(scores, codes, k)
    active = () if rules is None else rules.active
    if rules is not None and active:
        _check_covered(scores, codes, rules)
    by_code = _columns_by_code(codes)
    scores = np.take_along_axis(scores, by_code, axis=1)
    if rules is None or not active or not rules.n_items or not scores.size:
        values, places = select_top_k_per_row(scores, k)
        return Selection(np.take_along_axis(by_code, places, axis=1), values, dict.fromkeys(active, 0))
    codes = np.take_along_axis(codes, by_code, axis=1)
    lists = []
    if rules.boost is not None:
        values, places = select_top_k_per_row(scores, k)
        lists.append(np.where(values > -np.inf, np.take_along_axis(codes, places, axis=1), NO_CODE))
        scores = _add_boosts(scores, codes, rules.boost)
    # All columns in order, as items behind the k-th place fill up for what a rule drops.
    values, places = select_top_k_per_row(scores, scores.shape[1])
    codes = np.take_along_axis(codes, places, axis=1)
    kept = values > -np.inf
    lists.append(_first_kept_codes(codes, kept, k))
    for dropped in (rules.blocked, rules.stale):
        if dropped is not None:
            kept = kept & ~dropped[codes]
            lists.append(_first_kept_codes(codes, kept, k))
    if rules.max_per_category is not None:
        kept = _cap_categories(codes, kept, k, rules)
        lists.append(_first_kept_codes(codes, kept, k))
    changed = {rule: int(np.count_nonzero(before != after)) for rule, (before, after) in zip(active, pairwise(lists), strict=True)}
    columns, is_filled = _first_kept_columns(kept, k)
    values = np.where(is_filled, np.take_along_axis(values, columns, axis=1), np.float32(-np.inf))
    columns = np.take_along_axis(by_code, np.take_along_axis(places, columns, axis=1), axis=1)
    return Selection(columns, values, changed)


def _check_inputs(scores: np.ndarray, codes: np.ndarray, k: int) -> None:
    if k < 1:
        raise RecsysBatchError(f"a list needs k >= 1, found {k}")
    if scores.ndim != 2 or scores.dtype != np.float32:
        raise RecsysBatchError(f"scores must be a float32 matrix [users, candidates], found {scores.dtype} of shape {scores.shape}")
    if codes.shape != scores.shape or codes.dtype != np.int64:
        raise RecsysBatchError(f"codes must be int64 of the scores' shape {scores.shape}, found {codes.dtype} of shape {codes.shape}")
    if scores.size and np.isnan(scores.min()):
        row, column = np.argwhere(np.isnan(scores))[0]
        raise RecsysBatchError(f"the score at row {row}, column {column} is NaN: check the ranker and its inputs")


def _check_covered(scores: np.ndarray, codes: np.ndarray, rules: ItemRules) -> None:
    n = rules.n_items or 0
    highest = int(codes.max(initial=NO_CODE))
    if highest >= n:
        raise RecsysBatchError(f"found item code {highest}, but the rules are for {n} items: build them from the run's own catalogue")
    stray = (codes < 0) & (scores > -np.inf)
    if stray.any():
        row, column = np.argwhere(stray)[0]
        raise RecsysBatchError(
            f"row {row}, column {column} has score {scores[row, column]} but no item code: give it -inf, or an item of the catalogue"
        )


def _columns_by_code(codes: np.ndarray) -> np.ndarray:
    """Order columns by code ascending, those without a code behind: int64 [B, C]. So ties in score go to the smaller item_id."""
    # Distinct keys need no stable sort, which is four times slower.
    behind = np.iinfo(np.int64).max - np.arange(codes.shape[1])[::-1]
    return np.argsort(np.where(codes >= 0, codes, behind), axis=1)


def _add_boosts(scores: np.ndarray, codes: np.ndarray, boost: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        boosted: np.ndarray = scores + boost[codes]  # code -1 takes any boost: its score stays -inf
    beyond = np.isinf(boosted) & np.isfinite(scores)
    if beyond.any():
        code = int(codes[beyond][0])
        raise RecsysBatchError(
            f"score {scores[beyond][0]} and boost {boost[code]} of the item with code {code} add up beyond float32: lower the boost"
        )
    return boosted


def _first_kept_columns(kept: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find each row's first True: (columns int64, is_filled bool), both [B, min(k, C)]; column 0 where there is none."""
    rows, n = kept.shape
    flat = np.append(np.flatnonzero(kept), 0)
    counts = np.count_nonzero(kept, axis=1)
    nth = np.arange(min(k, n))
    is_filled = nth < counts[:, None]
    places = flat[np.where(is_filled, (np.cumsum(counts) - counts)[:, None] + nth, -1)]
    return np.where(is_filled, places - np.arange(rows)[:, None] * n, 0), is_filled


def _first_kept_codes(codes: np.ndarray, kept: np.ndarray, k: int) -> np.ndarray:
    """Take the first kept codes of each row: int64 [B, min(k, C)], NO_CODE behind them."""
    columns, is_filled = _first_kept_columns(kept, k)
    return np.where(is_filled, np.take_along_axis(codes, columns, axis=1), NO_CODE)


def _cap_categories(codes: np.ndarray, kept: np.ndarray, k: int, rules: ItemRules) -> np.ndarray:
    """Mark what is left of ``kept`` (bool [B, C]) under max_per_category, right up to each row's k-th; codes [B, C] in final order."""
    allowed = np.zeros_like(kept)
    step = max(1, _MAX_COUNT_CELLS // max(rules.n_categories + 1, rules.most_categories * _COLUMNS_PER_BLOCK))
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        allowed[part] = _cap_categories_of_block(np.ascontiguousarray(codes[part].T), np.ascontiguousarray(kept[part].T), k, rules).T
    return allowed


def _cap_categories_of_block(codes: np.ndarray, kept: np.ndarray, k: int, rules: ItemRules) -> np.ndarray:
    """Mark what is left of ``kept`` for codes and kept [C, b], transposed, all users' next candidates at once: bool [C, b]."""
    n_columns, users = codes.shape
    width = rules.n_categories + 1  # the last stands for "no category" and is never full
    counts = np.zeros(users * width, dtype=np.int32)
    counts[width - 1 :: width] = np.iinfo(np.int32).min
    allowed = np.zeros_like(kept)
    for start in range(0, n_columns, _COLUMNS_PER_BLOCK):
        part = slice(start, start + _COLUMNS_PER_BLOCK)
        if not kept[start:].any() or (np.count_nonzero(allowed, axis=0) >= k).all():
            break
        for column, cells in enumerate(_category_cells(codes[part], kept[part], width, rules), start):
            category_counts = counts[cells]
            fits = kept[column] & (category_counts < rules.max_per_category).all(axis=0)
            counts[cells] = category_counts + fits
            allowed[column] = fits
    return allowed


def _category_cells(codes: np.ndarray, kept: np.ndarray, width: int, rules: ItemRules) -> np.ndarray:
    """Find the cells of counts [b, width] that candidates [c, b] of at most m categories count in: int64 [c, m, b]."""
    assert rules.category_codes is not None and rules.category_offsets is not None
    starts = rules.category_offsets[codes]
    lengths = np.where(kept, rules.category_offsets[codes + 1] - starts, 0)
    nth = np.arange(lengths.max(initial=0))[:, None]
    is_category = nth < lengths[:, None]
    categories = rules.category_codes[np.where(is_category, starts[:, None] + nth, 0)]
    return np.where(is_category, categories, width - 1) + np.arange(codes.shape[1]) * width
