"""The one exception tree. Each class carries the exit code that the command line returns for it.

``quote`` puts what was found into a message, however large it is.
"""

import reprlib
from typing import Any

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_MISSING = 4


class RecsysBatchError(Exception):
    """Something failed and a retry may help. The message says what was found and what to do."""

    exit_code = EXIT_FAILED


class UsageError(RecsysBatchError):
    """The call, the config or an input file cannot be used as it is; retrying changes nothing."""

    exit_code = EXIT_USAGE


class ConfigError(UsageError):
    """A config file or a ``--set`` override is wrong."""


class SourceError(UsageError):
    """An input file cannot be read as what it was said to be."""


class BundleError(UsageError):
    """A model bundle is damaged, of another format version, or does not fit the data."""


class GateRefused(RecsysBatchError):
    """A quality gate said no; what was published before stays published."""

    exit_code = EXIT_REFUSED


class InputMissing(RecsysBatchError):
    """A table, run or model that this command reads is missing or stale."""

    exit_code = EXIT_MISSING


class ChampionDeleted(InputMissing):
    """The model version that was champion was deleted from the registry, and the alias with it."""


class RegistryUnavailable(RecsysBatchError):
    """The model registry cannot be asked, or failed; whether it has what was looked for is not known."""


class Busy(RecsysBatchError):
    """Another process is at the same work; what this one was asked for is not there yet."""

    exit_code = EXIT_MISSING


class IndexDamaged(RecsysBatchError):
    """An index file is missing, cut short or not the one that was built; building the index again helps."""


_QUOTE_LENGTH = 60


class _BoundedRepr(reprlib.Repr):
    """Writes the beginning of a value, whatever its size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _QUOTE_LENGTH

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() <= 1024 else f"a whole number of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:_QUOTE_LENGTH])


_REPR = _BoundedRepr()


def shorten(text: str, length: int) -> str:
    """Cut a text to at most ``length`` characters, of which the last three say so."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def quote(value: Any) -> str:
    """Write a value as Python does, in at most 60 characters and at a cost that does not grow with the value."""
    return shorten(_REPR.repr(value), _QUOTE_LENGTH)


def caused_by_interrupt(error: BaseException) -> bool:
    """Say whether Ctrl-C or SIGTERM caused an error: Spark's clean-up after one fails in turn, and that error hides the first."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:  # `raise error from error` makes a ring
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return False
