"""Handlers of the protocol's service over gRPC: who may call which method, and how its messages are parsed.

grpc_server.py puts them into a server.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.grpc_calls import MessageReader, guard

SERVICE = "inference.GRPCInferenceService"
OPEN_METHODS = ("ServerLive", "ServerReady")
"""Asked without a token, as /v2/health is."""
CLIENT_METHODS = ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
ADMIN_METHODS = ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")


def make_handlers(servicer: Any, client_token: str | None, admin_token: str | None, reader: MessageReader) -> grpc.GenericRpcHandler:
    """Make the service's handlers; every error becomes a status with a sentence.

    Args:
        servicer: has a method for each of the service's: a parsed message in, an answer message out. ModelInfer's takes the message's bytes
            and the call's deadline (time.perf_counter(), None for none), and returns bytes.
        client_token: what clients must send; None for nothing.
        admin_token: what the admin must send, and clients may; None where nobody is admin.
    """
    accepted = {
        **dict.fromkeys(OPEN_METHODS),
        **dict.fromkeys(CLIENT_METHODS, [token for token in (client_token, admin_token) if token] if client_token else None),
        **dict.fromkeys(ADMIN_METHODS, [admin_token] if admin_token else []),
    }
    handlers = {}
    for name, tokens in accepted.items():
        is_infer = name == "ModelInfer"
        answer = _answer_infer(servicer, reader) if is_infer else _answer(name, getattr(servicer, name), reader)
        handlers[name] = grpc.stream_unary_rpc_method_handler(
            guard(name, answer, tokens, "admin" if name in ADMIN_METHODS else "client"),
            response_serializer=None if is_infer else getattr(messages, f"{name}Response").SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _answer(name: str, method: Callable[[Any], Awaitable[Any]], reader: MessageReader) -> Callable[[Any], Awaitable[Any]]:
    parse = getattr(messages, f"{name}Request").FromString

    async def answer(context: Any) -> Any:
        return await method(parse(await reader.read_only(context)))

    return answer


def _answer_infer(servicer: Any, reader: MessageReader) -> Callable[[Any], Awaitable[bytes]]:
    async def answer(context: Any) -> bytes:
        raw = await reader.read_only(context)
        seconds = context.time_remaining()
        encoded: bytes = await servicer.ModelInfer(raw, None if seconds is None else time.perf_counter() + seconds)
        return encoded

    return answer
