"""One event loop of this process, in a thread of its own, for requests to servers.

One for all, so that connections which a check has opened serve the stage after it; in a thread, so that a caller who waits can
be interrupted, and a notebook, which has a loop of its own, can wait too.
"""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")

_starting = threading.Lock()

_READERS = 32
"""Threads that read and decode images: a remote store answers slowly, and to many at once."""


def start(work: Coroutine[Any, Any, T]) -> "Future[T]":
    """Begin ``work``. To cancel its future cancels it."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _the_loop()


@cache
def _the_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_READERS, thread_name_prefix="read"))
    threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
    return loop
