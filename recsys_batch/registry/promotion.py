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

    ``gate`` has NDCG@10 on the same held-out events of ``challenger``, ``popularity`` and, where there is one, ``champion``; where both
    were measured on the same users, also ``gain_low`` and ``gain_high``, the interval of the gain with its ``confidence``: it must lie
    above 0, as less may be chance.
    """
    challenger, popular, champion = gate["challenger"], gate["popularity"], gate.get("champion")
    reached = f"its validation NDCG@10 is {challenger:.4f}"
    if not challenger > popular:
        return Promotion(False, False, f"{reached}, popularity's is {popular:.4f}")
    if champion is None:
        return Promotion(True, True, f"{reached}, popularity's is {popular:.4f}, and there was no champion")
    if not challenger > champion:
        return Promotion(False, True, f"{reached}, the champion's is {champion:.4f}")
    if "gain_low" in gate and not gate["gain_low"] > 0:
        interval = f"{gate['gain_low']:+.4f} to {gate['gain_high']:+.4f} with {gate['confidence']:.0%} confidence"
        return Promotion(False, True, f"{reached}, the champion's is {champion:.4f}: a gain of {interval} may be chance")
    return Promotion(True, True, f"{reached}, the champion's was {champion:.4f}, popularity's {popular:.4f}")
