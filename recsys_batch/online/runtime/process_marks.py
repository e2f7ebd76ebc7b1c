"""Which kinds of a server's processes have started once: one that never could ends the server, one that dies later is started again."""

from pathlib import Path


def mark_started(state: Path, name: str) -> None:
    """Say that a process of that kind answers, or follows.

    Args:
        state: the server's folder.
        name: worker, grpc, live.
    """
    path = state / f"started-{name}"
    if not path.exists():
        path.touch()


def has_started(state: Path, name: str) -> bool:
    """Say whether a process of that kind ever did."""
    return (state / f"started-{name}").exists()
