"""Check the files for schedulers against what the schedulers define: `make check-schedules`.

The CronJob of jobs/kubernetes against the JSON Schemas of Kubernetes releases (kubernetes-validate, which brings them), strictly: no field
that the API does not have. The job of jobs/databricks against the classes that Databricks publishes for bundles (databricks-bundles); the
rest of that file (bundle, variables, targets) only `databricks bundle validate` knows, which needs a workspace. No network is needed once
both packages are there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".kubernetes"
PACKAGES = ("kubernetes-validate==1.37.0", "databricks-bundles==1.22.1")
RELEASES = ("1.31", "1.34", "1.37")
"""podFailurePolicy is stable from 1.31 on."""
CRON_JOB, BUNDLE = ROOT / "jobs" / "kubernetes" / "recsys-nightly.yaml", ROOT / "jobs" / "databricks" / "databricks.yml"

_CHECK_BUNDLE = """
import sys, yaml
from databricks.bundles.jobs import Job
jobs = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))["resources"]["jobs"]
for name, job in jobs.items():
    if Job.from_dict(job).as_dict() != job:
        sys.exit(f"job {name} is not what its classes make of it: {Job.from_dict(job).as_dict()}")
    print(f"job {name}: {len(job['tasks'])} task, as databricks.bundles.jobs.Job has it")
"""


def main(arguments: list[str]) -> int:
    cron_job, bundle = (Path(name) for name in arguments) if arguments else (CRON_JOB, BUNDLE)
    python = make_environment()
    for release in RELEASES:
        subprocess.run([python.parent / "kubernetes-validate", "--strict", "-k", release, str(cron_job)], check=True)
    subprocess.run([python, "-c", _CHECK_BUNDLE, str(bundle)], check=True)
    return 0


def make_environment() -> Path:
    """Make a virtual environment with PACKAGES where it is missing; returns its interpreter."""
    python, ready = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".ready"
    if not ready.exists() or ready.read_text(encoding="utf-8").split() != list(PACKAGES):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES], check=True)
        ready.write_text("\n".join(PACKAGES), encoding="utf-8")
    return python


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {error.cmd[0]} ended with {error.returncode}; what is wrong stands above")
