"""Health and reflection over gRPC, by the clients that their packages bring."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from recsys_batch.online.oip import grpc_standard_services
from recsys_batch.online.oip.grpc_calls import MAX_UNFINISHED
from recsys_batch.online.oip.grpc_handlers import ADMIN_METHODS, CLIENT_METHODS, OPEN_METHODS, SERVICE
from recsys_batch.online.oip.grpc_server import make_server
from recsys_batch.online.oip.grpc_standard_services import ReadinessHealth

SERVING, NOT_SERVING, UNKNOWN = (getattr(health_pb2.HealthCheckResponse, name) for name in ("SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"))
NO_SERVICER: Any = type("", (), {name: None for name in (*OPEN_METHODS, *CLIENT_METHODS, *ADMIN_METHODS)})()


class Server:
    """A server whose models are ready when a test says so."""

    is_ready = True

    def __init__(self) -> None:
        self.health = ReadinessHealth(lambda: self.is_ready)


@asynccontextmanager
async def connected(read_seconds: float = 60.0) -> AsyncIterator[tuple[Server, grpc.aio.Channel, int]]:
    state = Server()
    server = make_server(NO_SERVICER, state.health, read_seconds)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield state, channel, port
    await server.stop(None)


def asked(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


def test_health_is_serving_while_models_are_ready_and_not_once_the_server_is_ending() -> None:
    async def ask() -> None:
        async with connected() as (state, channel, _):
            check = health_pb2_grpc.HealthStub(channel).Check
            for service in ("", SERVICE):
                state.is_ready = False
                assert (await check(asked(service))).status == NOT_SERVING
                state.is_ready = True
                assert (await check(asked(service))).status == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await check(asked("other"))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND and "there is no service 'other'" in str(refused.value.details())
            await state.health.enter_graceful_shutdown()
            assert [(await check(asked(service))).status for service in ("", SERVICE)] == [NOT_SERVING] * 2

    asyncio.run(ask())


def test_who_watches_is_told_of_every_change() -> None:
    async def ask() -> None:
        async with connected() as (state, channel, _):
            watching = health_pb2_grpc.HealthStub(channel).Watch(asked(SERVICE))
            assert (await watching.read()).status == SERVING
            state.is_ready = False
            await state.health.update()
            assert (await watching.read()).status == NOT_SERVING
            state.is_ready = True
            await state.health.update()
            assert (await watching.read()).status == SERVING
            await state.health.enter_graceful_shutdown()
            assert (await watching.read()).status == NOT_SERVING
            unknown = health_pb2_grpc.HealthStub(channel).Watch(asked("other"))
            assert (await unknown.read()).status == UNKNOWN

    asyncio.run(ask())


def test_watches_are_bounded_and_one_that_ends_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_standard_services, "MAX_WATCHES", 2)

    async def ask() -> None:
        async with connected() as (_, channel, _port):
            watch = health_pb2_grpc.HealthStub(channel).Watch
            first, second = watch(asked("")), watch(asked(""))
            assert [(await one.read()).status for one in (first, second)] == [SERVING] * 2
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await watch(asked("")).read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            first.cancel()
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert (await watch(asked("")).read()).status == SERVING
                    except grpc.aio.AioRpcError:
                        continue
                    break

    asyncio.run(ask())


def test_checks_whose_message_never_comes_keep_nobody_out() -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def ask() -> None:
        async with connected() as (_, channel, _port):
            slow = [channel.stream_unary("/grpc.health.v1.Health/Check")(never()) for _ in range(2 * MAX_UNFINISHED)]
            assert (await health_pb2_grpc.HealthStub(channel).Check(asked(""))).status == SERVING
            async with asyncio.timeout(20):
                while sum(call.done() for call in slow) < MAX_UNFINISHED:
                    await asyncio.sleep(0.001)
            for call in slow:
                call.cancel()

    asyncio.run(ask())


def test_reflection_names_the_services_and_describes_their_methods() -> None:
    def look(port: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            services = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", SERVICE]
            assert sorted(database.get_services()) == services
            pool = DescriptorPool(database)
            method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelInfer")
            assert (method.input_type.full_name, method.output_type.full_name) == (
                "inference.ModelInferRequest",
                "inference.ModelInferResponse",
            )
            tensor = method.input_type.fields_by_name["inputs"].message_type
            assert tensor.full_name == "inference.ModelInferRequest.InferInputTensor" and "datatype" in tensor.fields_by_name
            names = {one.name for one in pool.FindServiceByName(SERVICE).methods}
            assert names == {*OPEN_METHODS, *CLIENT_METHODS, *ADMIN_METHODS}
            assert pool.FindServiceByName("grpc.health.v1.Health").FindMethodByName("Watch")

    async def ask() -> None:
        async with connected() as (_, _channel, port):
            await asyncio.to_thread(look, port)

    asyncio.run(ask())


def test_a_call_of_reflection_that_asks_nothing_ends() -> None:
    async def ask() -> None:
        async with connected(read_seconds=0.05) as (_, channel, _port):
            call = ServerReflectionStub(channel).ServerReflectionInfo()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async with asyncio.timeout(20):
                    await call.read()
            assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(ask())
