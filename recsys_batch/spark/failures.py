"""What Spark says when a file breaks only while it is being read, in one sentence."""

from __future__ import annotations

import re

from recsys_batch.errors import SourceError

_FAILED_READ = re.compile(r"\[FAILED_READ_FILE\.(\w+)\] Encountered error while reading file (\S+?)\.?\s+(.*)")
_NOT_FOUND = re.compile(r"\[PATH_NOT_FOUND\] Path does not exist: (\S+?)\.? SQLSTATE")
_NO_FOOTER = "CANNOT_READ_FILE_FOOTER"
_CAUSE = re.compile(r"Caused by: [\w.$]+: (.+)")


def read_failure(error: Exception, own_folder: str | None = None) -> SourceError | None:
    """The error as a SourceError if it is about reading a source file, else None.

    Args:
        own_folder: the warehouse; a damaged file in there is no fault of the source.
    """
    text = str(error)
    gone = _NOT_FOUND.search(text)
    if gone:
        return SourceError(f"{_plain(gone[1])} does not exist")
    failed = _FAILED_READ.search(text)
    if failed is None or (own_folder and own_folder.rstrip("/") + "/" in _plain(failed[2])):
        return None
    condition, file, rest = failed[1], _plain(failed[2]), failed[3].split("SQLSTATE")[0].strip()
    if condition == _NO_FOOTER:
        return SourceError(f"{file} is not a Parquet file; what is it? --format takes movielens, csv, parquet or delta")
    causes = [cause.strip() for cause in _CAUSE.findall(text)]
    return SourceError(f"{file} cannot be read: {rest or (causes[-1] if causes else 'damaged, or of another format')}")


def _plain(uri: str) -> str:
    return re.sub(r"^file:/*", "/", uri)
