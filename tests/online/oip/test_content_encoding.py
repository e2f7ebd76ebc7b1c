import gzip
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_batch.online.http.router import HttpError
from recsys_batch.online.oip.content_encoding import decompress
from recsys_batch.online.oip.model_api import InvalidRequest

PACKED = {"gzip": gzip.compress, "deflate": zlib.compress, "Identity": bytes}


@given(st.sampled_from(sorted(PACKED)), st.binary(max_size=200))
def test_what_was_packed_is_unpacked(encoding: str, body: bytes) -> None:
    assert decompress(PACKED[encoding](body), encoding, 200) == body


def test_a_body_without_an_encoding_is_as_it_came() -> None:
    assert decompress(b"\x1f\x8b", None, 10) == b"\x1f\x8b"


def test_no_more_is_unpacked_than_allowed_however_small_it_came() -> None:
    bomb = gzip.compress(bytes(2**26))
    assert len(bomb) < 2**17
    tracemalloc.start()
    with pytest.raises(HttpError, match="more than 1000 bytes when unpacked") as caught:
        decompress(bomb, "gzip", 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.status == 413 and peak < 2**20
    assert len(decompress(gzip.compress(bytes(1000)), "gzip", 1000)) == 1000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"plain", "is not gzip"),
        (b"", "ends early"),
        (gzip.compress(b"whole")[:-3], "ends early"),
        (gzip.compress(b"one") + b"more", "behind its end"),
    ],
    ids=["plain", "empty", "cut short", "longer"],
)
def test_a_body_that_is_not_what_it_says_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        decompress(body, "gzip", 100)


def test_another_encoding_is_refused_by_name() -> None:
    with pytest.raises(HttpError, match="'br': expected gzip, deflate") as caught:
        decompress(b"", "br", 100)
    assert caught.value.status == 415
