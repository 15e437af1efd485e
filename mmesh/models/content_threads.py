"""Worker threads for judges that read contents; dear pictures are decoded in a process apart."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from mmesh.content import Content
from mmesh.errors import DeadlineExceeded
from mmesh.models import images
from mmesh.models.containment import contained
from mmesh.models.pictures.pool import DecoderPool

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class ContentThreads:
    """Runs functions that decode pictures; those with large ones have threads of their own.

    So nobody's content waits for large pictures of others. Of these the dearest are decoded in a
    process with limits, which is ended when their caller goes away. See docs/adr/0027.
    """

    def __init__(self, threads: int, name: str) -> None:
        """Take how many may run at a time, of each kind."""
        self._small = ThreadPoolExecutor(threads, name)
        self._large = ThreadPoolExecutor(threads, f"{name}-large")
        self._decoders = DecoderPool()  # of one process: some pictures take a gigabyte

    def close(self) -> None:
        """Take no more work, and end what is decoded in the process at once."""
        self._decoders.close()
        for threads in (self._small, self._large):
            threads.shutdown(wait=False)

    async def run(
        self,
        contents: Iterable[Content],
        function: Callable[Arguments, Answer],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Answer:
        """Return what the function returns, which decodes the pictures of `contents` and no others.

        Cancelling this call ends the decoding of a dear picture.
        """
        is_left = threading.Event()

        def work() -> Answer:
            if is_left.is_set():
                raise DeadlineExceeded("expired before it was prepared")
            with contained(), images.decoding_apart(self._decoders, lambda: not is_left.is_set()):
                return function(*args, **kwargs)

        large = sum(map(images.work_of_content, contents)) > images.LARGE_WORK
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._large if large else self._small, work)
        finally:
            is_left.set()
