"""The head of a request as it came: header fields by name, and the target as path and query. Used by connection.py and app.py."""

from urllib.parse import unquote_to_bytes

import httptools

from recsys_batch.online.http.router import HttpError


class Headers:
    """Header fields of one request, found by their name in lower case.

    A field that comes several times is one, its values joined by commas (RFC 9110, 5.2).
    """

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields: dict[bytes, bytes] = {}

    def add(self, name: bytes, value: bytes) -> None:
        """Take a field as it comes off the wire."""
        name = name.lower()
        self._fields[name] = self._fields[name] + b", " + value if name in self._fields else value

    def get(self, name: str) -> str | None:
        """Return a field's value; None where there is none."""
        value = self._fields.get(name.encode())
        return value.decode("latin-1") if value is not None else None

    def __contains__(self, name: bytes) -> bool:
        return name in self._fields

    @property
    def content_length(self) -> int | None:
        """Bytes that the body is said to have; the parser has checked that these are digits, and one number."""
        value = self._fields.get(b"content-length")
        return int(value) if value is not None else None

    @property
    def expects_continue(self) -> bool:
        """Whether the body is sent only once it is asked for."""
        return self._fields.get(b"expect", b"").lower() == b"100-continue"


def split_target(target: bytes) -> tuple[str, str]:
    """Split a request's target into (path, decoded once; query, as it came).

    Raises:
        HttpError: 400, it is no path, or its path is not UTF-8.
    """
    if not target.startswith(b"/") or b"#" in target:  # absolute, as proxies send it, or an authority
        target = _find_path(target)
    path, _, query = target.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    try:
        return path.decode(), query.decode("latin-1")
    except UnicodeDecodeError:
        raise HttpError(400, "the path is not UTF-8: percent-encode its bytes") from None


def _find_path(target: bytes) -> bytes:
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise HttpError(400, "the target is no path: expected one that begins with /") from None
    return (url.path or b"/") + (b"?" + url.query if url.query else b"")
