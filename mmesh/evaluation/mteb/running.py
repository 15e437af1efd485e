"""Coroutines from mteb's blocking calls, and progress bars as mteb shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm.auto import tqdm

Result = TypeVar("Result")


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine; in a notebook, whose loop runs, from another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def progress_bar(title: str, total: int, encode_kwargs: Mapping[str, Any]) -> Any:
    """Return a progress bar, unless mteb was told to show none."""
    hidden = not encode_kwargs.get("show_progress_bar", True)
    return tqdm(desc=title, total=total, disable=hidden)
