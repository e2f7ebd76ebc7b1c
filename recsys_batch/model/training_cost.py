"""Estimate memory and time of a training before it starts, from counts of its input."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recsys_batch.config import Config

_DEFAULT_DIM = 64
_BASE_BYTES = 700 * 2**20
_EVENT_BYTES = 300
_ITEM_FLOATS = 14
_CATALOGUE_BYTES = 200
_START_SECONDS = 30.0
_ROWS_PER_SECOND = 200_000
_EVENTS_PER_SECOND = 100_000

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class TrainingSize:
    """Size of training's input.

    Attributes:
        n_rows: of interactions. n_events: positive events that are trained on; n_users, n_items: of these events.
        n_catalogue: rows of items.
    """

    n_rows: int
    n_events: int
    n_users: int
    n_items: int
    n_catalogue: int


@dataclass(frozen=True)
class TrainingCost:
    """Estimate of a training: memory at its peak, in bytes, with the JVM's; seconds from the command's start to its end, at most."""

    n_bytes: float
    seconds: float


def estimate_cost(size: TrainingSize, config: Config, jvm_bytes: int) -> TrainingCost:
    """Estimate what a training takes.

    The constants are of the runs in docs/decisions/0268-training-on-sampled-users.md.
    """
    dim = config.model.embedding_dim or _DEFAULT_DIM
    python = _BASE_BYTES + _EVENT_BYTES * size.n_events + _ITEM_FLOATS * 4 * dim * size.n_items + _CATALOGUE_BYTES * size.n_catalogue
    reading = _START_SECONDS + size.n_rows / _ROWS_PER_SECOND + size.n_events / _EVENTS_PER_SECOND
    return TrainingCost(python + jvm_bytes, reading + config.training.max_seconds)


def read_machine_bytes() -> int:
    """Read how much memory this machine, or the container that limits this process, has, in bytes."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _CGROUP_LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits)
