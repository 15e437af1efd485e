"""An event loop on a thread of its own, on which a blocking client runs its calls."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from mmesh.errors import FailedPrecondition
from mmesh.wire.transport import closed

Answer = TypeVar("Answer")
ENDING_S = 2.0
"""Seconds that calls have to end in once the client is closed; after them nobody waits any more."""


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[Answer]):
    """What work on the loop came to: an answer, or what would have ended the loop or its task."""

    answer: Answer | None = None
    error: BaseException | None = None

    def get(self) -> Answer:
        """Return the answer, or raise."""
        if self.error is not None:
            raise self.error
        return cast("Answer", self.answer)


async def _outcome_of(work: Coroutine[Any, Any, Answer]) -> _Outcome[Answer]:
    """Run work in which a source or callback of the caller's may raise SystemExit, for one."""
    try:
        return _Outcome(await work)
    except (KeyboardInterrupt, SystemExit) as error:
        return _Outcome(error=error)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return _Outcome(error=error)


class LoopThread:
    """An event loop on a thread of its own, in one process.

    Args:
        release: frees what the work used, on the loop, once none is left.
    """

    def __init__(self, release: Callable[[], Awaitable[None]]) -> None:
        self._process, self._release = os.getpid(), release
        self._loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        # No work comes after the stop. Re-entrant: a signal handler may close the client.
        self._lock, self._is_closed = threading.RLock(), False
        self._running: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._drive, name="mmesh", daemon=True)
        self._thread.start()

    def is_here(self) -> bool:
        """Tell whether this is still the process that it runs in, and not a fork."""
        return self._process == os.getpid()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run a coroutine to its end.

        Raises:
            FailedPrecondition: the thread was closed before that, or is the one that asks.
        """
        future = self._begin(work)
        try:
            return future.result().get()
        except CancelledError:
            if self._is_closed:
                raise closed() from None
            raise
        except BaseException:  # of a signal handler, such as KeyboardInterrupt: nobody waits longer
            future.cancel()
            raise
        finally:
            self._running.discard(future)

    def _begin(self, work: Coroutine[Any, Any, Answer]) -> Future[_Outcome[Answer]]:
        if threading.current_thread() is self._thread:  # which would wait for itself
            work.close()
            raise FailedPrecondition(
                "a callback of a client's own ingest, or an asynchronous source, called it; use "
                "another client there"
            )
        with self._lock:
            if self._is_closed:
                work.close()
                raise closed()
            running = _outcome_of(work)
            try:
                future = asyncio.run_coroutine_threadsafe(running, self._loop)
            except RuntimeError:  # a signal handler has closed the client, and so the loop
                running.close()
                work.close()
                raise closed() from None
            self._running.add(future)
            if self._is_closed:  # by a signal handler, maybe before the loop could take the work
                future.cancel()
            return future

    def close(self) -> None:
        """Cancel what runs and end the thread.

        What holds the thread itself, such as a callback that waits, is not waited for: the thread
        ends after it.
        """
        with self._lock:
            self._is_closed = True
        self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:  # else a callback of its own closes it
            self._thread.join(2 * ENDING_S)
            if self._running:
                threading.Thread(target=self._give_up, name="mmesh closing", daemon=True).start()

    def _give_up(self) -> None:
        """End the calls that the loop has left.

        On another thread: where a signal handler closes the client, its own may be about to wait
        for one of them, and would not be woken up.
        """
        for future in self._running.copy():
            future.cancel()

    def _drive(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._stop.wait()
        works = asyncio.all_tasks() - {asyncio.current_task()}
        for work in works:
            work.cancel()
        if works:
            await asyncio.wait(works, timeout=ENDING_S)
        await self._release()
