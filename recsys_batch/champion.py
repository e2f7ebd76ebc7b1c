"""Which model the night uses: the gate between a newly trained version and the alias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

METRIC = "ndcg_at_10"
"""What the gate compares: NDCG@10 of the two-stage model on the validation part."""


@dataclass(frozen=True)
class Verdict:
    """Whether the alias moves, and a sentence why or why not."""

    crowned: bool
    beats_popularity: bool
    reason: str


def judge(challenger: Mapping[str, float], champion: Mapping[str, float] | None) -> Verdict:
    """The gate: a challenger must beat popularity, and the champion where there is one.

    Args:
        challenger: metrics of the new bundle, with ``ndcg_at_10`` and ``popularity_ndcg_at_10``.
        champion: metrics of the current champion on the same validation part, with ``ndcg_at_10``; None for the first.
    """
    own, popular = challenger[METRIC], challenger[f"popularity_{METRIC}"]
    if not own > popular:
        return Verdict(False, False, f"its validation NDCG@10 is {own:.4f}, popularity's is {popular:.4f}")
    if champion is None:
        return Verdict(True, True, f"its validation NDCG@10 is {own:.4f}, popularity's is {popular:.4f}, and there was no champion")
    best = champion[METRIC]
    if not own > best:
        return Verdict(False, True, f"its validation NDCG@10 is {own:.4f}, the champion's is {best:.4f}")
    return Verdict(True, True, f"its validation NDCG@10 is {own:.4f}, the champion's was {best:.4f}, popularity's {popular:.4f}")
