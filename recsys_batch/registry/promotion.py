"""Promotion of a model to the one that nights use: the gate between a newly trained version and the alias."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Promotion:
    """Whether the alias moves, and a sentence why or why not."""

    promoted: bool
    beats_popularity: bool
    reason: str


def decide_promotion(gate: Mapping[str, float]) -> Promotion:
    """Decide whether a challenger becomes champion: it must beat popularity, and the champion where there is one.

    ``gate`` has NDCG@10 on the same held-out events of ``challenger``, ``popularity`` and, where there is one, ``champion``.
    """
    challenger, popular, champion = gate["challenger"], gate["popularity"], gate.get("champion")
    reached = f"its validation NDCG@10 is {challenger:.4f}"
    if not challenger > popular:
        return Promotion(False, False, f"{reached}, popularity's is {popular:.4f}")
    if champion is None:
        return Promotion(True, True, f"{reached}, popularity's is {popular:.4f}, and there was no champion")
    if not challenger > champion:
        return Promotion(False, True, f"{reached}, the champion's is {champion:.4f}")
    return Promotion(True, True, f"{reached}, the champion's was {champion:.4f}, popularity's {popular:.4f}")
