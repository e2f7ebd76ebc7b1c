"""Result of a step, as the runner records it in the manifest."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepResult:
    """Result of a step: Delta versions by table, rows written, users handled, further numbers for the manifest."""

    versions: dict[str, int]
    rows: int
    users: int
    metrics: dict[str, float] = field(default_factory=dict)
