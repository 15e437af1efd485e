"""Index processes, asked one by one: what they hold, and work that they do when told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
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

    async def run() -> list[Answer | MmeshError]:
        return await asyncio.gather(*(_ask_one(one, ask) for one in addresses.values()))

    return dict(zip(addresses, asyncio.run(run()), strict=True))


def ask_a_replica_of_each(
    addresses: dict[str, str], ask: Callable[[grpc.aio.Channel], Awaitable[Answer]]
) -> tuple[dict[str, Answer | MmeshError], bool]:
    """Ask one replica of each shard, all shards at once, and the next one only if it fails.

    Returns the answer or the error of each process that was asked, and whether each shard answered.
    """
    looked = ask_all(addresses, get_shard)
    answers: dict[str, Answer | MmeshError] = {
        name: error for name, error in looked.items() if isinstance(error, MmeshError)
    }
    found = {name: one for name, one in looked.items() if not isinstance(one, MmeshError)}
    by_shard = _by_shard(found)

    async def ask_in_turn(names: Sequence[str]) -> bool:
        for name in names:
            answers[name] = answer = await _ask_one(addresses[name], ask)
            if not isinstance(answer, MmeshError):
                return True
        return False

    async def run() -> list[bool]:
        return await asyncio.gather(*map(ask_in_turn, by_shard.values()))

    have_answered = bool(found) and all(asyncio.run(run()))
    unknown = len(found) < len(looked) and not _are_whole(by_shard)
    asked = {name: answers[name] for name in addresses if name in answers}
    return asked, have_answered and not unknown


def _by_shard(found: dict[str, Shard]) -> dict[tuple[int, int], list[str]]:
    """Return the processes of each shard and number of shards, those that know most first."""
    by_shard: dict[tuple[int, int], list[str]] = {}
    for name, one in sorted(found.items(), key=lambda pair: (not pair[1].ready, pair[1].lag)):
        by_shard.setdefault((one.shard_count, one.shard), []).append(name)
    return by_shard


def _are_whole(by_shard: Iterable[tuple[int, int]]) -> bool:
    """Tell whether every shard is there, so that a process without answer is one's replica."""
    there = set(by_shard)
    counts = {count for count, _ in there}
    return there == {(count, shard) for count in counts for shard in range(count)}


async def _ask_one(
    address: str, ask: Callable[[grpc.aio.Channel], Awaitable[Answer]]
) -> Answer | MmeshError:
    channel = open_channel(address)
    try:
        return await ask(channel)
    except grpc.aio.AioRpcError as failure:
        return error_of(failure)
    finally:
        await channel.close()


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
