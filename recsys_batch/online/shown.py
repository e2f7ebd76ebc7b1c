"""The server's logs of what was shown and of what came back, for one worker: opened for the id types of the snapshot in use."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np

from recsys_batch.online.exposures import Exposure, ExposureLog
from recsys_batch.online.feedback import FeedbackEvent, FeedbackLog
from recsys_batch.online.query import Query
from recsys_batch.online.ranking import Ranked
from recsys_batch.online.requests import Answer
from recsys_batch.schemas import IdTypes


class Shown:
    """Nothing here waits: a log that is full drops and counts.

    Args:
        folder: of the files; None to keep no log.
    """

    def __init__(self, folder: Path | None, *, max_mb: float) -> None:
        self._folder, self._max_mb = folder, max_mb
        self._ids: IdTypes | None = None
        self._exposures: ExposureLog | None = None
        self._feedback: FeedbackLog | None = None

    @property
    def on(self) -> bool:
        return self._folder is not None

    def record(self, query: Query, ranked: Ranked, told: Answer, ids: IdTypes) -> None:
        """An answer that was given; ``ids`` are its snapshot's."""
        if self._folder is None:
            return
        if ids != self._ids:
            self._open(ids)
        assert self._exposures is not None
        items = told.items
        self._exposures.record(
            Exposure(
                request_id=told.request_id,
                shown_at=dt.datetime.now(dt.UTC),
                user_id=query.user_id,
                snapshot_id=told.snapshot_id,
                model_version=told.model_version,
                source=told.source,
                degraded=told.degraded,
                item_ids=[item.item_id for item in items],
                scores=[item.score for item in items],
                batch_scores=None if ranked.batch_scores is None else _known(ranked.batch_scores),
                candidate_ranks=[item.candidate_rank for item in items],
                context_ts=query.when,
                device=query.device,
                session_item_ids=query.session_item_ids,
                attributes=query.attributes,
            )
        )

    def came_back(self, events: list[FeedbackEvent], ids: IdTypes) -> int:
        """Events of users; how many were taken, the others were dropped because too many wait."""
        if ids != self._ids:
            self._open(ids)
        assert self._feedback is not None
        return sum(self._feedback.record(event) for event in events)

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each log, as ``LogStats``; since it was opened."""
        logs = {"exposures": self._exposures, "feedback": self._feedback}
        return {name: dict(vars(log.stats())) for name, log in logs.items() if log is not None}

    def close(self, seconds: float = 5.0) -> None:
        """Write what waits."""
        for log in (self._exposures, self._feedback):
            if log is not None:
                log.close(seconds)

    def _open(self, ids: IdTypes) -> None:
        """For the first snapshot; another one with other id types is another warehouse's, and gets files of its own."""
        self.close()
        assert self._folder is not None
        self._ids = ids
        self._exposures = ExposureLog(self._folder, user_type=ids.user, item_type=ids.item, max_mb=self._max_mb)
        self._feedback = FeedbackLog(self._folder, user_type=ids.user, item_type=ids.item, max_mb=self._max_mb)


def _known(scores: np.ndarray) -> list[float | None]:
    return [None if score != score else score for score in scores.tolist()]
