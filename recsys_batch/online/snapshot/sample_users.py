"""A few of a snapshot's users and what they did lately, for people who look at it. No ranking reads it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

SAMPLES_FILE = "samples.json"

SampleUsers = Mapping[int | str, Sequence[int]]
"""user_id -> codes of items, newest first; in the order of ids."""


def write_samples(path: Path, samples: SampleUsers) -> None:
    """Write sampled users as JSON: two lists, so that ids stay numbers or text."""
    both = {"user_ids": list(samples), "items": [list(codes) for codes in samples.values()]}
    path.write_text(json.dumps(both, ensure_ascii=False), encoding="utf-8")


def read_samples(path: Path) -> SampleUsers:
    """The inverse of ``write_samples``."""
    both = json.loads(path.read_text(encoding="utf-8"))
    return dict(zip(both["user_ids"], both["items"], strict=True))
