"""Log lines that say which run and step they belong to, as text or as JSON."""

import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TextIO

_CONTEXT: ContextVar[dict[str, str] | None] = ContextVar("recsys_batch_log_context", default=None)

LOG_FORMATS = ("text", "json")


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Add fields (run_id, step) to every line logged inside, beside those of the context around it."""
    token = _CONTEXT.set({**(_CONTEXT.get() or {}), **fields})
    try:
        yield
    finally:
        _CONTEXT.reset(token)


def context_fields() -> dict[str, str]:
    """Copy the fields of the context that this code runs in."""
    return dict(_CONTEXT.get() or {})


def configure(form: str = "text") -> None:
    """Log to standard error. Called again, it replaces its own handler and leaves others alone."""
    handler = _StderrHandler()
    text = _TextFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    handler.set_name("recsys_batch")
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if other.get_name() != "recsys_batch"] + [handler]
    root.setLevel(logging.WARNING)


class _StderrHandler(logging.StreamHandler):
    """Writes to what sys.stderr is when a line is logged: a caller in the same process may replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head, *rest = super().format(record).split("\n")
        return "\n".join([" ".join([head, *(f"{name}={value}" for name, value in context_fields().items())]), *rest])


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **context_fields(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
