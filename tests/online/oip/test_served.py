"""The models follow the snapshot in use."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np

from recsys_batch.online.live import Live
from recsys_batch.online.oip.served import ServedModels


def test_a_snapshot_that_comes_back_is_answered_from_as_opened_anew(make: Any, current: Any, tmp_path: Path) -> None:
    """Nobody asks while the second one is in use: that is when a roll-back goes unnoticed."""
    make("first", seed=1)
    folder = make("second", seed=2)

    async def there_and_back() -> None:
        live = Live(folder, lambda _: None, tmp_path / "turns")  # type: ignore[arg-type, return-value]
        models = ServedModels(live, 50)
        answers = []
        for name, asked in (("first", True), ("second", False), ("first", True)):
            current(folder, name)
            await live.refresh()
            if asked:
                answers.append(models.get("recommend", None).infer({"user_id": np.array([5])})["item_id"])
        np.testing.assert_array_equal(*answers)

    asyncio.run(there_and_back())
