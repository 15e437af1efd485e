"""Index processes, asked one by one: what they hold, and work that they do when told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
import grpc

from mmesh import wire
from mmesh.api.index.v1 import (
    collection_service_pb2,
    collection_service_pb2_grpc,
    index_pb2,
    index_pb2_grpc,
)
from mmesh.errors import MmeshError
from mmesh.wire.errors import error_of
from mmesh.wire.transport import open_channel

Answer = TypeVar("Answer")
LOOK_S, WORK_S = 10.0, 3600.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of what a shard holds of one modality of one collection."""

    collection: str
    modality: str
    index_factory: str
    rows: int
    deleted: int
    bytes: int
    recall: float
    nprobe: int
    build_seconds: float


@dataclass(frozen=True, slots=True)
class Shard:
    """What one process says of itself."""

    shard: int
    shard_count: int
    replica: str
    ready: bool
    candidates: int
    lag: int
    segments: tuple[Segment, ...]
    memory: dict[str, int]
    refused_collections: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that one process stored."""

    number: int
    token: str


def find_addresses(data: Path, given: Sequence[str]) -> dict[str, str]:
    """Return addresses of index processes by name: those given, else those of a local mesh.

    Raises:
        click.ClickException: none are given, and no mesh was started on the folder.
    """
    if given:
        return {address: address for address in given}
    path = data / "mesh.json"
    try:
        services = json.loads(path.read_text())["services"]
    except (OSError, ValueError, KeyError):
        raise click.ClickException(
            f"{path} does not say where the index is: give --data of a mesh that `mmesh up` "
            "started, or --index-address"
        ) from None
    return {n: one["address"] for n, one in services.items() if n.startswith("index-")}


def ask_all(
    addresses: dict[str, str], ask: Callable[[grpc.aio.Channel], Awaitable[Answer]]
) -> dict[str, Answer | MmeshError]:
    """Ask every process at once; return the answer or the error of each by its name."""

    async def ask_one(address: str) -> Answer | MmeshError:
        channel = open_channel(address)
        try:
            return await ask(channel)
        except grpc.aio.AioRpcError as failure:
            return error_of(failure)
        finally:
            await channel.close()

    async def run() -> list[Answer | MmeshError]:
        return await asyncio.gather(*map(ask_one, addresses.values()))

    return dict(zip(addresses, asyncio.run(run()), strict=True))


async def get_shard(channel: grpc.aio.Channel) -> Shard:
    """Ask a process what it holds."""
    stub = index_pb2_grpc.IndexServiceStub(channel)
    reply = await stub.GetShard(index_pb2.GetShardRequest(), timeout=LOOK_S)
    return Shard(
        reply.shard,
        reply.shard_count,
        reply.replica,
        reply.ready,
        reply.candidates,
        reply.lag,
        tuple(map(_segment, reply.segments)),
        {part.name: part.bytes for part in reply.memory},
        tuple(reply.refused_collections),
    )


def compact(collection: str) -> Callable[[grpc.aio.Channel], Awaitable[tuple[Segment, ...]]]:
    """Let a process merge what it holds of a collection; it answers with its segments."""

    async def ask(channel: grpc.aio.Channel) -> tuple[Segment, ...]:
        stub = index_pb2_grpc.IndexServiceStub(channel)
        request = index_pb2.CompactRequest(collection=collection)
        reply = await stub.Compact(request, timeout=WORK_S)
        return tuple(map(_segment, reply.segments))

    return ask


def create_snapshot(collection: str) -> Callable[[grpc.aio.Channel], Awaitable[Snapshot]]:
    """Let a process store a snapshot of a collection."""

    async def ask(channel: grpc.aio.Channel) -> Snapshot:
        stub = index_pb2_grpc.IndexServiceStub(channel)
        request = index_pb2.CreateSnapshotRequest(collection=collection)
        reply = await stub.CreateSnapshot(request, timeout=WORK_S)
        return Snapshot(reply.number, reply.token)

    return ask


def get_name(name_or_alias: str) -> Callable[[grpc.aio.Channel], Awaitable[str]]:
    """Ask a process for the name of a collection that may be given by an alias."""

    async def ask(channel: grpc.aio.Channel) -> str:
        stub = collection_service_pb2_grpc.CollectionServiceStub(channel)
        request = collection_service_pb2.GetCollectionRequest(name=name_or_alias)
        return (await stub.GetCollection(request, timeout=LOOK_S)).collection.name

    return ask


def _segment(message: index_pb2.Segment) -> Segment:
    modality = wire.modality_from_pb(message.modality)
    return Segment(
        message.collection,
        modality.value if modality else "",
        message.index_factory,
        message.rows,
        message.deleted,
        message.bytes,
        message.recall,
        message.nprobe,
        message.build_seconds,
    )
