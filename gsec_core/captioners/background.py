"""The event loop of this process for requests to servers, in a separate thread.

There is one loop for all requests, so that the stage can use connections that a check has opened. It runs in a thread, so that a waiting
caller can be interrupted, and so that a notebook, which already runs a loop, can wait, too.
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
"""Number of threads that read and decode images: a remote store answers slowly, but serves many requests at once."""


def start(work: Coroutine[Any, Any, T]) -> "Future[T]":
    """Start ``work`` in the loop. Cancelling the returned future cancels it."""
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
