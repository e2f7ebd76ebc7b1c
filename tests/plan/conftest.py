"""Unit costs of a made-up installation, round so that plans can be worked out by hand."""

from typing import Any

import pytest

from recsys_batch.plan.surfaces import Surface
from recsys_batch.plan.unit_costs import UnitCosts


@pytest.fixture
def units() -> UnitCosts:
    """A night costs 40 core-seconds and 1 ms a user over 50,000 items; an answer 1 ms ranked, 0.5 ms read, 1 microsecond per item."""
    night = {"night_fixed": 40.0, "embed_user": 1e-4, "search_user": 4e-4, "score_user": 2e-4, "write_user": 2e-4, "snapshot_user": 1e-4}
    answers = {"lookup": 5e-4, "lookup_p99": 1e-3, "rank": 1e-3, "rank_p99": 3e-3, "pair": 1e-6}
    refresh = {"refresh_fixed": 0.5, "refresh_user": 1e-3, "refresh_seconds": 2.5}
    sizes = {"list_bytes": 2000.0, "record_bytes": 2500.0, "item_bytes": 400.0, "items": 50_000}
    names = [*night, *answers, *refresh, "search_exponent", "list_bytes", "record_bytes", "item_bytes"]
    sources = dict.fromkeys(names, "made up")
    return UnitCosts(**night, **answers, **refresh, **sizes, search_exponent=1.0, sources=sources)


@pytest.fixture
def surface() -> Any:
    """Makes a surface of a million users who see ten items of 50,000."""

    def make(**changes: Any) -> Surface:
        values: dict[str, Any] = {
            "users": 1_000_000,
            "active_share": 0.2,
            "requests_per_second": 20.0,
            "peak_factor": 4.0,
            "items": 50_000,
            "staleness_hours": 36.0,
            "candidates_change_hours": 36.0,
            "p99_ms": 50.0,
        }
        return Surface(**values | changes)

    return make
