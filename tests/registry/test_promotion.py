"""The alias moves only to a model that beats popularity and the champion."""

import pytest

from recsys_batch.registry.promotion import decide_promotion


@pytest.mark.parametrize(
    ("own", "popular", "champion", "crowned", "beats_popularity"),
    [
        (0.3, 0.2, None, True, True),
        (0.2, 0.2, None, False, False),
        (0.3, 0.2, 0.25, True, True),
        (0.3, 0.2, 0.3, False, True),
        (0.1, 0.2, 0.05, False, False),
        (float("nan"), 0.2, None, False, False),
    ],
)
def test_gate(own: float, popular: float, champion: float | None, crowned: bool, beats_popularity: bool) -> None:
    gate = {"challenger": own, "popularity": popular} | ({} if champion is None else {"champion": champion})
    verdict = decide_promotion(gate)
    assert (verdict.promoted, verdict.beats_popularity) == (crowned, beats_popularity)


@pytest.mark.parametrize(("low", "high", "promoted"), [(0.001, 0.09, True), (-0.001, 0.09, False), (0.0, 0.05, False)])
def test_a_gain_that_may_be_chance_moves_nothing(low: float, high: float, promoted: bool) -> None:
    gate = {"challenger": 0.3, "popularity": 0.2, "champion": 0.26, "gain_low": low, "gain_high": high, "confidence": 0.95}
    verdict = decide_promotion(gate)
    assert (verdict.promoted, verdict.beats_popularity) == (promoted, True)
    assert ("with 95% confidence may be chance" in verdict.reason) != promoted
