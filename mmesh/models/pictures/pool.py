"""A pool of decoder processes, each with limits; one that takes too much is ended and replaced.

Whoever waits for a picture may go away: then the process that decodes it is ended, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from subprocess import PIPE
from types import TracebackType
from typing import IO, Any, Self

from PIL import Image

from mmesh.errors import DeadlineExceeded, Draining, MmeshError, Overloaded
from mmesh.models import orphans
from mmesh.models.pictures import BrokenPicture
from mmesh.models.pictures.containers import Container

MEMORY_BYTES = 3 << 29
"""Address space of a process, 1.5 GiB; the dearest picture that is allowed, a WebP of 50
megapixels, takes 0.8 GB."""
CPU_S = 10.0
"""CPU time for one picture; the dearest that is allowed takes about 3."""
WALL_S = 60.0
NICE = 10
"""How much lower the priority of the processes is: what many wait for is cheap, and done here."""
LOOK_S = 0.05
"""Between looks whether the pixels are still wanted."""
_BLAMING_SIGNALS = frozenset(
    (
        signal.SIGXCPU,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,
        signal.SIGFPE,
        signal.SIGILL,
    )
)
"""Those of a decoder that met its limit, or a defect; others, as SIGKILL, come from outside."""
Wanted = Callable[[], bool]


class DecoderPool:
    """Decodes in processes of its own; for any number of threads."""

    def __init__(
        self, processes: int = 1, *, memory_bytes: int = MEMORY_BYTES, cpu_s: float = CPU_S
    ) -> None:
        """Take how many may work at a time; each starts when it is needed."""
        self._arguments = (str(memory_bytes), str(cpu_s))
        self._cpu_s = cpu_s
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(processes):
            self._free.put(None)
        self._all: set[_Process] = set()
        self._lock, self._is_closed = threading.Lock(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, at work or not."""
        with self._lock:
            self._is_closed = True
            processes, self._all = self._all, set()
        for process in processes:
            process.end()

    def decode(
        self, container: Container, *, bare: bool, wanted: Wanted, again: bool = True
    ) -> Image.Image:
        """Return the pixels of a picture; waits for a process to be free.

        Where a process ends for another reason than the picture, it is tried `again` in a new one.

        Raises:
            BrokenPicture: it cannot be decoded, or takes too much time or memory.
            DeadlineExceeded: it is not wanted any more.
            Overloaded: there is too little memory or CPU time for a process.
            Draining: the pool is closed.
        """
        process = self._taken(wanted)
        try:
            process = process or self._started()
            return process.decode(container, bare, wanted)
        except _Ended as ended:
            if ended.by_picture:
                raise BrokenPicture(ended.problem(container.kind, self._cpu_s)) from None
            if self._is_closed or not again:
                raise self._ended_from_outside() from None
        finally:
            self._free.put(self._kept(process))
        return self.decode(container, bare=bare, wanted=wanted, again=False)

    def _taken(self, wanted: Wanted) -> _Process | None:
        while True:
            if not wanted():
                raise DeadlineExceeded("expired before its picture was decoded")
            try:
                return self._kept(self._free.get(timeout=LOOK_S))
            except queue.Empty:
                continue

    def _started(self) -> _Process:
        try:
            process = _Process(self._arguments)
        except OSError as error:
            raise Overloaded(f"no process to decode a picture can be started: {error}") from error
        with self._lock:
            if not self._is_closed:
                self._all.add(process)
                return process
        process.end()
        raise self._ended_from_outside()

    def _kept(self, process: _Process | None) -> _Process | None:
        """Return a process that can take a picture; None in place of one that is over."""
        if process is None or not process.is_over:
            return process
        process.end()
        with self._lock:
            self._all.discard(process)
        return None

    def _ended_from_outside(self) -> MmeshError:
        if self._is_closed:
            return Draining("the service is shutting down; call another one, or again in a moment")
        return Overloaded("the process that decodes pictures was ended, maybe for want of memory")


class _Ended(Exception):
    """The process ended over a picture."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self._code = code

    @property
    def by_picture(self) -> bool:
        """Whether the picture is to blame: it took too much CPU time, or crashed its decoder."""
        return -self._code in _BLAMING_SIGNALS

    def problem(self, kind: str, cpu_s: float) -> str:
        """Return what is to be said of the picture."""
        if self._code == -signal.SIGXCPU:
            return f"takes over {cpu_s:g} s to be decoded; save it anew, or make it smaller"
        return f"is a broken {kind} file: its decoder ended with code {self._code}"


class _Process:
    """One decoder process, which decodes one picture at a time."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmesh.models.pictures.worker", *arguments],
            stdin=PIPE,
            stdout=PIPE,
            bufsize=0,
            env={**os.environ, orphans.PARENT: str(os.getpid()), "OPENBLAS_NUM_THREADS": "1"},
        )
        with contextlib.suppress(OSError):  # it ended already, which its first picture will tell
            os.setpriority(os.PRIO_PROCESS, self._popen.pid, NICE)
        self._has_failed = False

    @property
    def is_over(self) -> bool:
        """Whether it can take no more pictures: one failed, or somebody ended it."""
        return self._has_failed or self._popen.poll() is not None

    def decode(self, container: Container, bare: bool, wanted: Wanted) -> Image.Image:
        """Return the pixels; the process is over when that fails in any way but one it tells."""
        finished = False
        try:
            self._send(container, bare)
            answer, rest = self._line(wanted)
            pixels = self._body(answer, rest, wanted) if "size" in answer else b""
            finished = True
        finally:
            self._has_failed = not finished
        if "error" in answer:
            raise BrokenPicture(answer["error"])
        return Image.frombytes("RGB", tuple(answer["size"]), pixels)

    def _send(self, container: Container, bare: bool) -> None:
        order = {
            "kind": container.kind,
            "length": len(container.data),
            "orientation": container.orientation,
            "bare": bare,
        }
        stdin = _pipe(self._popen.stdin)
        try:
            for part in (json.dumps(order).encode() + b"\n", container.data):
                left = memoryview(part)
                while left:
                    left = left[stdin.write(left) :]
        except ConnectionError:
            raise _Ended(self._popen.wait()) from None

    def _line(self, wanted: Wanted) -> tuple[dict[str, Any], bytes]:
        """Return the answer, and what of the pixels came with it."""
        line = b""
        while b"\n" not in line:
            line += self._some(1 << 16, wanted)
        first, _, rest = line.partition(b"\n")
        return json.loads(first), rest

    def _body(self, answer: dict[str, Any], start: bytes, wanted: Wanted) -> bytearray:
        width, height = answer["size"]
        pixels = bytearray(start)
        while (left := 3 * width * height - len(pixels)) > 0:
            pixels += self._some(min(left, 1 << 20), wanted)
        return pixels

    def _some(self, most: int, wanted: Wanted) -> bytes:
        """Wait for output and return some of it."""
        stdout = _pipe(self._popen.stdout)
        patient_until = time.monotonic() + WALL_S
        while not select.select([stdout], [], [], LOOK_S)[0]:
            if not wanted():
                raise DeadlineExceeded("expired while its picture was decoded")
            if time.monotonic() > patient_until:
                raise Overloaded(f"a picture was not decoded in {WALL_S:g} s: too little CPU time")
        if not (data := stdout.read(most)):
            raise _Ended(self._popen.wait())
        return data

    def end(self) -> None:
        """End the process, whatever it does."""
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            _pipe(pipe).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
