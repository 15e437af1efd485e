"""Channels do not share what they know of an address."""

from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mmesh.local.ports import free_port
from mmesh.wire.transport import open_channel


@asynccontextmanager
async def healthy_server(port: int):
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    yield
    await server.stop(None)


def check(channel):
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)


async def test_a_new_channel_does_not_wait_until_an_old_one_tries_again():
    port = free_port()
    async with open_channel(f"127.0.0.1:{port}") as old, open_channel(f"127.0.0.1:{port}") as new:
        async with healthy_server(port):
            await check(old)
        with pytest.raises(grpc.aio.AioRpcError):
            await check(old)
        async with healthy_server(port):
            await check(new)
