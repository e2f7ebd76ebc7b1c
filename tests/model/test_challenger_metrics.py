"""What a new model is compared with: popularity and the champion, on the same held-out events."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recsys_batch.config import Config
from recsys_batch.model import challenger_metrics
from recsys_batch.model.challenger_metrics import measure_bundle_ndcg, measure_popularity, select_events_after_training
from recsys_batch.model.training_data import Positives, TrainingData, prepare_training_data
from recsys_batch.model.validation_split import split_positives
from recsys_batch.registry.bundle import Bundle

Train = Callable[..., Bundle]


def changed(config: Config, **training: Any) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def champion_until(moment: str | None) -> Any:
    return SimpleNamespace(manifest={"trained_until": moment, "metrics": {"ndcg_at_10": 0.125}})


def iso(us: int) -> str:
    return dt.datetime.fromtimestamp(us / 1e6, tz=dt.UTC).isoformat()


def test_popularity_by_hand(make_positives: Any) -> None:
    train = make_positives([[0, 1], [0], [0, 2], [1]], 4)  # item 0: 3 users, 1: 2, 2: 1, 3: none
    held = make_positives([[2], [1, 3], [], [0]], 4)
    got = measure_popularity(train, held)
    # user 0 has seen 0, 1: the list starts with 2. user 1: 1, 2, 3. user 3: 0 first.
    second = (1 + 1 / np.log2(4)) / (1 + 1 / np.log2(3))
    assert got["popularity_ndcg_at_10"] == pytest.approx((1 + second + 1) / 3)
    assert got["popularity_recall_at_20"] == 1.0


def test_popularity_over_nothing_is_zero(make_positives: Any) -> None:
    assert set(measure_popularity(make_positives([[0]], 1), make_positives([[]], 1)).values()) == {0.0}


def test_a_champion_is_judged_only_on_events_that_are_newer_than_its_training(
    planted: Any, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(challenger_metrics, "MIN_NEW_EVENTS", 5)
    data = prepare_training_data(planted.interactions, planted.items, planted.users, small)
    held = split_positives(data.positives, 0.2).held_out
    until = int(np.median(held.event_us))
    fresh = select_events_after_training(champion_until(iso(until)), data, held)
    assert fresh is not None and fresh.n_users == held.n_users
    assert len(fresh.codes) == (held.event_us > until).sum() > 0 and (fresh.event_us > until).all()


@pytest.mark.parametrize("moment", [None, iso(2_000_000_000_000), "2030-01-01T00:00:00+00:00"])
def test_without_enough_new_events_there_is_nothing_fair_to_compare_on(planted: Any, small: Config, moment: str | None) -> None:
    data = prepare_training_data(planted.interactions, planted.items, planted.users, small)
    assert select_events_after_training(champion_until(moment), data, split_positives(data.positives, 0.2).held_out) is None


def test_without_times_there_is_nothing_fair_to_compare_on(planted: Any, small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenger_metrics, "MIN_NEW_EVENTS", 1)
    data = prepare_training_data(planted.without_time().interactions, planted.items, planted.users, small)
    assert select_events_after_training(champion_until(iso(0)), data, split_positives(data.positives, 0.2).held_out) is None


def bundle_ndcg(bundle: Bundle, planted: Any, data: TrainingData, held_in: Positives, held_out: Positives) -> float:
    """Of all users with a history and something held out."""
    chosen = np.flatnonzero((held_in.counts > 0) & (held_out.counts > 0))
    return float(measure_bundle_ndcg(bundle, data, planted.items, planted.users, held_in, held_out, chosen).mean())


def test_a_bundle_measured_from_outside_is_as_good_as_its_own_training_said(planted: Any, small: Config, train_on: Train) -> None:
    """Towers, features and ranker out of the files give what they gave in training."""
    config = changed(small, refit=False)
    result = train_on(planted, config)
    data = prepare_training_data(planted.interactions, planted.items, planted.users, config)
    held_in, held_out, _ = split_positives(data.positives, config.training.validation_fraction)
    got = bundle_ndcg(result, planted, data, held_in, held_out)
    assert got == pytest.approx(result.manifest["metrics"]["ndcg_at_10"], abs=1e-6)


def test_the_gate_compares_challenger_and_champion_on_the_same_new_events(
    planted: Any, small: Config, train_on: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(challenger_metrics, "MIN_NEW_EVENTS", 5)
    stamps = planted.interactions["event_ts"].cast(pa.int64()).to_numpy()
    older = planted.interactions.filter(pa.array(stamps < np.quantile(stamps, 0.95)))
    champion = train_on(replace(planted, interactions=older), small)
    result = train_on(planted, changed(small, refit=False), champion=champion)
    data = prepare_training_data(planted.interactions, planted.items, planted.users, small)
    held_in, held_out, _ = split_positives(data.positives, small.training.validation_fraction)
    fresh = select_events_after_training(champion, data, held_out)
    assert fresh is not None and 0 < len(fresh.codes) < len(held_out.codes)
    gate = result.manifest["gate"]
    assert gate["champion"] == pytest.approx(bundle_ndcg(champion, planted, data, held_in, fresh))
    assert gate["challenger"] == pytest.approx(bundle_ndcg(result, planted, data, held_in, fresh), abs=1e-6)
    assert gate["popularity"] == pytest.approx(measure_popularity(held_in, fresh)["popularity_ndcg_at_10"])
    assert gate["gain_low"] <= gate["challenger"] - gate["champion"] <= gate["gain_high"]
    assert gate["gain_low"] < gate["gain_high"] and gate["confidence"] == 0.95
    any_gain = train_on(planted, changed(small, refit=False, promotion_confidence=0.0), champion=champion).manifest["gate"]
    assert {name: any_gain[name] for name in ("champion", "challenger", "popularity")} == any_gain


def test_a_champion_that_has_seen_everything_stands_by_its_own_measurement(
    planted: Any, small: Config, train_on: Train, bundle: Bundle
) -> None:
    gate = train_on(planted, changed(small, seed=5), champion=bundle).manifest["gate"]
    assert gate["champion"] == bundle.manifest["metrics"]["ndcg_at_10"]
