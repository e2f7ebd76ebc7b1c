"""Bodies that come slowly, never, or not to their end."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from recsys_batch.online.http.body_reader import BodyReader, ClientGone
from recsys_batch.online.http.router import HttpError
from tests.online.http.fakes import FakeProtocol, in_event_loop

BOUND = 100


def read(reader: BodyReader, proto: FakeProtocol, length: int | None = None, version: str = "1.1") -> Awaitable[bytes]:
    headers = {} if length is None else {"content-length": str(length)}
    return reader.read(headers, version, proto, BOUND, asyncio.get_running_loop().time())


async def refused(reading: Awaitable[Any]) -> HttpError:
    with pytest.raises(HttpError) as caught:
        await reading
    return caught.value


@pytest.mark.parametrize("length", [None, 10], ids=["chunked", "with its length"])
@in_event_loop
async def test_a_body_that_never_comes_is_refused_when_its_time_is_over(length: int | None) -> None:
    late = await refused(read(BodyReader(0.02), FakeProtocol(None), length))
    assert late.status == 408 and str(late) == "the body did not arrive within 0.02 s"
    assert ("connection", "close") in late.headers


@in_event_loop
async def test_what_has_arrived_is_given_whole_and_leaves_nothing_behind() -> None:
    reader = BodyReader(60)
    assert await read(reader, FakeProtocol([b"abc", b"de"]), 5) == b"abcde"
    assert await read(reader, FakeProtocol([b"abc", b"de"])) == b"abcde"
    assert await read(reader, FakeProtocol([])) == b""
    assert (len(reader._unfinished), reader._unfinished.n_bytes) == (0, 0)


@in_event_loop
async def test_past_the_bound_the_oldest_unfinished_body_gives_way_to_the_one_that_comes() -> None:
    reader = BodyReader(60, max_unfinished=3)
    slow = [asyncio.ensure_future(refused(read(reader, FakeProtocol(None), 5))) for _ in range(3)]
    await asyncio.sleep(0)
    assert await read(reader, FakeProtocol([b"whole"]), 5) == b"whole"
    first = await slow[0]
    assert first.status == 408 and "too many others" in str(first)
    assert not slow[1].done() and not slow[2].done()
    for task in slow[1:]:
        task.cancel()


@in_event_loop
async def test_announced_and_received_bytes_of_all_bodies_are_bounded_together() -> None:
    reader = BodyReader(60, max_unfinished_bytes=150)
    slow = [asyncio.ensure_future(refused(read(reader, FakeProtocol(None), 90))) for _ in range(2)]
    await asyncio.sleep(0)
    assert (await slow[0]).status == 408 and not slow[1].done()
    assert await read(reader, FakeProtocol([b"x" * 40, b"x" * 50])) == b"x" * 90
    assert (await slow[1]).status == 408


@pytest.mark.parametrize(("length", "broken"), [(10, True), (None, True)], ids=["with its length", "chunked"])
@in_event_loop
async def test_a_connection_that_ends_before_the_body_is_no_fault_of_the_servers(length: int | None, broken: bool) -> None:
    error = await refused(read(BodyReader(60), FakeProtocol([b"abc"], broken=broken), length))
    assert isinstance(error, ClientGone) and error.status == 400


@pytest.mark.parametrize("length", [None, BOUND + 1], ids=["chunked", "with its length"])
@in_event_loop
async def test_more_than_the_bound_is_refused_and_not_read_on(length: int | None) -> None:
    proto = FakeProtocol([b"x" * 60, b"x" * 60, b"x" * 60])
    assert (await refused(read(BodyReader(60), proto, length))).status == 413
    assert proto.read_at_all == (length is None) and len(proto._chunks or ()) > 1


@in_event_loop
async def test_over_http_2_a_body_has_a_length_as_its_end_looks_like_a_break() -> None:
    assert (await refused(read(BodyReader(60), FakeProtocol([b"abc", b""]), version="2"))).status == 411
    assert await read(BodyReader(60), FakeProtocol([]), version="2") == b""
