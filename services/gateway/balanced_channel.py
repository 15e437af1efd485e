"""Client-side load balancing: a channel to all addresses of a name, which follows the DNS.

gRPC itself looks a name up again only when a connection breaks: what an autoscaler adds would stand
idle. Here the name is looked up all the time, and a change opens a channel to the new addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import grpc

from mmesh.serving.supervision import Supervised
from mmesh.wire.encoding import taking_bytes
from mmesh.wire.transport import open_channel
from services.gateway.addresses import AddressBook

logger = logging.getLogger(__name__)

Stub = TypeVar("Stub")
LOOK_S = 1.0
"""Seconds between looks for new addresses; the DNS is asked less often (`AddressBook`)."""
CONNECT_S = 2.0
"""Longest time for which calls stay on the old channel while the new one connects."""
LINGER_S = 60.0
"""Seconds for which calls on the old channel may go on."""


class BalancedChannel(Generic[Stub]):
    """A stub whose calls go to all addresses of a target in turn (round robin).

    Args:
        target: host:port, any target of gRPC, or dns:///name:port, which is followed once started.
        stub: makes the stub of a channel; its calls take messages or encodings of such.
    """

    def __init__(self, target: str, stub: Callable[[grpc.aio.Channel], Stub]) -> None:
        self._make_stub = stub
        self._book = AddressBook([target])
        self._addresses: Sequence[str] = ()
        self._closing: set[asyncio.Task[None]] = set()
        self._follower = Supervised("load balancing", self._keep_following)
        self._follows = target.startswith("dns:///")
        self._use(open_channel(target))

    def _use(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.stub = self._make_stub(taking_bytes(channel))

    def start(self) -> None:
        """Follow the name."""
        if self._follows:
            self._follower.start()

    async def close(self) -> None:
        """End the following and close all channels."""
        await self._follower.aclose()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._channel.close()

    async def _keep_following(self) -> None:
        while True:
            addresses = await self._book.look()
            if addresses and addresses != self._addresses:
                await self._switch(addresses)
            self._follower.progress()
            await asyncio.sleep(LOOK_S)

    async def _switch(self, addresses: Sequence[str]) -> None:
        """Let new calls go to these addresses; those that are under way end where they are."""
        channel = open_channel(_target_of(addresses))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    await channel.channel_ready()
        except BaseException:
            await channel.close()
            raise
        old = self._channel
        self._use(channel)
        self._addresses = addresses
        logger.info("addresses", extra={"addresses": list(addresses)})
        closing = asyncio.create_task(old.close(LINGER_S))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _target_of(addresses: Sequence[str]) -> str:
    """Return the gRPC target of addresses, which are all of one family."""
    return f"{'ipv6' if addresses[0].startswith('[') else 'ipv4'}:{','.join(addresses)}"
