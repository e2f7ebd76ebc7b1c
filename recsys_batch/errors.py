"""The one exception tree. Each class carries the exit code that the command line returns for it."""

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


class Busy(RecsysBatchError):
    """Another process is at the same work; what this one was asked for is not there yet."""

    exit_code = EXIT_MISSING


class IndexDamaged(RecsysBatchError):
    """An index file is missing, cut short or not the one that was built; building the index again helps."""


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
