"""The start of an index process: the log as soon as it can be had, then all that works on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from mmesh.errors import DataLoss, LogUnavailable, MmeshError
from services.index import metrics
from services.index.config import IndexSettings
from services.index.log.committer import Committer
from services.index.log.log import Log
from services.index.slots import slots_of
from services.index.store.blobs import ContentBlobs
from services.index.store.garbage import Garbage
from services.index.store.objects import open_objects
from services.index.store.snapshot import Snapshots
from services.index.upkeep.maintainer import Maintainer
from services.index.upkeep.restorer import Restorer
from services.index.upkeep.scratch import Scratch
from services.index.view.follower import Follower
from services.index.view.memory import MemoryBudget
from services.index.view.searcher import Searcher

logger = logging.getLogger(__name__)

PAUSE_S = 1.0
"""Between attempts to reach the log."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine is made of once the log was reached."""

    log: Log
    blobs: ContentBlobs
    follower: Follower
    searcher: Searcher
    maintainer: Maintainer
    committer: Committer


async def open_parts(
    settings: IndexSettings, stack: AsyncExitStack, waiting: Callable[[MmeshError], None]
) -> Parts:
    """Return the parts, not entered yet; the stack closes log and scratch folder.

    `waiting` is told why it takes longer.
    """
    log = await _open_log(settings, waiting)
    stack.callback(log.close)
    scratch = await _open_scratch(settings.scratch_dir, stack)
    return await _make_parts(settings, log, scratch)


async def _open_log(settings: IndexSettings, waiting: Callable[[MmeshError], None]) -> Log:
    """Return the log; wait for its database, or for a sound copy of it, as long as it takes.

    Whoever ended instead would be started again and again.
    """
    while True:
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            return await asyncio.to_thread(Log, settings.url)
        except (LogUnavailable, DataLoss) as error:
            waiting(error)
            if isinstance(error, DataLoss):
                metrics.damaged_total.labels("log").inc()
            about = {"error": error.message, "cause": str(error.__cause__)}
            logger.warning("waiting for the log", extra=about)
            await asyncio.sleep(PAUSE_S)


async def _open_scratch(folder: Path | None, stack: AsyncExitStack) -> Scratch:
    """Return a folder that goes with the stack, also if the wait for it is cancelled."""
    opening = asyncio.ensure_future(asyncio.to_thread(Scratch, folder))
    try:
        scratch = await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait([opening])
        if opening.exception() is None:
            await asyncio.to_thread(opening.result().close)
        raise
    stack.push_async_callback(asyncio.to_thread, scratch.close)
    return scratch


async def _make_parts(settings: IndexSettings, log: Log, scratch: Scratch) -> Parts:
    objects = await asyncio.to_thread(open_objects, settings.blobs)
    snapshots = Snapshots(objects, keep=settings.snapshots_kept)
    slots, rows = slots_of(settings.shard, settings.shard_count), settings.seal_rows
    restorer = Restorer(
        snapshots,
        scratch,
        slots,
        delta_rows=rows,
        device=settings.search_device,
        holds=log.holds,
    )
    follower = Follower(
        log,
        slots,
        delta_rows=rows,
        poll_s=settings.poll_s,
        budget=MemoryBudget.of(settings.memory_limit_bytes),
        source=restorer,
    )
    searcher = Searcher(settings.search_threads, settings.max_waiting_searches, settings.inline_s)
    garbage = Garbage(objects, settings.gc_grace_s)
    return Parts(
        log=log,
        blobs=ContentBlobs(objects),
        follower=follower,
        searcher=searcher,
        maintainer=Maintainer(settings, log, follower, searcher, snapshots, scratch, garbage),
        committer=Committer(log, settings.max_waiting_writes),
    )
