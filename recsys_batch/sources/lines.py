"""Lines of a text file as Arrow text, block by block: of any encoding, with any line end, from the part of a file that a task has."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_batch.errors import SourceError
from recsys_batch.sources.file_tasks import FileTask, open_stream

_BLOCK = 4 * 2**20
_MAX_LINE = 64 * 2**20
_WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
_BOMS = {codecs.BOM_UTF8: "", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class LineBlock:
    """Lines of a file, without their ends; blank ones are left out.

    Attributes:
        positions: int64, ascending, unique in the file: where a line is, for its order among others.
        lines: text.
    """

    positions: np.ndarray
    lines: pa.Array

    def skip_first(self) -> "LineBlock":
        """Leave out the first line."""
        return LineBlock(self.positions[1:], self.lines[1:])


def read_lines(task: FileTask, encoding: str, content: bytes | None = None) -> Iterator[LineBlock]:
    """Read the lines of a task's part of a file.

    Raises SourceError with line and byte where the file is not text of ``encoding``, and OSError as ``open_stream`` does.
    """
    canonical = codecs.lookup(encoding).name
    with open_stream(task.file, content) as stream:
        if canonical in _WIDE:
            yield from _split_blocks(task, _transcode_wide(task, stream, canonical), 0)
            return
        start = _seek_line_start(stream, task.start) if task.start else 0
        if task.end is not None and start >= task.end:
            return
        for offset, block in _read_blocks(stream, start, task.end):
            yield from _split_blocks(task, iter([(offset, _to_utf8(task, block, offset, canonical, content))]), offset)


def count_lines_before(task: FileTask, byte: int, content: bytes | None = None) -> int:
    """Count the line ends before a byte of a file's decompressed content, for an error text."""
    n, left = 0, byte
    with open_stream(task.file, content) as stream:
        while left > 0 and (block := stream.read(min(_BLOCK, left))):
            n += block.count(b"\n")
            left -= len(block)
    return n


def _read_blocks(stream: IO[bytes], start: int, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Read blocks that end with a line, and the offset of each; of the last line that begins before ``end`` the whole."""
    rest, offset = b"", start
    while True:
        fresh = bytes(stream.read(_BLOCK))
        block = rest + fresh
        if end is not None and offset + len(block) >= end:
            yield from _until(stream, block, offset, end)
            return
        if not fresh:
            if block:
                yield offset, block
            return
        cut = _last_line_end(block)
        if cut == 0 and len(block) > _MAX_LINE:
            raise SourceError(f"a line is longer than {_MAX_LINE // 2**20} MiB: is the file text, and its line end a line feed?")
        if cut:
            yield offset, block[:cut]
        rest, offset = block[cut:], offset + cut


def _until(stream: IO[bytes], block: bytes, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Finish a part: lines that begin before byte ``end``, the last of them read to its own end."""
    while True:
        # The line that holds byte end - 1 is ours; the next one begins behind its end.
        cut = _next_line_start(block, max(end - offset - 1, 0))
        if cut is not None:
            break
        fresh = bytes(stream.read(_BLOCK))
        if not fresh:
            cut = len(block)
            break
        block += fresh
    if cut:
        yield offset, block[:cut]


def _seek_line_start(stream: IO[bytes], start: int) -> int:
    """Move to the first line that begins at ``start`` or behind it; return its offset."""
    stream.seek(start - 1)
    block = b""
    while (found := _next_line_start(block, 0)) is None:
        fresh = bytes(stream.read(65_536))
        if not fresh:
            return start - 1 + len(block)
        block += fresh
    stream.seek(start - 1 + found)
    return start - 1 + found


def _next_line_start(block: bytes, begin: int) -> int | None:
    """Find the place behind the first line end at or behind ``begin``; None where the block does not tell."""
    feed, carriage = block.find(b"\n", begin), block.find(b"\r", begin)
    if carriage >= 0 and (feed < 0 or carriage < feed):
        if carriage + 1 >= len(block):
            return None
        return carriage + 2 if block[carriage + 1] == 0x0A else carriage + 1
    return feed + 1 if feed >= 0 else None


def _last_line_end(block: bytes) -> int:
    """Find the place behind the last line end that is surely one: a carriage return at the end may have its line feed to come."""
    return max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1


def _to_utf8(task: FileTask, block: bytes, offset: int, encoding: str, content: bytes | None) -> str:
    if offset == 0:
        for mark, wide in _BOMS.items():
            if block.startswith(mark):
                if wide and encoding == "utf-8":
                    raise SourceError(f"{task.file.name} is not UTF-8 text but begins like UTF-16: pass --encoding utf-16")
                block = block.removeprefix(mark) if not wide else block
    try:
        return block.decode(encoding)
    except UnicodeDecodeError as error:
        shift = len(codecs.BOM_UTF8) if offset == 0 and encoding == "utf-8" and len(error.object) < len(block) else 0
        byte = offset + error.start + shift
        line = count_lines_before(task, byte, content) + 1
        shown = " ".join(f"0x{value:02x}" for value in error.object[error.start : error.start + 1])
        name = "UTF-8" if encoding == "utf-8" else encoding
        raise SourceError(
            f"{task.file.name} is not {name} text: line {line}, byte {byte} ({shown}). Pass the --encoding that it has, "
            "for example iso-8859-1 or cp1252"
        ) from None


def _transcode_wide(task: FileTask, stream: IO[bytes], encoding: str) -> Iterator[tuple[int, str]]:
    """Decode an encoding whose line ends are several bytes; offsets count decoded characters."""
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, offset, n_bytes, n_lines = "", 0, 0, 0
    while True:
        fresh = bytes(stream.read(_BLOCK))
        try:
            text = rest + decoder.decode(fresh, final=not fresh)
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{task.file.name} is not {encoding} text: line {n_lines + 1} or behind it, byte {n_bytes + error.start} or near it"
            ) from None
        n_bytes += len(fresh)
        cut = len(text) if not fresh else max(text.rfind("\n"), text.rfind("\r", 0, len(text) - 1)) + 1
        if cut:
            yield offset, text[:cut].removeprefix("\ufeff") if offset == 0 else text[:cut]
        n_lines += text[:cut].count("\n")
        rest, offset = text[cut:], offset + cut
        if not fresh:
            return


def _split_blocks(task: FileTask, blocks: Iterator[tuple[int, str]], first: int) -> Iterator[LineBlock]:
    for offset, text in blocks:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = pc.split_pattern(pa.array([text], pa.large_string()), "\n").flatten().cast(pa.string())
        # A line takes one byte at least, so that numbers within a block stay below the next block's offset.
        positions = offset + np.arange(len(lines), dtype=np.int64)
        is_row = np.asarray(pc.not_equal(pc.utf8_trim(lines, " "), ""))
        if not is_row.all():
            positions, lines = positions[is_row], lines.filter(pa.array(is_row))
        if len(lines):
            yield LineBlock(positions, lines)
