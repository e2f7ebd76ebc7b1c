"""Scores of the candidates that requests bring: each has the bits that it has in the user's whole list, whichever others come with it.

What a row of a matrix product comes to rests, in its last bits, on its place among the rows and on their number: BLAS multiplies them in
groups, and a single row by another kernel. So what was retrieved for a user is scored in the user's own list, as without naming it; the
rest is scored eight by eight. A product has one of two shapes then, and a candidate its place in it. The compiled ranker needs none of it.
Called by ladder.py.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recsys_batch.online.ranking.request_candidates import CandidateRecord
from recsys_batch.online.ranking.scoring_block import RankerInput, ScoringBlock, prepare_block
from recsys_batch.online.snapshot.reader import Snapshot
from recsys_batch.ranking.compiled_ranker import CompiledRanker

_WIDTH = 8
"""Rows of one product that BLAS and ONNX Runtime multiply alike, wherever they stand in it; of more than 8, OpenBLAS for AVX2 does not."""


def score_listed(snapshot: Snapshot, pairs: Sequence[RankerInput], block: ScoringBlock) -> np.ndarray:
    """Score the candidates of queries that bring equally many of them: float32 [B, C].

    Args:
        pairs: queries whose records are CandidateRecords. block: prepared from them.
    """
    assert snapshot.ranker is not None
    if isinstance(snapshot.ranker, CompiledRanker):  # works each candidate out for itself
        return block.score(snapshot.ranker)
    own_places = np.stack([pair.record.own_places for pair in pairs if isinstance(pair.record, CandidateRecord)])
    scores = np.empty(own_places.shape, np.float32)
    by_length: dict[int, list[int]] = {}
    for row in np.flatnonzero((own_places >= 0).any(axis=1)).tolist():
        by_length.setdefault(len(_own_list(pairs[row]).record.codes), []).append(row)
    for rows in by_length.values():
        own = prepare_block(snapshot, [_own_list(pairs[row]) for row in rows], is_gathered=True)
        for row, own_scores in zip(rows, own.score(snapshot.ranker), strict=True):
            is_own = own_places[row] >= 0
            scores[row, is_own] = own_scores[own_places[row, is_own]]
    others = _cut_rows(own_places < 0)
    if len(others[0]):
        scores[others] = block.take(others[0][:, 0], others[1]).score(snapshot.ranker)
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
