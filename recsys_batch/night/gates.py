"""Audit gates: measured values, their limits from the configuration, and verdicts. Pure; the audit measures, the runner records."""

from collections.abc import Mapping
from dataclasses import dataclass

from recsys_batch.config import Audit
from recsys_batch.spark.executors.verify import BROKEN


@dataclass(frozen=True)
class Gate:
    """Check of a run: ``value`` must be at least (or at most) ``threshold``."""

    name: str
    value: float
    threshold: float
    at_least: bool

    @property
    def passed(self) -> bool:
        # A NaN compares false both ways, so an undefined value fails its gate.
        return self.value >= self.threshold if self.at_least else self.value <= self.threshold

    def sentence(self) -> str:
        return f"{self.name} is {self.value:.6g}, {'at least' if self.at_least else 'at most'} {self.threshold:.6g} is required"


_AT_LEAST = {
    "user_coverage": "min_user_coverage",
    "list_fill": "min_list_fill",
    "catalogue_coverage": "min_catalogue_coverage",
    "knn_recall": "min_recall",
    "overlap": "min_overlap",
    "model_metric_ratio": "min_model_metric_ratio",
}
_AT_MOST = {
    "popular_share": "max_popular_share",
    "head_share": "max_head_share",
    "score_drift": "max_score_drift",
    "input_age_days": "max_input_age_days",
}


def evaluate_gates(measured: Mapping[str, float], limits: Audit) -> list[Gate]:
    """Evaluate the gates over measured values.

    A value that is not there could not be measured on this night (no earlier one to compare with, no times in the events), and has no
    gate; one that is not a number fails its gate. A limit that is not set is no gate either.
    """
    # One row that is wrong is one too many, and no config says otherwise.
    gates = [Gate(name, measured[name], 0.0, at_least=False) for name in BROKEN]
    for names, at_least in ((_AT_LEAST, True), (_AT_MOST, False)):
        for name, setting in names.items():
            limit = getattr(limits, setting)
            if name in measured and limit is not None:
                gates.append(Gate(name, measured[name], float(limit), at_least))
    return gates
