"""Which shard holds which candidate: 256 slots, dealt to the shards in ranges."""

from __future__ import annotations

import hashlib

SLOTS = 256


def slot_of(candidate_id: str) -> int:
    """Return the slot, 0..255, of a candidate: the first byte of the SHA-256 of its id."""
    return hashlib.sha256(candidate_id.encode()).digest()[0]


def slots_of(shard: int, shard_count: int) -> range:
    """Return the slots of a shard: those with `slot * shard_count // 256 == shard`."""
    first = -(-shard * SLOTS // shard_count)
    end = -(-(shard + 1) * SLOTS // shard_count)
    return range(first, end)
