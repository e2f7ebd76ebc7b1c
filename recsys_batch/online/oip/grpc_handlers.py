"""Calls of the protocol over gRPC: tokens, messages read within bounds, and every error as a status with a sentence.

grpc_server.py puts the handlers into a server. All calls are of one message each way, but are taken as streams of messages, which look the
same on the wire: so what has not arrived is read here, and who never sends it keeps nobody out.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from recsys_batch.errors import InputMissing, RecsysBatchError, shorten
from recsys_batch.online import metrics
from recsys_batch.online.api.messages import BadRequest
from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.model_api import InvalidRequest, ModelUnknown
from recsys_batch.online.serving.admission import Overloaded
from recsys_batch.online.serving.unfinished_reads import UnfinishedRead, UnfinishedReads
from recsys_batch.online.settings import ADMIN_TOKEN

logger = logging.getLogger("recsys_batch.online")

MAX_UNFINISHED = 64
"""Calls of a process whose message is on its way: gRPC keeps what has come of each, up to the bound on a message."""
_MAX_DETAILS_LENGTH = 500
"""Characters; details travel percent-encoded in a header, and a client takes 8 KiB of headers."""


class _TooSlow(Exception):
    """A call's message did not arrive; says how long it was waited for, or that others wait."""


_STATUS = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    ModelUnknown: grpc.StatusCode.NOT_FOUND,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    InputMissing: grpc.StatusCode.NOT_FOUND,
    RecsysBatchError: grpc.StatusCode.FAILED_PRECONDITION,
    _TooSlow: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_OPEN_METHODS = ("ServerLive", "ServerReady")
"""Asked without a token, as /v2/health is."""
_CLIENT_METHODS = ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
_ADMIN_METHODS = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")


def make_handlers(servicer: Any, client_token: str | None, admin_token: str | None, read_seconds: float = 10.0) -> grpc.GenericRpcHandler:
    """Make the service's handlers; every error becomes a status with a sentence.

    Args:
        servicer: has a method for each of the service's: a parsed message in (of ModelInfer its bytes), an answer message out.
        client_token: what clients must send; None for nothing.
        admin_token: what the admin must send, and clients may; None where nobody is admin.
        read_seconds: in which the message of a call has to arrive.
    """
    reads = UnfinishedReads("message", read_seconds, MAX_UNFINISHED, float("inf"))
    accepted = {
        **dict.fromkeys(_OPEN_METHODS),
        **dict.fromkeys(_CLIENT_METHODS, [token for token in (client_token, admin_token) if token] if client_token else None),
        **dict.fromkeys(_ADMIN_METHODS, [admin_token] if admin_token else []),
    }
    methods = {
        name: grpc.stream_unary_rpc_method_handler(
            _guard(name, getattr(servicer, name), tokens, reads),
            response_serializer=getattr(messages, f"{name}Response").SerializeToString,
        )
        for name, tokens in accepted.items()
    }
    return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)


def _guard(name: str, method: Callable[[Any], Any], tokens: list[str] | None, reads: UnfinishedReads) -> Callable[[Any, Any], Any]:
    """Wrap a method of the service.

    Args:
        tokens: one of which is needed; None where everybody may, empty where nobody may.
    """
    parse: Callable[[bytes], Any] = bytes if name == "ModelInfer" else getattr(messages, f"{name}Request").FromString

    async def call(incoming: AsyncIterator[bytes], context: Any) -> Any:
        if tokens == []:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, f"this server was started without an admin token ({ADMIN_TOKEN})")
        if tokens is not None and not _has_token(tokens, dict(context.invocation_metadata() or ())):
            whose = "admin's" if name in _ADMIN_METHODS else "client's"
            await refuse(
                context, grpc.StatusCode.UNAUTHENTICATED, f"this needs the {whose} token as metadata `authorization: Bearer TOKEN`"
            )
        try:
            answer = await method(parse(await _read_message(incoming, reads)))
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
        return answer

    async def refuse(context: Any, code: grpc.StatusCode, message: str) -> NoReturn:
        metrics.tally.add("grpc_requests", name, code.name)
        await context.abort(code, shorten(message, _MAX_DETAILS_LENGTH))
        raise AssertionError("abort raises")

    return call


async def _read_message(incoming: AsyncIterator[bytes], reads: UnfinishedReads) -> bytes:
    """Read a call's message. Raises _TooSlow: it did not arrive; InvalidRequest: the call ended without one."""
    task = asyncio.current_task()
    assert task is not None
    read = UnfinishedRead(time.perf_counter(), 0, task)
    reads.add(read)
    try:
        return await anext(incoming)
    except StopAsyncIteration:
        raise InvalidRequest("the call has no message") from None
    except asyncio.CancelledError:
        if not read.refusal:
            raise
        task.uncancel()
        raise _TooSlow(read.refusal) from None
    finally:
        reads.remove(read)


def _has_token(tokens: list[str], metadata: Mapping[str, Any]) -> bool:
    scheme, _, sent_token = str(metadata.get("authorization", "")).partition(" ")
    return scheme.lower() == "bearer" and any(hmac.compare_digest(sent_token.strip().encode(), token.encode()) for token in tokens)
