"""The head of an answer as bytes. Used by connection.py."""

import functools
import http
import time
from email.utils import formatdate

Fields = tuple[tuple[str, str], ...]


def encode_head(status: int, headers: Fields, length: int, connection: bytes) -> bytes:
    """Encode the status line and header fields of an answer, with its date and length.

    Args:
        length: bytes of the body, also where it is left out.
        connection: a line about the connection with its end, or nothing.
    """
    return b"%s%s%scontent-length: %d\r\n\r\n" % (_encode_fields(status, headers), _encode_date(int(time.time())), connection, length)


@functools.lru_cache(256)
def _encode_fields(status: int, headers: Fields) -> bytes:
    lines = [f"HTTP/1.1 {status} {_reason(status)}", *(f"{name}: {value}" for name, value in headers)]
    if any(not line.isprintable() for line in lines):
        raise ValueError("a header field of an answer has a line break or another sign that no field may have")
    return "".join(line + "\r\n" for line in lines).encode("latin-1")


def _reason(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


@functools.lru_cache(1)
def _encode_date(second: int) -> bytes:
    return f"date: {formatdate(second, usegmt=True)}\r\n".encode()
