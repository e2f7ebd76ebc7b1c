"""The server's log of what was shown and of what came back, for one worker."""

import datetime as dt
from pathlib import Path

import numpy as np

from recsys_batch.dataset.log_rows import Exposure, FeedbackEvent
from recsys_batch.online.api.messages import Answer
from recsys_batch.online.exposure_log.buffered_log import BufferedLog, LogStats
from recsys_batch.online.ranking.rank_query import RankQuery
from recsys_batch.online.ranking.rank_result import RankResult


class ExposureRecorder:
    """Records answers and feedback without waiting: a log that is full drops and counts.

    Args:
        folder: of the files; None to keep no log. max_mb: bound on the files of each kind in it.
    """

    def __init__(self, folder: Path | None, *, max_mb: float) -> None:
        self._folder, self._max_mb = folder, max_mb
        self._log: BufferedLog | None = None

    @property
    def is_enabled(self) -> bool:
        return self._folder is not None

    def open(self) -> None:
        """Open the log, once in the process that answers; its files are made when rows come."""
        if self._folder is not None and self._log is None:
            self._log = BufferedLog(self._folder, self._max_mb)

    def record(self, query: RankQuery, ranked: RankResult, answer: Answer) -> None:
        """Log an answer that was given; what cannot be logged is counted and harms no answer."""
        if self._log is None:
            return
        try:
            row = _make_exposure(query, ranked, answer)
        except Exception as error:  # the answer was made: nothing in it may fail for the log's sake
            self._log.count_unloggable(error)
        else:
            self._log.log_exposure(row)

    def record_feedback(self, events: list[FeedbackEvent]) -> int | None:
        """Log events of users; returns how many were taken, or None, with none of them taken, where too many wait to be written."""
        return self._log.log_feedback(events) if self._log is not None else None

    def stats(self) -> dict[str, LogStats]:
        """Count the rows of each kind of log."""
        return self._log.stats() if self._log is not None else {}

    def close(self) -> None:
        """Write what waits; rows that come later wait for good."""
        if self._log is not None:
            self._log.close()


def _make_exposure(query: RankQuery, ranked: RankResult, answer: Answer) -> Exposure:
    items, explored, given = answer.items, ranked.exploration, query.candidate_scores
    return Exposure(
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
        candidates="retrieved" if ranked.unknown_item_ids is None else "request",
        candidate_scores=None if given is None else [given[item.candidate_rank - 1] for item in items if item.candidate_rank],
    )


def _nan_to_none(scores: np.ndarray) -> list[float | None]:
    return [None if score != score else score for score in scores.tolist()]
