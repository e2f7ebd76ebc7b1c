"""Calls over gRPC: tokens, messages read within bounds, and every error as a status with a sentence.

grpc_handlers.py and grpc_standard_services.py make their handlers by it. All requests are taken as streams of messages, which look the same
on the wire as a single one: so what has not arrived is read here, and who never sends it keeps nobody out.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from recsys_batch.errors import InputMissing, RecsysBatchError, shorten
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.oip.dynamic_batcher import DeadlinePassed
from recsys_batch.online.oip.model_api import InvalidRequest, ModelUnknown
from recsys_batch.online.serving.admission import Overloaded
from recsys_batch.online.serving.unfinished_reads import UnfinishedRead, UnfinishedReads
from recsys_batch.online.settings import ADMIN_TOKEN

logger = logging.getLogger("recsys_batch.online")

MAX_UNFINISHED = 64
"""Calls of a process whose message is not read yet: gRPC keeps what has come of each, up to the bound on a message."""
_MAX_DETAILS_LENGTH = 500
"""Characters; details travel percent-encoded in a header, and a client takes 8 KiB of headers."""

Handle = Callable[[Any, Any], Awaitable[Any]]


class _TooSlow(Exception):
    """A call's message did not arrive; says how long it was waited for."""


_STATUS = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelUnknown: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlinePassed: grpc.StatusCode.DEADLINE_EXCEEDED,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    InputMissing: grpc.StatusCode.NOT_FOUND,
    RecsysBatchError: grpc.StatusCode.FAILED_PRECONDITION,
    _TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class MessageReader:
    """Reads the messages of a process's calls, each within a time, and all within MAX_UNFINISHED, past which the oldest gives way.

    Args:
        seconds: in which a message has to arrive.
    """

    def __init__(self, seconds: float) -> None:
        self._reads = UnfinishedReads("message", seconds, MAX_UNFINISHED, float("inf"))

    async def read(self, context: Any) -> bytes | None:
        """Read the next message of a call; None at its end. By the context, as an iterator of messages costs a task of its own to close.

        Raises:
            _TooSlow: it did not arrive in its time. Overloaded: too many others began meanwhile; it may have been here, as gRPC hands
                messages over in later turns of the loop.
        """
        task = asyncio.current_task()
        assert task is not None
        read = UnfinishedRead(time.perf_counter(), 0, task)
        self._reads.add(read)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if not read.refusal:
                raise
            task.uncancel()
            if read.is_late:
                raise _TooSlow(read.refusal) from None
            raise Overloaded(f"more than {MAX_UNFINISHED} calls wait for their messages, and this one waited longest: try again") from None
        finally:
            self._reads.remove(read)
        return None if message is grpc.aio.EOF else bytes(message)

    async def read_only(self, context: Any) -> bytes:
        """Read the message of a call that has one. Raises InvalidRequest: it ended without; and as ``read``."""
        message = await self.read(context)
        if message is None:
            raise InvalidRequest("the call has no message")
        return message


def guard(name: str, answer: Callable[[Any], Awaitable[Any]], tokens: list[str] | None = None, whose: str = "client") -> Handle:
    """Wrap what answers calls of a method: tokens are checked before, errors become statuses, and calls are counted by their code.

    Args:
        answer: of a call's context. tokens: one of which is needed; None where everybody may, empty where nobody may.
        whose: tokens they are.
    """

    async def call(_: Any, context: Any) -> Any:
        if tokens == []:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, f"this server was started without an admin token ({ADMIN_TOKEN})")
        if tokens is not None and not _has_token(tokens, dict(context.invocation_metadata() or ())):
            sentence = f"this needs the {whose}'s token as metadata `authorization: Bearer TOKEN`"
            await refuse(context, grpc.StatusCode.UNAUTHENTICATED, sentence)
        try:
            message = await answer(context)
        except DecodeError as error:
            await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"the message is no {name}Request: {error}")
        except tuple(_STATUS) as error:
            await refuse(context, next(status for kind, status in _STATUS.items() if isinstance(error, kind)), str(error))
        except asyncio.CancelledError:  # by grpc, where nobody waits any more
            code = grpc.StatusCode.DEADLINE_EXCEEDED if context.time_remaining() == 0 else grpc.StatusCode.CANCELLED
            metrics.tally.add("grpc_requests", name, code.name)
            raise
        except Exception:
            logger.exception("%s over gRPC failed", name)
            await refuse(context, grpc.StatusCode.INTERNAL, "something went wrong here; the server's log says what")
        metrics.tally.add("grpc_requests", name, grpc.StatusCode.OK.name)
        return message

    async def refuse(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
        metrics.tally.add("grpc_requests", name, code.name)
        await context.abort(code, shorten(message, _MAX_DETAILS_LENGTH))
        raise AssertionError("abort raises")

    return call


def _has_token(tokens: list[str], metadata: Mapping[str, Any]) -> bool:
    scheme, _, sent_token = str(metadata.get("authorization", "")).partition(" ")
    return scheme.lower() == "bearer" and any(hmac.compare_digest(sent_token.strip().encode(), token.encode()) for token in tokens)
