"""The ranker's features of a (user, item) pair: one definition for training, the nightly batch and the online side. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recsys_batch.ranking.vector_lengths import SMALLEST_LENGTH, row_lengths

DEVICES = ("mobile", "desktop", "tablet", "tv")
"""Known devices; any other name counts as "other", None as unknown."""

PAIR_FEATURES = ("retrieval_score", "log_popularity", "log_n_events")
_TIME_FEATURES = ("has_time", "hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
CONTEXT_FEATURES = (*_TIME_FEATURES, *(f"device_{name}" for name in (*DEVICES, "other")), "has_session", "session_similarity")
CANDIDATE_SCORE = "candidate_score"
"""A further feature that a spec may name: the score that the caller gives a candidate of its own; 0 where it gives none."""
SESSION_COLUMN = (*PAIR_FEATURES, *CONTEXT_FEATURES).index("has_session")
"""The first of the two columns that are an item's own."""


@dataclass(frozen=True)
class FeatureSpec:
    """The features of a ranker, their order and their scaling.

    Attributes:
        names: columns of the feature array: PAIR_FEATURES, CONTEXT_FEATURES, then any of CANDIDATE_SCORE and attributes of the request
            (``encode_attribute``).
        mean, scale: per feature of PAIR_FEATURES; a feature is (raw - mean) / scale. Frozen at training.
    """

    names: tuple[str, ...] = (*PAIR_FEATURES, *CONTEXT_FEATURES)
    mean: tuple[float, ...] = (0.0,) * len(PAIR_FEATURES)
    scale: tuple[float, ...] = (1.0,) * len(PAIR_FEATURES)

    @property
    def attribute_names(self) -> list[str]:
        """List the features that are attributes of the request."""
        return [name for name in self.names[len(PAIR_FEATURES) + len(CONTEXT_FEATURES) :] if name != CANDIDATE_SCORE]

    @classmethod
    def default(cls) -> FeatureSpec:
        """Make the spec of unscaled features, which a registered ONNX ranker gets."""
        return cls()

    @classmethod
    def fit(cls, retrieval_score: np.ndarray, log_popularity: np.ndarray, n_events: np.ndarray) -> FeatureSpec:
        """Fit means and standard deviations to a training sample (any shapes)."""
        raw = (retrieval_score, log_popularity, np.log1p(n_events))
        mean = tuple(float(np.mean(values)) for values in raw)
        return cls(mean=mean, scale=tuple(float(max(np.std(values), 1e-6)) for values in raw))

    def check(self) -> None:
        """Check a spec that was read from somewhere. Raises ValueError: names or numbers by which no features can be computed."""
        first = (*PAIR_FEATURES, *CONTEXT_FEATURES)
        if self.names[: len(first)] != first or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"the spec has {len(self.names)} features, {str(self.names)[:60]}: expected {', '.join(first)}, then others, each once"
            )
        if not len(self.mean) == len(self.scale) == len(PAIR_FEATURES) or not all(map(math.isfinite, (*self.mean, *self.scale))):
            raise ValueError(f"mean {self.mean} and scale {self.scale} of features: expected {len(PAIR_FEATURES)} finite numbers each")
        if min(self.scale) <= 0:
            raise ValueError(f"scale {self.scale} of features: expected numbers above 0")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureSpec:
        return cls(tuple(values["names"]), tuple(values["mean"]), tuple(values["scale"]))


@dataclass(frozen=True)
class Context:
    """Context of B requests when they are ranked; every part may be missing.

    Attributes:
        hour, weekday: float [B], local or UTC hour 0 to 24, and 0 = Monday; both NaN where unknown.
        device: per user, None where unknown.
        session_similarity: float32 [B, C] from ``session_similarity``, NaN where there is no session.
        attributes: per user, further values by name, for the attribute features that a spec names.
    """

    hour: np.ndarray
    weekday: np.ndarray
    device: Sequence[str | None]
    session_similarity: np.ndarray | None = None
    attributes: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class PairFeatures:
    """The features that are not context.

    Attributes:
        retrieval_score, log_popularity: float32 [B, C], scaled. log_n_events: float32 [B], scaled.
        candidate_score: float32 [B, C], the callers' own scores, not scaled; None for 0, and where the spec does not name it.
    """

    retrieval_score: np.ndarray
    log_popularity: np.ndarray
    log_n_events: np.ndarray
    candidate_score: np.ndarray | None = None

    @classmethod
    def from_raw(
        cls,
        spec: FeatureSpec,
        *,
        retrieval_score: np.ndarray,
        log_popularity: np.ndarray,
        n_events: np.ndarray,
        candidate_score: np.ndarray | None = None,
    ) -> PairFeatures:
        """Scale raw values of the same shapes; ``n_events`` are counts."""
        raw = (retrieval_score, log_popularity, np.log1p(n_events))
        retrieval, popularity, activity = (
            ((v - m) / s).astype(np.float32, copy=False) for v, m, s in zip(raw, spec.mean, spec.scale, strict=True)
        )
        return cls(retrieval, popularity, activity, candidate_score if CANDIDATE_SCORE in spec.names else None)


