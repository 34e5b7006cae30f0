"""What a command shows while it works and when it is done. Everything goes to stderr but the result."""

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

WIDTH = 120
"""Columns where there is no terminal that has a width: a log, a pipe."""

err = Console(stderr=True, highlight=False, soft_wrap=True, width=None if sys.stderr.isatty() else WIDTH)
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)

SECONDS_BETWEEN_LINES = 10.0


def warn(warnings: Sequence[str]) -> None:
    """A line each."""
    for warning in warnings:
        err.print(f"warning: {warning}", markup=False)


class Bars:
    """Progress bars on a terminal, with rate and time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        before = self._bars.pop(stage, None)
        if before is not None:
            self._progress.remove_task(before)
        self._bars[stage] = self._progress.add_task(f"{stage} ({unit})", total=units or None, rate="", there=f"{there} shards were there" if there else "")

    def advance(self, stage: str, by: int) -> None:
        bar = self._bars[stage]
        self._progress.advance(bar, by)
        speed = next(task.speed for task in self._progress.tasks if task.id == bar)
        self._progress.update(bar, rate=f"{speed:.0f}/s" if speed else "")


class Lines:
    """A line now and then, where stderr is no terminal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._units: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._done: dict[str, int] = {}
        self._first: dict[str, tuple[float, int]] = {}
        """When a stage was first heard of, and how far it was then: before that it loads what it needs."""
        self._shown = 0.0

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        with self._lock:
            self._units[stage], self._names[stage], self._done[stage] = units, unit, 0
            self._first.pop(stage, None)
            self._say(f"{stage}: {units} {unit} to work on{f', {there} shards were there' if there else ''}")

    def advance(self, stage: str, by: int) -> None:
        with self._lock:
            self._done[stage] += by
            now, done, units = time.monotonic(), self._done[stage], self._units[stage]
            first, before = self._first.setdefault(stage, (now, done))
            if now - self._shown < SECONDS_BETWEEN_LINES:
                return
            rate = (done - before) / (now - first) if now - first >= SECONDS_BETWEEN_LINES else 0.0
            left = f", {rate:.{0 if rate >= 10 else 1}f}/s, {(units - done) / rate:.0f} s left" if rate > 0 else ""
            self._say(f"{stage}: {done} of {units} {self._names[stage]}{left}")

    def _say(self, text: str) -> None:
        self._shown = time.monotonic()
        print(text, file=sys.stderr, flush=True)


@contextmanager
def watcher() -> Iterator[Bars | Lines]:
    """What shows progress here: bars on a terminal, lines elsewhere."""
    if not err.is_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[there]}"),
    )
    with Progress(*columns, console=err) as progress:
        yield Bars(progress)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows as a table, columns as the first row has them."""
    shown = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        shown.add_column(column, justify="right" if isinstance(rows[0][column], int | float) else "left")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    return shown


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
