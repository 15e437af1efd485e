"""Large requests under way share a bounded memory; small ones always find room."""

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.message import DecodeError

from mmesh.api.content.v1 import content_pb2
from mmesh.errors import Overloaded
from mmesh.serving.handlers import Guarded, Handler
from mmesh.serving.request_room import SMALL_BYTES, RequestRoom
from mmesh.wire.errors import error_of
from tests.effort import patient

SERVICE = "test.Holder"
LARGE = 4 * SMALL_BYTES


def test_what_finds_nothing_held_is_let_in_whatever_its_size():
    room = RequestRoom(LARGE)
    with room.of(10 * LARGE), pytest.raises(Overloaded, match="are under way"), room.of(LARGE):
        pass
    with room.of(LARGE), room.of(SMALL_BYTES):
        pass


def test_room_comes_back_whatever_a_call_ends_with():
    room = RequestRoom(LARGE)
    for _ in range(3):
        with pytest.raises(RuntimeError), room.of(LARGE):
            raise RuntimeError


def test_room_comes_back_where_nobody_began_what_it_was_for():
    room = RequestRoom(LARGE)
    room.of(LARGE)
    with room.of(LARGE):
        pass
    assert room.held_bytes == 0


class Blob:
    """What a message is parsed to; the last one that was is known while it is kept."""

    parsed = 0
    last = staticmethod(lambda: None)

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"bad"):
            raise DecodeError
        self.data = data
        Blob.parsed += 1
        Blob.last = weakref.ref(self)


@asynccontextmanager
async def serving(room: RequestRoom, **methods: Handler) -> AsyncIterator[grpc.aio.Channel]:
    """Serve methods from bytes to bytes with a room."""
    server = grpc.aio.server()
    Guarded(server, room).add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, methods)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(patient(5)):
        while not holds():  # noqa: ASYNC110  # nothing tells but looking
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("streams", [False, True])
async def test_what_finds_no_room_is_not_parsed(streams):
    free, room = asyncio.Event(), RequestRoom(LARGE + SMALL_BYTES)

    async def one(request: Blob, _: object) -> bytes:
        await free.wait()
        return b"done"

    async def many(request: Blob, _: object) -> AsyncIterator[bytes]:
        yield await one(request, _)

    make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
    async with serving(room, Hold=make(many if streams else one, Blob)) as channel:
        ways = {False: channel.unary_unary, True: channel.unary_stream}
        hold = ways[streams](f"/{SERVICE}/Hold")

        async def call(data: bytes) -> object:
            return [answer async for answer in hold(data)] if streams else await hold(data)

        before = Blob.parsed
        held = asyncio.create_task(call(bytes(LARGE)))
        await until(lambda: Blob.parsed > before)
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError, match="are under way"):
                await call(bytes(LARGE))
        assert Blob.parsed == before + 1
        held.cancel()
        await until(lambda: not room.held_bytes)
        free.set()
        with pytest.raises(grpc.aio.AioRpcError, match="not valid protobuf"):
            await call(bytes(LARGE) + b"bad")
        await call(bytes(LARGE))
        await until(lambda: not room.held_bytes)


async def test_a_stream_keeps_no_message_that_its_behaviour_does_not():
    async def behaviour(requests: AsyncIterator[Blob], _: object) -> AsyncIterator[bytes]:
        async for request in requests:
            del request
            yield b"done"

    handler = grpc.stream_stream_rpc_method_handler(behaviour, Blob)
    async with serving(RequestRoom(LARGE), Say=handler) as channel:
        call = channel.stream_stream(f"/{SERVICE}/Say")()
        await call.write(bytes(LARGE))
        await call.read()
        await until(lambda: Blob.last() is None)


async def test_calls_that_hang_do_not_fill_the_memory():
    """Forty of them would, of a few megabytes each, while an encoder hangs."""
    free = asyncio.Event()

    async def behaviour(request: content_pb2.Part, _: object) -> content_pb2.Part:
        await free.wait()
        return content_pb2.Part(text="done")

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        behaviour, content_pb2.Part.FromString, content_pb2.Part.SerializeToString
    )
    Guarded(server, RequestRoom(3 * LARGE + SMALL_BYTES)).add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {"Hold": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        hold = channel.unary_unary(
            f"/{SERVICE}/Hold", content_pb2.Part.SerializeToString, content_pb2.Part.FromString
        )
        large = [hold(content_pb2.Part(text="x" * LARGE)) for _ in range(8)]
        small = [hold(content_pb2.Part(text="x")) for _ in range(4)]
        async with asyncio.timeout(patient(5)):
            while sum(call.done() for call in large) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        free.set()
        outcomes = await asyncio.gather(*large, *small, return_exceptions=True)
    await server.stop(0)
    failed = [one for one in outcomes if isinstance(one, grpc.aio.AioRpcError)]
    assert len(failed) == 5
    assert all(isinstance(error_of(one), Overloaded) for one in failed)
