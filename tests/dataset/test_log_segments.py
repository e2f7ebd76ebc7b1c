"""Rows of segment files come back in order; whatever is torn or damaged costs the frames from there on, and is told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_batch.dataset.log_segments import MAGIC, pack_frame, pack_segment, read_frames, unpack_rows

ROWS = st.lists(st.binary(max_size=20).map(lambda content: b"\xc4" + bytes([len(content)]) + content), min_size=1, max_size=5)


def rows_of(content: bytes) -> tuple[list[list[bytes]], int]:
    arrays, n_torn = read_frames(content)
    return [[bytes(row) for row in unpack_rows(array)] for array in arrays], n_torn


@given(frames=st.lists(ROWS, max_size=4))
@settings(max_examples=50, deadline=None)
def test_every_row_comes_back_in_its_frame(frames: list[list[bytes]]) -> None:
    assert rows_of(pack_segment(frames)) == (frames, 0)


def test_a_file_that_was_cut_anywhere_has_the_whole_frames_before_that_and_says_what_is_torn() -> None:
    frames = [[b"\x01", b"\x02"], [b"\x03"], [b"\x04"]]
    ends = [len(MAGIC)]
    for rows in frames:
        ends.append(ends[-1] + len(pack_frame(rows)))
    whole = pack_segment(frames)
    for n_bytes in range(len(whole) + 1):
        n_frames = sum(end <= n_bytes for end in ends[1:])
        n_torn = n_bytes - ends[n_frames] if n_bytes >= len(MAGIC) else n_bytes
        assert rows_of(whole[:n_bytes]) == (frames[:n_frames], n_torn)


def test_a_changed_byte_is_found_wherever_it_is() -> None:
    frames = [[b"\x01", b"\x02"], [b"\x03"]]
    whole, first_end = pack_segment(frames), len(MAGIC) + len(pack_frame(frames[0]))
    for at in range(len(MAGIC), len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        found, n_torn = rows_of(bytes(damaged))
        assert found == (frames[:1] if at >= first_end else []) and n_torn > 0


def test_another_file_is_refused_with_what_it_begins_with() -> None:
    with pytest.raises(ValueError, match=r"no segment of a log: it begins with b'PAR1'"):
        read_frames(b"PAR1")
