"""Scores of the candidates that requests bring: each has the bits that it has in the user's whole list, whichever others come with it.

What a row of a matrix product comes to rests, in its last bits, on its place among the rows and on their number: BLAS multiplies them in
groups, and a single row by another kernel. So what was retrieved for a user is scored in the user's own list, as without naming it; the
rest is scored eight by eight. A product has one of two shapes then, and a candidate its place in it. Called by ladder.py.
"""

from dataclasses import replace

import numpy as np

from recsys_batch.online.ranking.rank_query import compute_similarity
from recsys_batch.online.ranking.request_candidates import CandidateRecord
from recsys_batch.online.ranking.scoring_block import RankerInput, ScoringBlock, prepare_block
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.ranking.features import Context, PairFeatures

_WIDTH = 8
"""Rows of one product that BLAS and ONNX Runtime multiply alike, wherever they stand in it; of more than 8, OpenBLAS for AVX2 does not."""


def score_listed(snapshot: Snapshot, block: ScoringBlock) -> np.ndarray:
    """Score the candidates of queries that bring equally many of them: float32 [B, C].

    Args:
        block: of queries whose records are CandidateRecords.
    """
    assert snapshot.ranker is not None
    own_places = np.stack([pair.record.own_places for pair in block.pairs if isinstance(pair.record, CandidateRecord)])
    scores = np.empty(own_places.shape, np.float32)
    by_length: dict[int, list[int]] = {}
    for row in np.flatnonzero((own_places >= 0).any(axis=1)).tolist():
        by_length.setdefault(len(_own_list(block.pairs[row]).record.codes), []).append(row)
    for rows in by_length.values():
        own = prepare_block(snapshot, [_own_list(block.pairs[row]) for row in rows])
        for row, own_scores in zip(rows, own.score(snapshot.ranker), strict=True):
            is_own = own_places[row] >= 0
            scores[row, is_own] = own_scores[own_places[row, is_own]]
    others = _cut_rows(own_places < 0)
    if len(others[0]):
        scores[others] = _take_candidates(snapshot, block, others[0][:, 0], others[1]).score(snapshot.ranker)
    return scores


def _own_list(pair: RankerInput) -> RankerInput:
    """Make of a query with candidates of its own the one for the user's list; the caller's scores go with their candidates."""
    record, listed = pair.record, pair.listed
    assert isinstance(record, CandidateRecord) and listed is not None
    if listed.scores is None:
        return replace(pair, record=record.own)
    is_own = record.own_places >= 0
    scores = np.zeros(len(record.own.codes), np.float32)
    scores[record.own_places[is_own]] = listed.scores[is_own]
    return replace(pair, record=record.own, listed=replace(listed, scores=scores))


def _cut_rows(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut the chosen cells of each row of bool [B, C] into groups of ``_WIDTH``: their rows and columns, int64 [n, _WIDTH] each.

    What is missing in a row's last group is its last cell again.
    """
    groups = [(row, np.flatnonzero(chosen[row])) for row in range(len(chosen))]
    filled = [(row, np.append(columns, columns[[-1] * (-len(columns) % _WIDTH)])) for row, columns in groups if len(columns)]
    if not filled:
        return np.zeros((0, _WIDTH), np.int64), np.zeros((0, _WIDTH), np.int64)
    rows = np.repeat([row for row, _ in filled], [len(columns) for _, columns in filled])
    return rows.reshape(-1, _WIDTH), np.concatenate([columns for _, columns in filled]).reshape(-1, _WIDTH)


def _take_candidates(snapshot: Snapshot, block: ScoringBlock, rows: np.ndarray, columns: np.ndarray) -> ScoringBlock:
    """Take groups of candidates out of a block: those at ``columns`` [n, w] of the queries ``rows`` [n], as n queries of w candidates."""
    cells, pair = (rows[:, None], columns), block.pair
    codes, items = block.codes[cells], block.items[cells]
    own_scores = None if pair.candidate_score is None else pair.candidate_score[cells]
    taken = PairFeatures(pair.retrieval_score[cells], pair.log_popularity[cells], pair.log_n_events[rows], own_scores)
    context, numbers = block.context, rows.tolist()
    if context is not None:
        has_sessions = context.session_similarity is not None
        sessions = [block.pairs[row].session for row in numbers]
        context = Context(
            hour=context.hour[rows],
            weekday=context.weekday[rows],
            device=[context.device[row] for row in numbers],
            session_similarity=compute_similarity(snapshot.items, codes, items, sessions) if has_sessions else None,
            attributes=None if context.attributes is None else [context.attributes[row] for row in numbers],
        )
    return ScoringBlock([], codes, block.users[rows], items, block.spec, taken, context, 0.0)
