"""Estimate memory and time of a training before it starts, from counts of its input."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recsys_batch.config import Config
from recsys_batch.model import warm_start
from recsys_batch.model.tower_training import list_widths

_RIDGE_MATRICES = 6
_TOWER_COPIES = 11
"""Arrays [n_items, dim] at the refit's steps: fitted towers and inner ones (2 each), start and weights (2 each), two moments of each, and
the bundle's embeddings."""

_SPECTRUM_COPIES = 5
_BASE_BYTES = 700 * 2**20  # Python with torch, pyarrow and MLflow
_EVENT_BYTES = 300  # ids and times from Arrow, codes, and what sorting and splitting them takes
_CATALOGUE_BYTES = 200
_START_SECONDS, _ROWS_PER_SECOND, _EVENTS_PER_SECOND = 30.0, 200_000, 100_000
_N_FITS, _FIT_SECONDS_PER_EVENT = 3, 25e-6
_EVALUATION_SECONDS, _EVALUATION_ITEMS = 120.0, 200_000

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
    """Estimate what a training takes: the arrays that it holds at its peak, and the seconds of counting, reading and its budget.

    Seconds are at least those of three closed-form starts and of the evaluations, which no budget cuts short. Their constants, and those
    per event, are measurements on two cores (docs/decisions/0268-training-on-sampled-users.md).
    """
    n, dim = size.n_items, list_widths(size.n_items, config)[-1] + 1
    rank = min(max(warm_start.MAX_CELLS // max(n, 1), dim + warm_start.OVERSAMPLING), warm_start.MAX_RANK, n)
    start_floats = _RIDGE_MATRICES * n * n if n <= warm_start.RIDGE_MAX_ITEMS else _SPECTRUM_COPIES * rank * n
    arrays = 4 * (_TOWER_COPIES * dim * n + start_floats)
    python = _BASE_BYTES + arrays + _EVENT_BYTES * size.n_events + _CATALOGUE_BYTES * size.n_catalogue
    least = _N_FITS * _FIT_SECONDS_PER_EVENT * size.n_events + _EVALUATION_SECONDS * min(n / _EVALUATION_ITEMS, 1.0)
    reading = _START_SECONDS + size.n_rows / _ROWS_PER_SECOND + size.n_events / _EVENTS_PER_SECOND
    return TrainingCost(python + jvm_bytes, reading + max(config.training.max_seconds, least))


def read_machine_bytes() -> int:
    """Read how much memory this machine, or the container that limits this process, has, in bytes."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _CGROUP_LIMITS):
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            limits.append(int(text))
    return min(limits)
