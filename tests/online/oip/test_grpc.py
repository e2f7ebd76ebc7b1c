"""The wire of gRPC by its bare messages: what the official client never sends."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import pytest
import tritonclient.grpc

from recsys_batch.online.oip import grpc_calls, grpc_server
from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.dynamic_batcher import DynamicBatcher
from recsys_batch.online.oip.grpc_calls import MAX_UNFINISHED, MessageReader
from recsys_batch.online.oip.grpc_handlers import make_handlers
from recsys_batch.online.oip.grpc_server import Servicer
from recsys_batch.online.oip.model_api import DTYPES, InvalidRequest, ModelUnknown, OipModel, TensorSpec
from recsys_batch.online.oip.tensor_codec import tensor_from_bytes
from recsys_batch.online.serving.admission import Overloaded

NO_SNAPSHOTS: Any = None


class Echo(OipModel):
    """Gives back what it is given, one tensor of each datatype; raises what it is told to."""

    name, version, rows_are_independent = "echo", "1", False
    inputs: Sequence[TensorSpec] = tuple(TensorSpec(one, one, (-1,), optional=True) for one in sorted(DTYPES))
    outputs: Sequence[TensorSpec] = inputs
    error: Exception | None = None

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if self.error is not None:
            raise self.error
        return inputs


class OneModel:
    def __init__(self, model: OipModel) -> None:
        self._model = model

    def get(self, name: str, version: str | None) -> OipModel:
        if name != self._model.name or version not in (None, self._model.version):
            raise ModelUnknown(f"no {name}")
        return self._model

    def names(self) -> list[str]:
        return [self._model.name]

    def ready(self) -> bool:
        return True


@asynccontextmanager
async def connected(model: OipModel, max_waiting: int = 32, read_seconds: float = 60.0) -> AsyncIterator[tuple[grpc.aio.Channel, int]]:
    """A channel to a server of its own, and its port."""
    server = grpc.aio.server()
    servicer = Servicer(OneModel(model), DynamicBatcher(), NO_SNAPSHOTS, max_waiting)
    server.add_generic_rpc_handlers((make_handlers(servicer, None, None, MessageReader(read_seconds)),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel, port
    await server.stop(None)


@asynccontextmanager
async def serving(model: OipModel, max_waiting: int = 32) -> AsyncIterator[Any]:
    """The method ModelInfer of a server of its own."""
    async with connected(model, max_waiting) as (channel, _):
        yield infer_method(channel)


def infer_method(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
        response_deserializer=messages.ModelInferResponse.FromString,
    )


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer, or (status, sentence)."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()


def infer(request: Any, model: OipModel | None = None) -> Any:
    """The answer, or (status, sentence), over a real connection."""

    async def ask() -> Any:
        async with serving(model or Echo()) as call:
            return await outcome(call(request))

    return asyncio.run(ask())


def asked(*tensors: Mapping[str, Any], **more: Any) -> Any:
    return messages.ModelInferRequest(model_name="echo", inputs=tensors, **more)


def typed(datatype: str) -> tuple[dict[str, Any], list[Any]]:
    """A tensor in typed contents, and its values."""
    field, values = {
        "BOOL": ("bool_contents", [True, False]),
        "INT64": ("int64_contents", [-(2**63), 2**63 - 1]),
        "UINT64": ("uint64_contents", [0, 2**64 - 1]),
        "FP32": ("fp32_contents", [0.5, -2.0]),
        "FP64": ("fp64_contents", [0.1, -1e300]),
        "BYTES": ("bytes_contents", [b"", b"\xff\x00"]),
    }.get(datatype, ("uint_contents", [0, 200]) if datatype.startswith("U") else ("int_contents", [-100, 100]))
    return {"name": datatype, "datatype": datatype, "shape": [2], "contents": {field: values}}, values


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"FP16"}))
def test_typed_contents_are_taken_and_answered_raw(datatype: str) -> None:
    tensor, values = typed(datatype)
    answer = infer(asked(tensor))
    (output,), (raw,) = answer.outputs, answer.raw_output_contents
    assert (output.name, output.datatype, list(output.shape)) == (datatype, datatype, [2])
    assert tensor_from_bytes("x", datatype, [2], raw).tolist() == values


def test_outputs_come_in_the_order_asked_for_one_raw_buffer_each() -> None:
    tensors = [typed("INT8")[0], typed("FP64")[0], typed("BYTES")[0]]
    answer = infer(asked(*tensors, outputs=[{"name": "BYTES"}, {"name": "INT8"}]))
    assert [one.name for one in answer.outputs] == ["BYTES", "INT8"] and len(answer.raw_output_contents) == 2
    assert answer.raw_output_contents[1] == b"\x9c\x64"


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (asked(typed("INT8")[0], raw_input_contents=[b"ab", b"ab"]), "2 raw_input_contents for 1 inputs"),
        (asked(typed("INT8")[0], raw_input_contents=[b"abc"]), "has 3 bytes, expected 2"),
        (asked(typed("INT8")[0], typed("INT8")[0]), "name a tensor twice"),
        (asked({"name": "FP16", "datatype": "FP16", "shape": [1]}), "send raw_input_contents"),
        (asked({"name": "INT8", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [300]}}), "beyond INT8"),
        (asked({"name": "INT8", "datatype": "INT8", "shape": [3], "contents": {"int_contents": [1]}}), "expected 3"),
        (asked({"name": "INT8", "datatype": "INT8", "shape": [-1], "contents": {"int_contents": [1]}}), "sizes from 0"),
        (asked({"name": "INT8", "datatype": "odd", "shape": [1]}), "expected INT8"),
        (asked({"name": "odd", "datatype": "INT8", "shape": [1]}), "no input 'odd'"),
        (asked(typed("INT8")[0], outputs=[{"name": "odd"}]), "no output 'odd'"),
    ],
)
def test_what_does_not_fit_is_an_invalid_argument(sent: Any, words: str) -> None:
    code, details = infer(sent)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and words in details


def test_an_overload_and_an_unknown_model_have_statuses_of_their_own() -> None:
    model = Echo()
    model.error = Overloaded("40 requests wait for a model: try again")
    assert infer(asked(typed("INT8")[0]), model) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "40 requests wait for a model: try again")
    unknown = messages.ModelInferRequest(model_name="echo", model_version="2", inputs=[typed("INT8")[0]])
    assert infer(unknown) == (grpc.StatusCode.NOT_FOUND, "no echo")


def test_what_nobody_foresaw_is_in_the_log_and_not_in_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    model = Echo()
    model.error = KeyError("a secret of the inside")
    with caplog.at_level(logging.ERROR):
        code, details = infer(asked(typed("INT8")[0]), model)
    assert code is grpc.StatusCode.INTERNAL and "secret" not in details and "the server's log" in details
    assert "a secret of the inside" in caplog.text


def test_bytes_that_are_no_message_are_an_invalid_argument() -> None:
    assert infer(b"\xff") == (grpc.StatusCode.INVALID_ARGUMENT, "the message is no ModelInferRequest")


def test_details_fit_the_headers_that_clients_take(caplog: pytest.LogCaptureFixture) -> None:
    model = Echo()
    model.error = InvalidRequest("\U0001f600" * 10**5)
    code, details = infer(asked(typed("INT8")[0]), model)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and details.endswith("...")
    assert len(quote(details)) < 8 * 2**10


class Endless(Echo):
    """A request of pieces without end."""

    def __init__(self) -> None:
        self.pieces = 0

    def split(self, inputs: Mapping[str, np.ndarray]) -> list[Mapping[str, np.ndarray]]:
        return [inputs] * 10**6

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.pieces += 1
        return {"INT8": inputs["INT8"][:0]}


async def has_stopped(model: Endless) -> bool:
    """Whether no piece is worked on in twenty turns of the loop, sooner or later."""
    for _ in range(10_000):
        before = model.pieces
        for _ in range(20):
            await asyncio.sleep(0)
        if model.pieces == before:
            return True
    return False


def test_work_ends_with_a_call_that_is_cancelled_and_with_its_deadline() -> None:
    async def leave(deadline: float | None) -> Any:
        model = Endless()
        async with serving(model) as model_infer:
            call = model_infer(asked(typed("INT8")[0]), timeout=deadline)
            answer = asyncio.ensure_future(outcome(call))
            while not model.pieces:
                await asyncio.sleep(0)
            if deadline is None:
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await answer
            else:
                assert (await answer)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
            return await has_stopped(model)

    assert asyncio.run(leave(None)) and asyncio.run(leave(0.2))


def refusals(request: Any, n_calls: int, n_taken: int, max_waiting: int) -> set[Any]:
    """What so many calls at once end with, but for those that are worked on for ever."""

    async def ask() -> set[Any]:
        async with serving(Endless(), max_waiting) as model_infer:
            calls = [model_infer(request) for _ in range(n_calls)]
            answers = [asyncio.ensure_future(outcome(call)) for call in calls]
            async with asyncio.timeout(20):
                while sum(answer.done() for answer in answers) < n_calls - n_taken:
                    await asyncio.sleep(0.001)
            found = {answer.result() for answer in answers if answer.done()}
            for call in calls:
                call.cancel()
            await asyncio.gather(*answers, return_exceptions=True)
            return found

    return asyncio.run(ask())


@pytest.fixture
def room_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that of many calls at once only the queue's bound refuses some: a burst may pass the other one while it is read."""
    monkeypatch.setattr(grpc_calls, "MAX_UNFINISHED", 1000)


