"""How long to wait before a process that has died is started again."""

import signal

LONGEST_PAUSE_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.1


class RestartBackoff:
    """Counts deaths of one process in a row: the sooner it dies again, the longer it is waited for.

    Attributes:
        n_deaths: in a row; one that has lived for half a minute begins a new row.
    """

    def __init__(self) -> None:
        self.n_deaths = 0

    def next_pause(self, lived_seconds: float) -> float:
        """Count a death after a life of so long; returns the seconds to wait."""
        self.n_deaths = 1 if lived_seconds > LONGEST_PAUSE_SECONDS else self.n_deaths + 1
        return float(min(_FIRST_PAUSE_SECONDS * 2 ** min(self.n_deaths - 1, 20), LONGEST_PAUSE_SECONDS))


def was_told_to_end(code: int | None) -> bool:
    """Say whether a process ended by SIGTERM or SIGINT, as all of a group do when somebody ends the server."""
    return code in (-signal.SIGTERM, -signal.SIGINT)


def describe_exit(code: int | None) -> str:
    """Say how a process ended: its exit status, or the signal (-9) that killed it."""
    if code is None:
        return "ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
