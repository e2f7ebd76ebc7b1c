"""Airflow DAG of a night: a task per step, the run date from the logical date. For Airflow 3; put this file into the DAGs folder.

Environment of the workers: RECSYS_BATCH, the command (default "recsys-batch"; or a spark-submit of jobs/, with {step} where the
step's name goes), and RECSYS_BATCH_CONF, the config file. A step that failed is tried again and goes on where it stopped. Exit code
3 (a gate refused) and 2 (bad usage or config) are not tried again: the same command would say the same. Exit code 4 (inputs missing
or stale, or another night of the date at work) is tried again.
"""

import os
import shlex
import subprocess
from datetime import datetime, timedelta

from airflow.sdk import DAG, get_current_context, task
from airflow.sdk.exceptions import AirflowFailException

STEPS = ("embed", "index", "candidates", "score", "audit", "publish")
NOT_TRIED_AGAIN = {2: "bad usage or config", 3: "a gate refused"}


def command(step: str, run_date: str) -> list[str]:
    """The command line of a step."""
    words = shlex.split(os.environ.get("RECSYS_BATCH", "recsys-batch"))
    named = [word.replace("{step}", step) for word in words]
    options = ["--conf", os.environ.get("RECSYS_BATCH_CONF", "conf/cluster.toml"), "--run-date", run_date]
    return [*named, *([] if named != words else [step]), *options]


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
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=5), "execution_timeout": timedelta(hours=6)},
    doc_md=__doc__,
) as dag:
    previous = None
    for name in STEPS:

        @task(task_id=name)
        def step(name: str = name) -> None:
            run_step(name, get_current_context()["logical_date"].date().isoformat())

        current = step()
        if previous is not None:
            previous >> current
        previous = current
