"""Segment files of the online side's log: frames that are appended by one write each, so that a crash leaves at most a torn last frame.

A file is ``MAGIC`` and frames; a frame is its head (bytes stored, bytes decompressed, rows, CRC-32 of all that and of what is stored) and a
MessagePack array of rows, compressed by zstd. Written by online/exposure_log, read by ingest and erasure. Nothing here knows what the
rows are. See docs/decisions/0220-exposure-log.md.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence

import msgspec
import pyarrow as pa

MAGIC = b"RECLOG1\n"
SUFFIX = ".segment"
_HEAD = struct.Struct("<III")
_CHECKSUM = struct.Struct("<I")
_OVERHEAD = _HEAD.size + _CHECKSUM.size
_CODEC = pa.Codec("zstd", compression_level=1)


def pack_frame(rows: Sequence[bytes]) -> bytes:
    """Pack rows, each in MessagePack, into one frame. Most of the time is in zstd, without the interpreter's lock."""
    array = b"\xdd" + len(rows).to_bytes(4, "big") + b"".join(rows)
    stored = _CODEC.compress(array, asbytes=True)
    head = _HEAD.pack(len(stored), len(array), len(rows))
    return b"".join((head, _CHECKSUM.pack(zlib.crc32(stored, zlib.crc32(head))), stored))


def read_frames(content: bytes) -> tuple[list[bytes], int]:
    """Read the whole frames of a segment.

    Returns:
        (MessagePack arrays of rows, number of bytes behind the last whole frame). Such bytes are a frame that a server did not finish.
    Raises:
        ValueError: the content is not a segment's.
    """
    if not content.startswith(MAGIC[: len(content)]):
        raise ValueError(f"it is no segment of a log: it begins with {content[: len(MAGIC)]!r}, expected {MAGIC!r}")
    if len(content) < len(MAGIC):
        return [], len(content)
    view, at, arrays = memoryview(content), len(MAGIC), list[bytes]()
    while at + _OVERHEAD <= len(content):
        n_stored, n_bytes, _ = _HEAD.unpack_from(content, at)
        stored = view[at + _OVERHEAD : at + _OVERHEAD + n_stored]
        (checksum,) = _CHECKSUM.unpack_from(content, at + _HEAD.size)
        if len(stored) < n_stored or zlib.crc32(stored, zlib.crc32(view[at : at + _HEAD.size])) != checksum:
            break
        arrays.append(_CODEC.decompress(stored, n_bytes, asbytes=True))
        at += _OVERHEAD + n_stored
    return arrays, len(content) - at


def unpack_rows(array: bytes) -> list[msgspec.Raw]:
    """Unpack a frame's array into its rows, as they are stored."""
    return msgspec.msgpack.decode(array, type=list[msgspec.Raw])


def pack_segment(frames: Iterable[Sequence[bytes]]) -> bytes:
    """Pack a whole segment file of the rows of its frames; frames without rows are left out."""
    return MAGIC + b"".join(pack_frame(rows) for rows in frames if rows)
