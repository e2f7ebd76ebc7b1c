"""Airflow DAG of a night: a task per step, and what follows a published night. For Airflow 2.11 and 3; put this file into
the DAGs folder.

The run date is the day on which the schedule starts the run, in UTC; of a run that was triggered by hand, the day on which that was done
(Airflow 2), or that it may run after (Airflow 3).

Environment of the workers: RECSYS_BATCH, the command (default "recsys-batch"; or a spark-submit of jobs/, with {step} where the
step's name goes), and RECSYS_BATCH_CONF, the config file. A step that failed is tried again and goes on where it stopped. Exit code
3 (a gate refused) and 2 (bad usage or config) are not tried again: the same command would say the same. Exit code 4 (inputs missing
or stale, or another night of the date at work) is tried again.

RECSYS_BATCH_AFTER names what follows publishing, a task each: any of export-snapshot,report,digest. Their further options, in which
{run_date} is the night's, are in RECSYS_BATCH_EXPORT_SNAPSHOT_OPTIONS, RECSYS_BATCH_REPORT_OPTIONS (--out /reports/{run_date}.html)
and RECSYS_BATCH_DIGEST_OPTIONS (--slots 5 --out /digests).
"""

import os
import shlex
import subprocess
from datetime import datetime, timedelta
from typing import Any

from airflow.timetables.trigger import CronTriggerTimetable

try:
    from airflow.sdk import DAG, get_current_context, task
except ImportError:  # Airflow 2
    from airflow import DAG
    from airflow.decorators import task
    from airflow.operators.python import get_current_context
try:
    from airflow.sdk.exceptions import AirflowFailException
except ImportError:  # before Airflow 3.1
    from airflow.exceptions import AirflowFailException

STEPS = ("embed", "index", "candidates", "score", "audit", "publish")
FOLLOWING = ("export-snapshot", "report", "digest")
NOT_TRIED_AGAIN = {2: "bad usage or config", 3: "a gate refused"}


def command(step: str, run_date: str) -> list[str]:
    """The command line of a step, or of what follows."""
    words = shlex.split(os.environ.get("RECSYS_BATCH", "recsys-batch"))
    named = [word.replace("{step}", step) for word in words]
    options = ["--conf", os.environ.get("RECSYS_BATCH_CONF", "conf/cluster.toml")]
    if step in STEPS or step == "digest":
        options += ["--run-date", run_date]
    own = os.environ.get(f"RECSYS_BATCH_{step.upper().replace('-', '_')}_OPTIONS", "") if step in FOLLOWING else ""
    return [*named, *([] if named != words else [step]), *options, *shlex.split(own.replace("{run_date}", run_date))]


def run_date_of(context: Any) -> str:
    """The date of a run: Airflow 3 gives a run that was triggered now no logical date; Airflow 2 gives all one, and no ``run_after``."""
    moment = context.get("logical_date") or context["dag_run"].run_after
    return str(moment.date().isoformat())


def following() -> tuple[str, ...]:
    """What follows publishing. Raises ValueError for a name that is none of ``FOLLOWING``: the DAG is then broken, and says why."""
    names = tuple(name.strip() for name in os.environ.get("RECSYS_BATCH_AFTER", "").split(",") if name.strip())
    unknown = [name for name in names if name not in FOLLOWING]
    if unknown:
        raise ValueError(f"RECSYS_BATCH_AFTER names {', '.join(unknown)}; what can follow is {', '.join(FOLLOWING)}")
    return names


def run_step(step: str, run_date: str) -> None:
    """Run a step; its output is the task's log."""
    process = subprocess.Popen(command(step, run_date), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
    code = process.wait()
    if code in NOT_TRIED_AGAIN:
        raise AirflowFailException(f"{step} of {run_date} ended with exit code {code}: {NOT_TRIED_AGAIN[code]}")
    if code:
        raise RuntimeError(f"{step} of {run_date} ended with exit code {code}")


with DAG(
    dag_id="recsys_nightly",
    # A cron line alone would be the interval before it in Airflow 2: the run of 2 March at 02:00 would have the date of 1 March.
    schedule=CronTriggerTimetable("0 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "execution_timeout": timedelta(hours=6)},
    doc_md=__doc__,
) as dag:
    previous = None
    for name in (*STEPS, *following()):

        @task(task_id=name)
        def step(name: str = name) -> None:
            run_step(name, run_date_of(get_current_context()))

        current = step()
        if previous is not None:
            previous >> current
        if name in STEPS:
            previous = current
