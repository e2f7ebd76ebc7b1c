"""Verify and check a snapshot beside a server that answers, by a process of the lowest priority, which takes what is left of the cores."""

import os
import subprocess
import sys
from pathlib import Path

from recsys_batch.online.runtime.parent_watch import end_with_parent
from recsys_batch.online.snapshot.manifest import SnapshotRefused, is_verified, read_manifest
from recsys_batch.online.snapshot.reader import open_snapshot

_REFUSED = 3


def verify_in_subprocess(folder: Path) -> None:
    """Verify and check a snapshot without a core of the server's, unless that was done. Raises SnapshotRefused, as ``open_snapshot``."""
    if is_verified(folder, read_manifest(folder)):
        return
    command = [sys.executable, "-m", __name__, str(folder), str(os.getpid())]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, close_fds=False)
    if ended.returncode:
        error_lines = ended.stderr.strip().splitlines() or [f"it was ended by signal or status {ended.returncode}"]
        raise SnapshotRefused(error_lines[-1] if ended.returncode == _REFUSED else f"{folder} could not be verified: {error_lines[-1]}")


def verify_main() -> None:
    """Verify the snapshot named on the command line: what the process runs."""
    os.nice(19)
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    end_with_parent(parent, "the process that wants a snapshot verified")
    try:
        open_snapshot(folder).close()
    except SnapshotRefused as error:
        print(error, file=sys.stderr)
        sys.exit(_REFUSED)


if __name__ == "__main__":
    verify_main()
