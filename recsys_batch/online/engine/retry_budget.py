"""A budget of retries: a share of all calls, so that a remote in trouble is not asked twice by everybody."""

_MOST_SAVED = 10.0


class RetryBudget:
    """Counts what may be tried again. Every call earns ``share`` of a retry; a few can be saved up."""

    def __init__(self, share: float) -> None:
        self._share, self._saved = share, 1.0 if share else 0.0

    def earn(self) -> None:
        """Note a call."""
        self._saved = min(self._saved + self._share, _MOST_SAVED)

    def spend(self) -> bool:
        """Take a retry out of the budget; False where nothing is left."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
