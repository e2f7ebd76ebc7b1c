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
