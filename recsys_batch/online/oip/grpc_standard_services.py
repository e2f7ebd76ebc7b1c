"""The services that tools expect of any gRPC server: health (grpc.health.v1) and reflection (grpc.reflection.v1alpha).

grpc_server.py adds them beside the protocol's own. Both are asked without a token, as /readyz and /openapi.json are. The packages' own
functions that add them to a server are not used: they register methods, and grpc.aio then waits for each method anew with every call.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from recsys_batch.errors import InputMissing, quote
from recsys_batch.online.oip import grpc_predict_v2_pb2 as messages
from recsys_batch.online.oip.grpc_calls import MessageReader, guard
from recsys_batch.online.oip.grpc_handlers import ADMIN_METHODS, CLIENT_METHODS, OPEN_METHODS, SERVICE
from recsys_batch.online.serving.admission import Admission

MAX_WATCHES = 64
"""Calls of Watch that a process keeps open."""
_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class ReadinessHealth(health.aio.HealthServicer):  # type: ignore[misc]
    """Answers for the server ("") and the protocol's service: SERVING while models are ready, as /readyz, and the server is not ending.

    Args:
        is_ready: whether models answer.
    """

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        super().__init__()
        self._is_ready, self._watches = is_ready, Admission(MAX_WATCHES)
        self._server_status = dict.fromkeys((health.OVERALL_HEALTH, SERVICE), _NOT_SERVING)

    async def update(self) -> None:
        """Look whether models are ready, and tell who watches."""
        status = _SERVING if self._is_ready() else _NOT_SERVING
        for service in (health.OVERALL_HEALTH, SERVICE):
            if self._server_status[service] != status:
                await self.set(service, status)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputMissing: there is no such service."""
        if request.service not in self._server_status:
            raise InputMissing(f"there is no service {quote(request.service)}; there are {SERVICE}, and '' for the server")
        await self.update()
        return await super().Check(request, context)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Raises Overloaded: too many watch."""
        with self._watches.hold(1, "watches"):
            await self.update()
            await super().Watch(request, context)


def make_health_handlers(servicer: ReadinessHealth, reader: MessageReader) -> grpc.GenericRpcHandler:
    """Make the handlers of grpc.health.v1.Health."""
    parse, encode = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString

    async def check(context: Any) -> Any:
        return await servicer.Check(parse(await reader.read_only(context)), context)

    async def watch(context: Any) -> None:
        await servicer.Watch(parse(await reader.read_only(context)), context)

    handlers = {
        "Check": grpc.stream_unary_rpc_method_handler(guard("Check", check), response_serializer=encode),
        "Watch": grpc.stream_stream_rpc_method_handler(guard("Watch", watch), response_serializer=encode),
    }
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers)


def make_reflection_handlers(reader: MessageReader) -> grpc.GenericRpcHandler:
    """Make the handlers of grpc.reflection.v1alpha.ServerReflection; a call that asks nothing for a while gives way as any other."""
    servicer = ReflectionServicer((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), make_service_pool())

    async def reflect(context: Any) -> None:
        async def requests() -> AsyncIterator[Any]:
            while (raw := await reader.read(context)) is not None:
                yield reflection_pb2.ServerReflectionRequest.FromString(raw)

        async for answer in servicer.ServerReflectionInfo(requests(), context):
            await context.write(answer)

    name = "ServerReflectionInfo"
    encode = reflection_pb2.ServerReflectionResponse.SerializeToString
    handlers = {name: grpc.stream_stream_rpc_method_handler(guard(name, reflect), response_serializer=encode)}
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, handlers)


def make_service_pool() -> DescriptorPool:
    """Describe the services in a pool of their own.

    Our messages have a package of their own in this process (decision 0201); here they have the protocol's, as clients know them.
    """
    pool, file = DescriptorPool(), FileDescriptorProto()
    messages.DESCRIPTOR.CopyToProto(file)
    ours, file.package = f".{file.package}.", SERVICE.rpartition(".")[0]
    for message in file.message_type:
        _move_types(message, ours, f".{file.package}.")
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for name in (*OPEN_METHODS, *CLIENT_METHODS, *ADMIN_METHODS):
        service.method.add(name=name, input_type=f".{file.package}.{name}Request", output_type=f".{file.package}.{name}Response")
    pool.AddSerializedFile(file.SerializeToString())
    for standard in (health_pb2, reflection_pb2):
        pool.AddSerializedFile(standard.DESCRIPTOR.serialized_pb)
    return pool


def _move_types(message: DescriptorProto, package: str, new_package: str) -> None:
    """Have the fields of a message name types of the new package for those of the old one."""
    for field in message.field:
        if field.type_name.startswith(package):
            field.type_name = new_package + field.type_name.removeprefix(package)
    for nested in message.nested_type:
        _move_types(nested, package, new_package)
