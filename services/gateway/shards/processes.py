"""The index processes as an operator sees them: a name and a sentence for each."""

from __future__ import annotations

from collections import Counter

from mmesh.mesh_status import ServiceStatus
from services.gateway.shards.replica import Replica
from services.gateway.shards.topology import Topology


def describe(topology: Topology) -> list[ServiceStatus]:
    """Return the state of every process, and of the shards in use that no process holds.

    The first replica of shard 1 is "index-1" if its set is in use, or else "index-1-of-3", the next
    one "index-1-r1". A process that has never answered goes by its address.
    """
    in_use = topology.current.shard_count
    found: list[ServiceStatus] = []
    numbers: Counter[tuple[int, int]] = Counter()
    for replica in topology.replicas:
        name = f"index-{replica.address}"
        if replica.place is not None:
            name = _name(replica.place, numbers[replica.place], in_use)
            numbers[replica.place] += 1
        found.append(ServiceStatus(name, replica.is_usable, _sentence(replica)))
    for shard in range(in_use):
        if not numbers[shard, in_use]:
            detail = f"no process is known that holds shard {shard} of {in_use}"
            found.append(ServiceStatus(_name((shard, in_use), 0, in_use), False, detail))
    return found


def _name(place: tuple[int, int], number: int, in_use: int) -> str:
    shard, shard_count = place
    name = f"index-{shard}" if shard_count == in_use else f"index-{shard}-of-{shard_count}"
    return f"{name}-r{number}" if number else name


def _sentence(replica: Replica) -> str:
    facts = replica.facts
    if replica.error is not None:
        place = f"; it held shard {facts.shard} of {facts.shard_count}" if facts else ""
        return f"{replica.error.message}{place}"
    assert facts is not None
    state = "" if facts.ready else "loading, "
    return (
        f"{state}{facts.candidates} candidates, {facts.lag} writes behind, "
        f"shard {facts.shard} of {facts.shard_count}, replica {facts.replica}"
    )
