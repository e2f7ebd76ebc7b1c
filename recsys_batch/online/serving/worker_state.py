"""States that the workers of a server tell each other: a small file each, of what it answers from."""

import json
import os
from pathlib import Path
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.storage.atomic import write_file

WorkerState = dict[str, Any]
"""A worker's report: pid; current, canary, shadow as ids; refused; routes; looked_at, stamps of the files that it followed last."""


def write_worker_state(state: Path, manager: SnapshotManager) -> None:
    """Report which snapshots this worker answers from, in its own file of the server's folder."""
    roles = {"current": manager.current, "canary": manager.canary, "shadow": manager.shadow}
    snapshot_ids = {role: loaded.snapshot.snapshot_id if loaded is not None else None for role, loaded in roles.items()}
    report = {"pid": os.getpid(), **snapshot_ids, "refused": manager.refused, "routes": manager.routes.to_dict()}
    report["looked_at"] = manager.looked_at
    path = state / f"worker-{os.getpid()}.json"
    write_file(path, json.dumps(report), durable=False)


def read_worker_states(state: Path) -> list[WorkerState]:
    """Read the reports of the workers that are alive."""
    reports = []
    for path in sorted(state.glob("worker-*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            os.kill(report["pid"], 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (OSError, ValueError):
            continue
        else:
            reports.append(report)
    return reports


def drop_dead_worker_gauges(folder: Path) -> None:
    """Take the gauges of workers that were killed off the metrics page; those that end by themselves leave none.

    Args:
        folder: PROMETHEUS_MULTIPROC_DIR.
    """
    for path in folder.glob("gauge_live*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
