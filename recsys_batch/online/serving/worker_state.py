"""What the workers of a server tell each other: a small file each, of what it answers from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from recsys_batch.online.serving.snapshot_manager import SnapshotManager
from recsys_batch.storage.atomic import write_file


def write_worker_state(state: Path, live: SnapshotManager) -> None:
    """Write this worker's file anew."""
    named = {"current": live.current, "canary": live.canary, "shadow": live.shadow}
    told = {name: one.snapshot.snapshot_id if one is not None else None for name, one in named.items()}
    path = state / f"worker-{os.getpid()}.json"
    text = json.dumps({"pid": os.getpid(), **told, "refused": live.refused, "routes": live.routes.to_dict()})
    write_file(path, text, durable=False)


def read_worker_states(state: Path) -> list[dict[str, Any]]:
    """Of the workers that are alive."""
    found = []
    for path in sorted(state.glob("worker-*.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            os.kill(told["pid"], 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (OSError, ValueError):
            continue
        else:
            found.append(told)
    return found


def drop_dead_worker_gauges(folder: Path) -> None:
    """Take the gauges of workers that were killed off the metrics page; those that end by themselves leave none.

    Args:
        folder: PROMETHEUS_MULTIPROC_DIR.
    """
    for path in folder.glob("gauge_live*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