def compute_pair_features(
    spec: FeatureSpec,
    *,
    retrieval_score: np.ndarray,
    log_popularity: np.ndarray,
    n_events: np.ndarray,
    context: Context | None = None,
    candidate_score: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the feature array of B users and C candidates each.

    Args:
        retrieval_score: float32 [B, C], inner product of the embeddings.
        log_popularity: float32 [B, C], as the catalogue has it.
        n_events: [B], positive interactions of the user.
        context: None is the batch's neutral context: every context feature is 0.
        candidate_score: float32 [B, C], the callers' own scores, not scaled; None for 0. Of no effect where the spec does not name it.

    Returns float32 [B, C, F], F = len(spec.names).
    """
    pair = PairFeatures.from_raw(
        spec, retrieval_score=retrieval_score, log_popularity=log_popularity, n_events=n_events, candidate_score=candidate_score
    )
    return assemble_features(spec, pair, context)


def assemble_features(spec: FeatureSpec, pair: PairFeatures, context: Context | None) -> np.ndarray:
    """Assemble the feature array float32 [B, C, F] of features that are scaled, and of a context; None is the neutral one."""
    features = np.zeros((*pair.retrieval_score.shape, len(spec.names)), dtype=np.float32)
    if context is not None:
        features[..., len(PAIR_FEATURES) :] = encode_context(context, spec)[:, None, :]
        if context.session_similarity is not None:
            similar = np.isfinite(context.session_similarity)
            features[..., SESSION_COLUMN] = similar
            features[..., SESSION_COLUMN + 1] = np.where(similar, context.session_similarity, 0.0)
    features[..., 0], features[..., 1], features[..., 2] = pair.retrieval_score, pair.log_popularity, pair.log_n_events[:, None]
    if pair.candidate_score is not None:
        features[..., spec.names.index(CANDIDATE_SCORE)] = pair.candidate_score
    return features


def encode_attribute(name: str, attributes: Mapping[str, Any]) -> float:
    """Encode an attribute feature: "NAME" is the request's number of that name, "NAME=VALUE" is 1 where it has that value.

    0, which is neutral, where the request does not say, or says something that is no finite number.
    """
    key, equals, wanted = name.partition("=")
    value = attributes.get(key)
    if equals:
        return float(value is not None and str(value) == wanted)
    if isinstance(value, bool | int | float):
        number = float(value) if abs(value) < 1e30 else 0.0
        return number if np.isfinite(number) else 0.0
    return 0.0


def compute_session_similarity(
    item_embeddings: np.ndarray,
    session_embeddings: np.ndarray,
    item_norms: np.ndarray | None = None,
    session_norms: np.ndarray | None = None,
) -> np.ndarray:
    """Compute the largest cosine of each candidate with an item of the session.

    Args:
        item_embeddings: float32 [B, C, d]. session_embeddings: float32 [B, S, d].
        item_norms, session_norms: float32 [B, C] and [B, S], lengths of the embeddings where they are known already. A length of 0
            in the session stands for "no item".

    Returns float32 [B, C]; NaN for a user whose session is empty.
    """
    lengths = row_lengths(session_embeddings).astype(np.float32) if session_norms is None else session_norms
    is_item = lengths > 0
    divisors = np.where(is_item, np.maximum(lengths, SMALLEST_LENGTH), np.float32(1))
    # [B, S, C], so that the largest of a few is taken along long rows.
    products = np.matmul(session_embeddings / divisors[..., None], item_embeddings.swapaxes(1, 2))
    are_items = bool(is_item.all())
    if not are_items:
        products = np.where(is_item[..., None], products, np.float32(-np.inf))
    best: np.ndarray = products.max(axis=1, initial=-np.inf)
    item_lengths = row_lengths(item_embeddings).astype(np.float32) if item_norms is None else item_norms
    best /= np.maximum(item_lengths, SMALLEST_LENGTH)
    if not are_items or not is_item.shape[1]:
        best = np.where(is_item.any(axis=1, keepdims=True), best, np.nan)
    return best.astype(np.float32, copy=False)


def encode_context(context: Context, spec: FeatureSpec) -> np.ndarray:
    """Encode the features that all candidates of a user share: float32 [B, F - 3], in the spec's order; 0 where a candidate has its own."""
    further = spec.names[len(PAIR_FEATURES) + len(CONTEXT_FEATURES) :]
    attributes = context.attributes or [{}] * len(context.device)
    rows = [
        [
            *_time_and_device_features(hour, weekday, device),
            *(0.0, 0.0),
            *(0.0 if name == CANDIDATE_SCORE else encode_attribute(name, values) for name in further),
        ]
        for hour, weekday, device, values in zip(context.hour.tolist(), context.weekday.tolist(), context.device, attributes, strict=True)
    ]
    return np.array(rows, dtype=np.float32)


def _time_and_device_features(hour: float, weekday: float, device: str | None) -> list[float]:
    """Encode time and device of one request. In plain Python: for one user a tenth of what a dozen calls of numpy take."""
    n_time = len(_TIME_FEATURES)
    features = [0.0] * (n_time + len(DEVICES) + 1)
    if math.isfinite(hour) and math.isfinite(weekday):
        of_day, of_week = hour * (2 * math.pi / 24), weekday * (2 * math.pi / 7)
        features[:n_time] = 1.0, math.sin(of_day), math.cos(of_day), math.sin(of_week), math.cos(of_week)
    if device is not None:
        features[n_time + (DEVICES.index(device) if device in DEVICES else len(DEVICES))] = 1.0
    return features
