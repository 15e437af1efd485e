"""Failures of a model's libraries that a future cannot carry, as errors that it can."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmesh.errors import InternalError

logger = logging.getLogger(__name__)


@contextmanager
def contained() -> Iterator[None]:
    """Raise as `InternalError` what would end or hang the task that awaits a thread's outcome.

    An asyncio future cannot hold a `StopIteration`, so whoever awaits it waits for ever. A
    `CancelledError` looks as if the task were to end. A `BaseException`, such as the panic of a
    library in Rust, passes every `except Exception`.
    """
    try:
        yield
    except (StopIteration, concurrent.futures.CancelledError) as error:
        raise _failure(error) from error
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _failure(error) from error


def _failure(error: BaseException) -> InternalError:
    logger.error("a library of the model failed badly", exc_info=error)
    return InternalError(f"a library of the model failed: {type(error).__name__}")
