"""Anonymous memory of this process: what it holds beyond the files that it maps."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def anonymous_mib() -> float:
    """RssAnon of /proc/self/status now."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


class Peak:
    """The largest value seen."""

    def __init__(self) -> None:
        self.mib = anonymous_mib()


@contextmanager
def peak() -> Iterator[Peak]:
    """Watch it 50 times a second. What an earlier run has freed and the process kept goes back to the system first, so that it counts again."""
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
