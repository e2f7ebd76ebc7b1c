"""Files for schedulers: what the CronJob's own lines do, run by bash with a spark-submit that is stood in for."""

import re
import subprocess
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CRON_JOB = (ROOT / "jobs" / "kubernetes" / "recsys-nightly.yaml").read_text(encoding="utf-8")


def start(folder: Path, job_name: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the container's script as its pod would, in a job of that name; spark-submit ends with ``code``."""
    lines = CRON_JOB.partition("- |\n")[2].partition("              resources:")[0]
    (folder / "spark-submit").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    (folder / "spark-submit").chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "JOB_NAME": job_name, "POD_IP": "10.0.0.7", "POD_NAME": "pod-1"}
    return subprocess.run(["/bin/bash", "-euc", textwrap.dedent(lines)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("job_name", "run_date"),
    # 29,538,840 minutes after 1970 it is 2 a.m. on 1 March 2026.
    [("recsys-nightly-29538840", "2026-03-01"), ("night-2026-02-27", "2026-02-27")],
)
def test_a_pod_has_the_date_of_its_job_whenever_it_starts(tmp_path: Path, job_name: str, run_date: str) -> None:
    done = start(tmp_path, job_name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[-1] == run_date and "spark.driver.host=10.0.0.7" in done.stdout


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_the_pod_ends_with_the_nights_exit_code(tmp_path: Path, code: int) -> None:
    assert start(tmp_path, "night-2026-03-01", code).returncode == code


def test_a_job_whose_name_has_no_date_is_bad_usage_and_starts_nothing(tmp_path: Path) -> None:
    done = start(tmp_path, "try-again")
    assert (done.returncode, done.stdout) == (2, "") and "create it as night-YYYY-MM-DD" in done.stderr


def test_what_is_not_tried_again_is_what_the_exit_codes_say() -> None:
    assert re.findall(r"values: (\[[\d, ]+\])", CRON_JOB) == ["[2, 3]"]
    airflow = (ROOT / "jobs" / "airflow" / "recsys_nightly.py").read_text(encoding="utf-8")
    assert re.findall(r"NOT_TRIED_AGAIN = \{(\d): .*?, (\d): ", airflow) == [("2", "3")]