@pytest.mark.usefixtures("room_to_read")
def test_calls_past_the_bound_are_refused_with_a_sentence() -> None:
    sentence = "3 requests wait or are worked on, and 1 more are too many at once: try again"
    assert refusals(asked(typed("INT8")[0]), 500, 3, max_waiting=3) == {(grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)}


def test_messages_have_room_for_so_many_bytes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_server, "MAX_BYTES_IN_FLIGHT", 3000)
    request = asked({"name": "INT8", "datatype": "INT8", "shape": [1000]}, raw_input_contents=[bytes(1000)])
    ((code, sentence),) = refusals(request, 5, 2, max_waiting=100)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED and "bytes of requests wait or are worked on" in sentence


def test_our_messages_are_the_official_clients_on_the_wire_and_beside_them_in_a_process() -> None:
    official = tritonclient.grpc.service_pb2
    ours = asked(typed("INT64")[0], id="mine", parameters={"p": {"int64_param": 5}}, raw_input_contents=[b"x"])
    theirs = official.ModelInferRequest.FromString(ours.SerializeToString())
    assert str(theirs) == str(ours)


async def never() -> AsyncIterator[bytes]:
    """A message that does not come."""
    await asyncio.Event().wait()
    yield b""


async def is_answered(channel: grpc.aio.Channel) -> bool:
    return isinstance(await outcome(infer_method(channel)(messages.ModelInferRequest(model_name="echo"))), messages.ModelInferResponse)


