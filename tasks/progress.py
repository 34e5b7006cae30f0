"""Progress for two kinds of watchers: the terminal of a command, and Prefect's dashboard."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from gsec_core.stages.base import Progress, silent

SECONDS_BETWEEN_UPDATES = 5.0


class Watcher(Protocol):
    """Who wants to hear of all progress in this process. Called from any thread."""

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        """A step of ``stage`` begins with ``units`` of what ``unit`` names to work on; ``there`` of its shards are done already."""
        ...

    def advance(self, stage: str, by: int) -> None:
        """``by`` more units are worked on, committed or not."""
        ...

    def end(self, stage: str, sums: Mapping[str, float]) -> None:
        """A stage is done; ``sums`` count what was made now, ``seconds`` is what it took."""
        ...


_watchers: list[Watcher] = []


def begin(stage: str, units: int, unit: str, there: int) -> None:
    """Tell the watchers that a step begins."""
    for watcher in _watchers:
        watcher.begin(stage, units, unit, there)


def advance(stage: str, by: int) -> None:
    """Tell the watchers that a stage moves. Also of slices in other processes."""
    for watcher in _watchers:
        watcher.advance(stage, by)


def end(stage: str, sums: Mapping[str, float]) -> None:
    """Tell the watchers that a stage is done."""
    for watcher in _watchers:
        watcher.end(stage, sums)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Let ``watcher`` hear of all progress in this process."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class Interrupted(BaseException):
    """Raised in a slice where it tells of its progress, once the command is to end."""


_interrupted = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C ends slices of this process where they next tell of their progress; a flow waits for them before it ends."""
    _interrupted.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        _interrupted.set()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def of_slice(stage: str, number: int, units: int, unit: str, there: int = 0) -> Iterator[Progress]:
    """A Progress for the library that moves a progress artifact of the slice, and tells the process's watchers.

    ``there`` units were done by the same slice before it failed and was begun again. What a slice that fails has told is taken back.
    """
    if there:
        advance(stage, there)
    if not units:
        yield silent
        return
    artifact = shown(create_progress_artifact, 0.0, key=f"{stage}-{number}", description=f"{stage}, slice {number}: {units} {unit}")
    lock = threading.Lock()
    done, shown_at = 0, time.monotonic()

    def told(by: int) -> None:
        nonlocal done, shown_at
        if _interrupted.is_set():
            raise Interrupted
        advance(stage, by)
        with lock:
            done += by
            if time.monotonic() - shown_at < SECONDS_BETWEEN_UPDATES:
                return
            shown_at = time.monotonic()
        shown(update_progress_artifact, artifact, progress=min(100.0, 100 * done / units))

    try:
        yield told
    except BaseException:
        advance(stage, -done - there)
        raise
    shown(update_progress_artifact, artifact, progress=100.0)


def shown(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call Prefect's API for the people who watch. Its failure is logged, and never that of the work."""
    try:
        return call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever a client, a proxy or a server says
        get_run_logger().warning("progress is not shown: %s", error)
        return None
