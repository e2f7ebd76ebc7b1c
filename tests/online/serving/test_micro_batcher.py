"""Rankings that go together: what becomes of one when another's answer cannot be handed over."""

import asyncio
import logging

import pytest

from recsys_batch.online.ranking.ladder import RankInput
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.online.serving.loaded_snapshot import LoadedSnapshot
from recsys_batch.online.serving.micro_batcher import MicroBatcher
from recsys_batch.online.snapshot.reader import Snapshot


def test_an_answer_that_cannot_be_handed_over_costs_nobody_else_theirs(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    settled: list[int | str] = []

    async def run() -> None:
        batcher, loaded = MicroBatcher(), LoadedSnapshot(snapshot, None, lambda _: None)
        for user in range(3):

            def settle(outcome: RankResult | Exception, user: int = user) -> None:
                if user == 1:
                    raise RuntimeError("the transport is closed")
                assert isinstance(outcome, RankResult)
                settled.append(user)

            batcher.submit(loaded, RankInput(RankQuery(user, 5), snapshot.lookup(user)), settle)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert settled == [0, 2]
    assert "could not be handed over" in caplog.text