def begin_calls(channel: grpc.aio.Channel, n: int) -> list[Any]:
    """Calls whose headers are sent, and whose messages never are."""
    return [channel.stream_unary(f"/inference.GRPCInferenceService/{name}")(never()) for name in ("ModelInfer", "ServerReady") * (n // 2)]


def test_calls_whose_message_never_comes_keep_nobody_out_and_the_oldest_give_way() -> None:
    async def ask() -> None:
        async with connected(Echo(), max_waiting=2) as (channel, _):
            slow = begin_calls(channel, 2 * MAX_UNFINISHED)
            waiting, refused = [asyncio.ensure_future(outcome(call)) for call in slow], []
            assert await is_answered(channel)
            for task in asyncio.as_completed(waiting):
                refused.append(await task)
                if len(refused) >= MAX_UNFINISHED:
                    break
            sentence = f"more than {MAX_UNFINISHED} calls wait for their messages, and this one waited longest: try again"
            assert set(refused) == {(grpc.StatusCode.RESOURCE_EXHAUSTED, sentence)}
            for task in waiting:
                task.cancel()

    asyncio.run(ask())


@pytest.mark.parametrize("max_unfinished", [1, MAX_UNFINISHED])
def test_a_burst_of_whole_messages_is_answered_or_told_that_it_is_too_much_and_never_that_it_was_late(
    max_unfinished: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smallest bound, as it is chance how many messages that are here wait to be handed over."""
    monkeypatch.setattr(grpc_calls, "MAX_UNFINISHED", max_unfinished)

    async def ask() -> set[Any]:
        async with connected(Joining(), max_waiting=10_000) as (channel, _):
            calls = [infer_method(channel)(numbered(n)) for n in range(400)]
            found = await asyncio.gather(*map(outcome, calls))
            return {one[0] if isinstance(one, tuple) else grpc.StatusCode.OK for one in found}

    statuses = asyncio.run(ask())
    assert grpc.StatusCode.OK in statuses and statuses <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Unhurried:
    """The context of a call whose message is here, and handed over once the test says so."""

    def __init__(self) -> None:
        self.hand_over = asyncio.Event()

    async def read(self) -> bytes:
        await self.hand_over.wait()
        return b"here"


def test_of_messages_that_are_here_but_not_handed_over_the_oldest_are_too_many_and_those_that_stay_too_long_are_late() -> None:
    async def ask() -> tuple[list[Any], list[Any]]:
        reader, contexts = MessageReader(60), [Unhurried() for _ in range(MAX_UNFINISHED + 2)]
        reads = [asyncio.ensure_future(reader.read_only(context)) for context in contexts]
        await asyncio.wait(reads[:2])
        for context in contexts:
            context.hand_over.set()
        late = await asyncio.gather(MessageReader(0.05).read_only(Unhurried()), return_exceptions=True)
        return await asyncio.gather(*reads, return_exceptions=True), late

    found, (late,) = asyncio.run(ask())
    assert [type(one) for one in found[:2]] == [Overloaded] * 2 and found[2:] == [b"here"] * MAX_UNFINISHED
    assert str(late) == "the message did not arrive within 0.05 s" and not isinstance(late, Overloaded)


def test_a_message_has_its_time_and_a_call_needs_one() -> None:
    async def nothing() -> AsyncIterator[bytes]:
        return
        yield b""

    async def ask() -> None:
        async with connected(Echo(), read_seconds=0.05) as (channel, _):
            (late, _) = [await outcome(call) for call in begin_calls(channel, 2)]
            assert late == (grpc.StatusCode.DEADLINE_EXCEEDED, "the message did not arrive within 0.05 s")
            empty = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(nothing())
            assert await outcome(empty) == (grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
            assert await is_answered(channel)

    asyncio.run(ask())


class Slow(Echo):
    """Remembers which requests it was run for; each run takes a while, in which the loop stands still."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.scored = seconds, []

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.scored.append(int(inputs["INT64"][0]))
        time.sleep(self.seconds)
        return inputs


def numbered(number: int) -> Any:
    return asked({"name": "INT64", "datatype": "INT64", "shape": [1], "contents": {"int64_contents": [number]}})


def ask_hurriedly(port: int, first: int, n_calls: int, seconds: float) -> set[grpc.StatusCode]:
    """The statuses of numbered calls that have so long; by a client with threads of its own, whose clock goes on while a loop stands."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        futures = [call.future(numbered(first + n).SerializeToString(), timeout=seconds) for n in range(n_calls)]
        return {future.code() for future in futures}


@pytest.mark.parametrize("seconds", [0.001, 0.02])
def test_a_call_past_its_deadline_under_load_is_not_scored(seconds: float) -> None:
    async def ask() -> None:
        model = Slow(0.05)
        async with connected(model) as (channel, port):
            others = [asyncio.ensure_future(outcome(infer_method(channel)(numbered(n)))) for n in range(8)]
            while not model.scored:
                await asyncio.sleep(0.001)
            assert await asyncio.to_thread(ask_hurriedly, port, 100, 8, seconds) == {grpc.StatusCode.DEADLINE_EXCEEDED}
            assert [type(await one) for one in others] == [messages.ModelInferResponse] * 8
            assert isinstance(await outcome(infer_method(channel)(numbered(200))), messages.ModelInferResponse)
            assert len([number for number in model.scored if number < 100]) == 8 and model.scored[-1] == 200
            # One may have begun in time, between two runs; after it they all are late.
            assert len([number for number in model.scored if 100 <= number < 200]) <= 1

    asyncio.run(ask())


def test_the_deadline_of_a_call_is_that_of_its_request() -> None:
    """grpc cancels a call that is late as well, but not before the loop comes to it."""

    class Context:
        async def read(self) -> bytes:
            return bytes(numbered(1).SerializeToString())

        def time_remaining(self) -> float:
            return 0.0

        async def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise KeyError(code, details)

    model = Slow()
    servicer = Servicer(OneModel(model), DynamicBatcher(), NO_SNAPSHOTS, 32)
    handlers = make_handlers(servicer, None, None, MessageReader(60))
    details: Any = type("", (), {"method": "/inference.GRPCInferenceService/ModelInfer"})

    async def ask() -> None:
        with pytest.raises(KeyError) as refused:
            await handlers.service(details).stream_unary(None, Context())
        assert refused.value.args == (grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the model was run")

    asyncio.run(ask())
    assert not model.scored


def test_a_cancelled_call_frees_its_place() -> None:
    async def ask() -> None:
        model = Endless()
        async with serving(model, max_waiting=1) as model_infer:
            call = model_infer(asked(typed("INT8")[0]))
            answer = asyncio.ensure_future(outcome(call))
            while not model.pieces:
                await asyncio.sleep(0)
            other = messages.ModelInferRequest(model_name="nothing")
            assert (await outcome(model_infer(other)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await answer
            async with asyncio.timeout(20):
                while (await outcome(model_infer(other)))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    await asyncio.sleep(0.001)

    asyncio.run(ask())


class Joining(Slow):
    """Answers requests together; a run takes a millisecond."""

    def joint_key(self, inputs: Mapping[str, np.ndarray]) -> str:
        return "all"

    def infer_many(self, requests: Sequence[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
        time.sleep(0.001)
        return list(requests)


def test_of_two_hundred_calls_at_once_some_are_answered_the_rest_refused_and_none_hangs() -> None:
    async def ask() -> None:
        async with connected(Joining(0.001), max_waiting=4) as (channel, _):
            calls = [infer_method(channel)(numbered(n)) for n in range(200)]
            async with asyncio.timeout(20):
                found = await asyncio.gather(*map(outcome, calls))
            answers = [one for one in found if isinstance(one, messages.ModelInferResponse)]
            assert len(answers) >= 4
            assert {one[0] for one in found if isinstance(one, tuple)} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert isinstance(await outcome(infer_method(channel)(numbered(200))), messages.ModelInferResponse)

    asyncio.run(ask())
