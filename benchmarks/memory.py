"""Anonymous memory of this process, that is, without mapped files."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def anonymous_mib() -> float:
    """Current RssAnon of /proc/self/status, in MiB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


class Peak:
    """The largest value of `anonymous_mib` so far."""

    def __init__(self) -> None:
        self.mib = anonymous_mib()


@contextmanager
def peak() -> Iterator[Peak]:
    """Context manager that measures the peak 50 times a second. Memory that was freed before is first returned to the system, so that reusing it counts."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found, over = Peak(), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            found.mib = max(found.mib, anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()
