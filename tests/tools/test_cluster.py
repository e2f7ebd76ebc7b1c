"""Every job by spark-submit on a cluster of processes, an executor killed on the way: tools/cluster_test.py, on less data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.slow
def test_the_jobs_on_a_cluster_give_the_tables_of_local_mode() -> None:
    subprocess.run([sys.executable, TOOLS / "package.py"], check=True)
    sizes = ("--users", "8000", "--items", "2000", "--events", "120000")
    done = subprocess.run([sys.executable, TOOLS / "cluster_test.py", *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed executor process" in done.stdout
    assert done.stdout.endswith("cluster test passed\n")
