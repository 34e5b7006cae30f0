"""End a stage that hangs. Only progress counts: a stage may take as long as it needs while it makes progress.

A thread cannot be stopped from outside, and a flow does not end before its threads. Therefore the flow raises its own error, and
if the threads still hang `GRACE` seconds later, the flow runs are reported as failed and the process ends.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Failed

from gsec_core.errors import GsecError
from tasks.progress import watched

POLL = 1.0
"""Seconds between checks of the clock."""

GRACE = 10.0
"""Seconds that hanging threads may take to end before the process is ended."""

MOST_FAILED = 3
"""After so many failed slices in a row, those that have not begun are cancelled: on a full disk each would compute its first shard at every retry."""

_ending: list[threading.Timer] = []


class Clock:
    """Measures the time since the last progress."""

    def __init__(self) -> None:
        self.move()

    def move(self) -> None:
        self._moved = time.monotonic()

    def idle(self) -> float:
        """Seconds since the last progress."""
        return time.monotonic() - self._moved


class _OfStage(Clock):
    """A clock that is a `progress.Watcher` of one stage."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        self.move()

    def advance(self, stage: str, by: int) -> None:
        if stage == self._stage:
            self.move()

    def end(self, stage: str, sums: Mapping[str, float]) -> None:
        """Nothing to do: the wait for the stage is over."""


@contextmanager
def clock(stage: str) -> Iterator[Clock]:
    """Context manager with a clock that all progress of ``stage`` resets."""
    found = _OfStage(stage)
    with watched(found):
        yield found


def wait(futures: Sequence[PrefectFuture[Any]], stage: str, seconds: float, look: Callable[[Clock], None] = lambda clock: None) -> None:
    """Wait until all futures are done or cancelled (see `MOST_FAILED`), and call ``look`` at least every `POLL` seconds, with the clock of the stage.

    Raises GsecError if the stage makes no progress for this many ``seconds``.
    """
    waiting: list[Future[State[Any]]] = [cast(Any, future).wrapped_future for future in futures]
    failed = 0
    with clock(stage) as moved:
        for number, future in enumerate(waiting, 1):
            while not wait_for([future], POLL).done:
                look(moved)
                if moved.idle() > seconds:
                    why = f"stage {stage} made no progress for {seconds:,.0f} s (hang_timeout) and was ended. What was committed stays; a rerun continues."
                    _end_soon(why)
                    raise GsecError(why)
            look(moved)
            failed = 0 if future.cancelled() or future.result().is_completed() else failed + 1
            if failed == MOST_FAILED:
                for later in waiting[number:]:
                    later.cancel()  # those that have begun go on


def _end_soon(why: str) -> None:
    runs = [UUID(str(id)) for id in dict.fromkeys((flow_run.id, flow_run.parent_flow_run_id, flow_run.root_flow_run_id)) if id]
    timer = threading.Timer(GRACE, _end, (runs, why))
    timer.daemon = True
    _ending.append(timer)
    timer.start()


def _end(runs: Sequence[UUID], why: str) -> None:
    reporting = threading.Thread(target=_report, args=(runs, why), daemon=True)  # a server that hangs too must not keep the process
    reporting.start()
    reporting.join(GRACE)
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(1)


def _report(runs: Sequence[UUID], why: str) -> None:
    with get_client(sync_client=True) as client:
        for run in runs:
            client.set_flow_run_state(run, Failed(message=why), force=True)


def calm() -> None:
    """Cancel the end of the process, because the threads have ended after all."""
    while _ending:
        _ending.pop().cancel()
