"""Load and run jobs/airflow/recsys_nightly.py in real Airflows, each in a virtual environment of its own: `make airflow-test`.

    python tools/airflow_test.py [VERSION ...]      # of those in AIRFLOWS; none: all

The steps are stood in for by a script that writes down how it was called and ends with the exit code that the test wants; what is
tested is the DAG: its order, its run date, and which exit codes are tried again. Airflow's lists of constraints are not on the package
index, so they are not used.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from recsys_batch.tables.run_manifest import STEP_NAMES

ROOT = Path(__file__).parent.parent
AIRFLOWS: dict[str, tuple[str, ...]] = {"2.11.2": (), "3.0.6": ("fastapi==0.116.1", "starlette<0.48", "cadwyn==5.4.6"), "3.3.2": ()}
"""The last of Airflow 2, and the first and the newest minor release of Airflow 3, with pins of what has outgrown them since."""

_STAND_IN = """
import json, os, sys
from pathlib import Path
calls = Path(os.environ["CALLS"])
earlier = calls.read_text().splitlines() if calls.exists() else []
calls.write_text("\\n".join([*earlier, json.dumps(sys.argv[1:])]) + "\\n")
codes = json.loads(os.environ["CODES"]).get(sys.argv[1], [])
n = sum(json.loads(line)[0] == sys.argv[1] for line in earlier)
print("step", sys.argv[1], "attempt", n + 1)
sys.exit(codes[n] if n < len(codes) else 0)
"""

_RUN = """
import json, sys
from datetime import datetime, timedelta, timezone
from airflow.timetables.base import TimeRestriction
try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models import DagBag
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
dag = bag.dags["recsys_nightly"]
assert sorted(task.task_id for task in dag.topological_sort()) == sorted(json.loads(sys.argv[2]))
for task in dag.tasks:
    assert task.retries == 3 and task.retry_delay == timedelta(minutes=5), task
    task.retry_delay = timedelta(seconds=0)
moment = datetime(2026, 3, 1, 2, tzinfo=timezone.utc)
scheduled = dag.timetable.next_dagrun_info(
    last_automated_data_interval=None, restriction=TimeRestriction(earliest=moment - timedelta(hours=1), latest=None, catchup=True)
)
assert (scheduled.logical_date, scheduled.run_after) == (moment, moment), scheduled
if sys.argv[4].startswith("2."):
    run = dag.test(execution_date=moment)  # by schedule and by hand: all runs have a logical date
elif sys.argv[3] == "by hand" and not sys.argv[4].startswith("3.0."):
    run = dag.test(run_after=moment, logical_date=None)
else:
    run = dag.test(logical_date=moment)
print("STATES " + json.dumps({ti.task_id: [str(ti.state), ti.try_number] for ti in run.get_task_instances()}))
"""


def main(arguments: list[str]) -> int:
    unknown = [version for version in arguments if version not in AIRFLOWS]
    if unknown:
        print(f"error: no Airflow {', '.join(unknown)} is tested; there are {', '.join(AIRFLOWS)}", file=sys.stderr)
        return 2
    for version in arguments or AIRFLOWS:
        check_dag(version)
    print("airflow test passed")
    return 0


def check_dag(version: str) -> None:
    """Run the DAG in an Airflow, in nights of every kind; raises SystemExit with what it did otherwise than expected."""
    print(f"Airflow {version}", flush=True)
    python = interpreter(version)
    for name, codes, expected in (
        ("a night that goes well", {}, [[step, 1] for step in STEP_NAMES]),
        (
            "a step that fails once is tried again",
            {"score": [1]},
            [["embed", 1], ["index", 1], ["candidates", 1], ["score", 2], ["audit", 1], ["publish", 1]],
        ),
        ("a refused gate is not tried again, and nothing is published", {"audit": [3, 3, 3]}, [[step, 1] for step in STEP_NAMES[:-1]]),
        ("bad usage is not tried again", {"embed": [2, 2, 2]}, [["embed", 1]]),
    ):
        calls = run(python, version, codes)
        found: dict[str, int] = {}
        for call in calls:
            if call[1:] != ["--conf", "conf/cluster.toml", "--run-date", "2026-03-01"]:
                raise SystemExit(f"{name}: called with {call}")
            found[call[0]] = found.get(call[0], 0) + 1
        if [[step, n] for step, n in found.items()] != expected:
            raise SystemExit(f"{name}: the calls were {found}, expected {expected}")
        print(f"{name}: {', '.join(f'{step} x{n}' if n > 1 else step for step, n in found.items())}", flush=True)
    after = {"RECSYS_BATCH_AFTER": "report,digest,export-snapshot", "RECSYS_BATCH_REPORT_OPTIONS": "--out {run_date}.html"}
    calls = run(python, version, {}, ("report", "digest", "export-snapshot"), "by hand", after)
    conf, date = ["--conf", "conf/cluster.toml"], ["--run-date", "2026-03-01"]
    expected_calls = [[step, *conf, *date] for step in STEP_NAMES]
    expected_calls += [["digest", *conf, *date], ["export-snapshot", *conf], ["report", *conf, "--out", "2026-03-01.html"]]
    if calls[: len(STEP_NAMES)] + sorted(calls[len(STEP_NAMES) :]) != expected_calls:
        raise SystemExit(f"a night triggered by hand, and what follows it: called with {calls}")
    print("a night triggered by hand has the date that it may run after; report, digest and export-snapshot follow it", flush=True)


def interpreter(version: str) -> Path:
    """Make a virtual environment with an Airflow where it is missing; returns its interpreter."""
    if (ROOT / ".airflow" / "pyvenv.cfg").exists():  # of releases that tested one Airflow
        shutil.rmtree(ROOT / ".airflow")
    folder = ROOT / ".airflow" / version
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", f"apache-airflow=={version}", *AIRFLOWS[version]],
            check=True,
        )
        ready.touch()
    return python


def run(
    python: Path,
    version: str,
    codes: dict[str, list[int]],
    following: tuple[str, ...] = (),
    how: str = "by schedule",
    settings: Mapping[str, str] = MappingProxyType({}),
) -> list[list[str]]:
    """The calls of one run of the DAG, in a fresh Airflow home."""
    with tempfile.TemporaryDirectory(prefix="airflow-test-") as name:
        folder = Path(name)
        (folder / "stand_in.py").write_text(_STAND_IN, encoding="utf-8")
        shutil.copytree(ROOT / "jobs" / "airflow", folder / "dags")
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "dags"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}",
            "RECSYS_BATCH": f"{sys.executable} {folder / 'stand_in.py'}",
            "CALLS": str(folder / "calls"),
            "CODES": json.dumps(codes),
            **settings,
        }
        for command in (
            [str(python.parent / "airflow"), "db", "migrate"],
            [str(python), "-c", _RUN, str(folder / "dags"), json.dumps([*STEP_NAMES, *following]), how, version],
        ):
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode and command[1] == "db":
                raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        if "STATES" not in done.stdout:
            raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
        return [json.loads(line) for line in (folder / "calls").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
