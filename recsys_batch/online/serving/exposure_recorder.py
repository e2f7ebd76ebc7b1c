"""The server's log of what was shown and of what came back, for one worker: opened for the id types of the snapshot in use."""

import datetime as dt
from pathlib import Path

import numpy as np

from recsys_batch.online.api.messages import Answer
from recsys_batch.online.exposure_log.log_rows import Exposure, FeedbackEvent
from recsys_batch.online.exposure_log.writer_process import LogWriterClient
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult
from recsys_batch.schemas import IdTypes


class ExposureRecorder:
    """Records answers and feedback without waiting: a log that is full drops and counts.

    Args:
        folder: of the files; None to keep no log.
        stats: a file of the server's, for what the log counts.
    """

    def __init__(self, folder: Path | None, stats: Path, *, max_mb: float) -> None:
        self._folder, self._stats, self._max_mb = folder, stats, max_mb
        self._ids: IdTypes | None = None
        self._log: LogWriterClient | None = None

    @property
    def is_enabled(self) -> bool:
        return self._folder is not None

    def open(self, ids: IdTypes) -> None:
        """Open the log for a snapshot of these ids; another one with other id types is another warehouse's, and gets files of its own."""
        if self._folder is None or ids == self._ids:
            return
        self.close()
        self._ids, self._log = ids, LogWriterClient(self._folder, self._stats, ids, self._max_mb)

    def record(self, query: RankQuery, ranked: RankResult, answer: Answer) -> None:
        """Log an answer that was given."""
        if self._log is None:
            return
        items, explored = answer.items, ranked.exploration
        self._log.log_exposure(
            Exposure(
                request_id=answer.request_id,
                shown_at=dt.datetime.now(dt.UTC),
                user_id=query.user_id,
                snapshot_id=answer.snapshot_id,
                model_version=answer.model_version,
                source=answer.source,
                degraded=answer.degraded,
                item_ids=[item.item_id for item in items],
                scores=[item.score for item in items],
                batch_scores=None if ranked.batch_scores is None else _nan_to_none(ranked.batch_scores),
                candidate_ranks=[item.candidate_rank for item in items],
                context_ts=query.when,
                device=query.device,
                session_item_ids=query.session_item_ids,
                attributes=query.attributes,
                lists=answer.lists,
                propensities=None if explored is None else explored.propensities.tolist(),
                ranker_positions=None if explored is None else explored.ranker_positions.tolist(),
                batch_positions=None if explored is None else [place or None for place in explored.batch_positions.tolist()],
            )
        )

    def record_feedback(self, events: list[FeedbackEvent]) -> int:
        """Log events of users; returns how many were taken, the others were dropped because too many wait."""
        return sum(self._log.log_feedback(event) for event in events) if self._log is not None else 0

    def counts(self) -> dict[str, dict[str, int]]:
        """Read the log's counts, as ``LogWriterClient.counts``."""
        return self._log.counts() if self._log is not None else {}

    def close(self) -> None:
        """Write what waits."""
        if self._log is not None:
            self._log.close()
            self._log = None


def _nan_to_none(scores: np.ndarray) -> list[float | None]:
    return [None if score != score else score for score in scores.tolist()]
