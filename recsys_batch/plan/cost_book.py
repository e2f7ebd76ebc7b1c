"""Where unit costs come from, and where a trial's are kept: a file in ``paths.state``, of one machine."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from recsys_batch.errors import InputMissing
from recsys_batch.plan.unit_costs import UnitCosts
from recsys_batch.storage.atomic import write_file

_FILE, _FORMAT = "plan-trial.json", 1


@dataclass(frozen=True)
class Trial:
    """Unit costs that were timed on a machine at a time."""

    costs: UnitCosts
    measured_at: dt.datetime
    machine: str


def this_machine() -> str:
    """Describe this machine so that another one's trial is told apart."""
    return f"{platform.node()}, {os.cpu_count()} cores, {platform.machine()}"


def save_trial(state: Path, costs: UnitCosts) -> Trial:
    """Keep a trial's unit costs for later plans."""
    trial = Trial(costs, dt.datetime.now(dt.UTC).replace(microsecond=0), this_machine())
    document = {"format": _FORMAT, "measured_at": trial.measured_at.isoformat(), "machine": trial.machine, "costs": asdict(costs)}
    state.mkdir(parents=True, exist_ok=True)
    write_file(state / _FILE, json.dumps(document, indent=2) + "\n")
    return trial


def load_trial(state: Path) -> Trial:
    """Load the trial that was kept. Raises InputMissing: there is none, or it is another release's."""
    path = state / _FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise InputMissing(f"{path} is of another release: run `recsys-batch plan --measure` again")
        return Trial(UnitCosts(**document["costs"]), dt.datetime.fromisoformat(document["measured_at"]), document["machine"])
    except FileNotFoundError:
        raise InputMissing("nothing was measured on this machine yet: run `recsys-batch plan --measure`, which takes a minute") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputMissing(f"{path} cannot be read ({error!r}): run `recsys-batch plan --measure` again") from None
