"""SNIPS finds the value of an order that was not shown, where the hits of what was shown do not."""

import math
from typing import NamedTuple

import numpy as np
import pytest

from recsys_batch.evaluation.off_policy import compare_policies
from recsys_batch.online.ranking.exploration import Explorer

K, N, SHARE = 4, 8, 0.5
ATTENTION = np.array([0.9, 0.7, 0.5, 0.4])
"""Of a place; a hit has probability attention x appeal x the user's own factor."""
APPEAL = np.linspace(0.8, 0.1, N)
"""Of the items in the ranker's order."""
BATCH = np.array([0, 7, 2, 6, 5, 4, 3, 1])
"""The batch's order: item at each place. It agrees with the ranker at the first and the third."""


class Log(NamedTuple):
    position: np.ndarray
    propensity: np.ndarray
    ranker: np.ndarray
    batch: np.ndarray
    hits: np.ndarray
    users: np.ndarray


def simulate(seed: int, n_users: int = 150, answers_per_user: int = 6) -> Log:
    rng, explorer = np.random.default_rng(seed), Explorer(SHARE, seed)
    answers = [explorer.swap_places(K, N) for _ in range(n_users * answers_per_user)]
    items = np.concatenate([places for places, _ in answers])
    position = np.tile(np.arange(K), len(answers))
    users = np.repeat(np.arange(n_users), answers_per_user * K)
    factor = rng.uniform(0.5, 1.0, n_users)[users]
    hits = rng.random(len(items)) < ATTENTION[position] * APPEAL[items] * factor
    propensity = np.concatenate([propensities for _, propensities in answers])
    return Log(position + 1.0, propensity, items + 1.0, np.argsort(BATCH)[items] + 1.0, hits, users)


TRUTH = {"ranker": 0.75 * (ATTENTION * APPEAL[:K]).mean(), "batch": 0.75 * (ATTENTION * APPEAL[BATCH[:K]]).mean()}


def estimate(log: Log):  # type: ignore[no-untyped-def]
    return compare_policies({"ranker": log.ranker, "batch": log.batch}, log.position, log.propensity, log.hits, log.users)


def test_hits_of_what_was_shown_mislead_and_the_interval_holds_the_truth() -> None:
    log = simulate(1, n_users=1500)
    values, differences = estimate(log)
    naive = log.hits[log.batch == log.position].mean()
    assert naive - TRUTH["batch"] > 0.05
    for policy, truth in TRUTH.items():
        assert values[policy].low < truth < values[policy].high
        assert values[policy].high - values[policy].low < 0.05
    assert differences["batch"].low < TRUTH["batch"] - TRUTH["ranker"] < differences["batch"].high < 0


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = np.zeros(3)
    for seed in range(100):
        values, differences = estimate(simulate(seed))
        pairs = [(values[policy], truth) for policy, truth in TRUTH.items()]
        pairs.append((differences["batch"], TRUTH["batch"] - TRUTH["ranker"]))
        held += [value.low < truth < value.high for value, truth in pairs]
    assert (held >= 89).all(), held


def test_the_figures_are_those_of_a_calculator() -> None:
    """Weights 2, 4 and 1 of hits 1, 0 and 1: the first two of one user, the third of another; a fourth row matches no policy."""
    position, ranker, batch = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 9]), np.array([2.0, math.nan, 3, 8])
    hits, users = np.array([True, False, True, True]), np.array([0, 0, 1, 1])
    values, differences = compare_policies({"ranker": ranker, "batch": batch}, position, np.array([0.5, 0.25, 1, 0.1]), hits, users)
    value = 3 / 7
    by_user = (2 * (1 - value) + 4 * (0 - value), 1 - value)
    half = 1.959964 * math.hypot(*by_user) / 7
    told = values["ranker"]
    assert (told.value, told.low, told.high) == pytest.approx((value, value - half, value + half))
    assert (told.n_matches, told.effective_sample_size) == (3, pytest.approx(49 / 21))
    assert (values["batch"].value, values["batch"].n_matches, values["batch"].effective_sample_size) == (1.0, 1, 1.0)
    assert differences["batch"].value == pytest.approx(4 / 7)
    assert differences["batch"].high - 4 / 7 == pytest.approx(half)


def test_an_order_that_was_never_shown_has_no_value() -> None:
    one = np.array([1.0])
    values, differences = compare_policies({"ranker": one, "batch": one * math.nan}, one, one, np.array([True]), np.array([0]))
    assert (values["batch"].value, values["batch"].low, differences["batch"].value, differences["batch"].high) == (None,) * 4
    assert values["ranker"].value == 1.0
