"""Report progress to watchers in this process, such as the terminal of a command, and to Prefect's dashboard."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import TerminationSignal

from gsec_core.stages.base import Progress, silent

SECONDS_BETWEEN_UPDATES = 5.0

SECONDS_OF_FINALIZERS = 0.1
"""Seconds after which a signal is sent again whose error was ignored in a finalizer."""


class Watcher(Protocol):
    """An object that is told all progress in this process. Its methods are called from any thread."""

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        """A step of ``stage`` begins, with a total of ``units`` of ``unit`` (such as images); ``there`` of its shards are done already."""
        ...

    def advance(self, stage: str, by: int) -> None:
        """``by`` more units are done, though maybe not committed yet. Negative if a slice failed."""
        ...

    def end(self, stage: str, sums: Mapping[str, float]) -> None:
        """A stage is done; ``sums`` are the sums of the new shards, with ``seconds``, the time taken."""
        ...


_watchers: list[Watcher] = []


def begin(stage: str, units: int, unit: str, there: int) -> None:
    """Tell the watchers that a step begins."""
    for watcher in _watchers:
        watcher.begin(stage, units, unit, there)


def advance(stage: str, by: int) -> None:
    """Tell the watchers the progress of a stage, also that of slices in other processes."""
    for watcher in _watchers:
        watcher.advance(stage, by)


def end(stage: str, sums: Mapping[str, float]) -> None:
    """Tell the watchers that a stage is done."""
    for watcher in _watchers:
        watcher.end(stage, sums)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Context manager in which ``watcher`` is told all progress in this process."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class Interrupted(BaseException):
    """Raised in a slice that is to end: after Ctrl-C or SIGTERM at its next progress report, on Ray at once."""


_interrupted = threading.Event()

_pressed = threading.Event()


def check_signals() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed within `signals_kept`."""
    if _pressed.is_set():
        raise KeyboardInterrupt


@contextmanager
def signals_kept() -> Iterator[None]:
    """Context manager in which no Ctrl-C and no SIGTERM is lost.

    Python raises their errors wherever the main thread is at that moment. In a finalizer, and garbage collections run many of them, an error is only
    printed, and the run would go on. So the signal is sent again. Prefect ignores Ctrl-C while it ends a completed flow; `check_signals` raises it after that.
    """
    before = sys.unraisablehook

    def ignored(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt | TerminationSignal):
            number = getattr(what.exc_value, "signal", signal.SIGINT)
            threading.Timer(SECONDS_OF_FINALIZERS, os.kill, (os.getpid(), number)).start()
        else:
            before(what)

    def pressed(number: int, frame: object) -> NoReturn:
        _pressed.set()
        raise KeyboardInterrupt

    # Python takes handlers from its main thread alone, and shells start commands in the background without one.
    listens = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, pressed)
    sys.unraisablehook = ignored
    try:
        yield
    except Exception:
        check_signals()  # Prefect may fail because of what it ignored
        raise
    finally:
        sys.unraisablehook = before
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _pressed.clear()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Context manager for slices at work: Ctrl-C, and SIGTERM, which Prefect turns into an error, end them too. A flow waits for its slices before it ends."""
    try:
        yield
    except (KeyboardInterrupt, TerminationSignal):
        _interrupted.set()
        raise


def calm() -> None:
    """Let slices work again, because those that were interrupted have ended."""
    _interrupted.clear()


@contextmanager
def of_slice(stage: str, number: int, units: int, unit: str) -> Iterator[Progress]:
    """Context manager with a Progress for the library, which shows the slice's progress as an artifact from its first report on, and tells the watchers.

    If the slice fails, its reported progress is taken back.
    """
    if not units:
        yield silent
        return
    artifact: Any = None
    lock = threading.Lock()
    done, shown_at = 0, -math.inf

    def show(percent: float) -> None:
        nonlocal artifact
        if artifact is None:
            artifact = shown(create_progress_artifact, percent, key=f"{stage}-{number}", description=f"{stage}, slice {number}: {units} {unit}")
        else:
            shown(update_progress_artifact, artifact, progress=percent)

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
        show(min(100.0, 100 * done / units))

    try:
        yield told
    except BaseException:
        advance(stage, -done)
        raise
    show(100.0)


def shown(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call Prefect's API to show something on the dashboard. If the call fails, that is only logged, and None is returned."""
    try:
        return call(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - any error of the client, a proxy or the server
        get_run_logger().warning("progress is not shown: %s", error)
        return None
