"""What workers leave behind."""

import os
import subprocess
import sys
from pathlib import Path

from recsys_batch.online.serving.worker_state import drop_dead_worker_gauges


def test_the_gauges_of_a_killed_worker_go_and_its_counters_stay(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    names = [f"{kind}_{pid}.db" for kind in ("gauge_livesum", "gauge_livemax", "counter") for pid in (ended.pid, os.getpid())]
    for name in names:
        (tmp_path / name).touch()
    drop_dead_worker_gauges(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names) - {f"gauge_livesum_{ended.pid}.db", f"gauge_livemax_{ended.pid}.db"}
