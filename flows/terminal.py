"""Output of commands: progress, warnings and tables. Everything except the result goes to stderr."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column, Table
from rich.text import Text

Json = Callable[[dict[str, Any]], None] | None
"""A function that prints a result as JSON; None if results are shown as text."""

WIDTH = 120
"""Columns of the output to a log or a pipe, which have no width of their own."""

err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True, width=None if sys.stderr.isatty() else WIDTH)
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)


def warn(warnings: Sequence[str]) -> None:
    """Print each warning on a line of its own."""
    for warning in warnings:
        err.print(f"warning: {warning}")


DOES = {
    "ingest": "list the images",
    "encode": "compute embeddings",
    "encode2": "embed with the second encoder",
    "count": "find the number of clusters",
    "refit": "keep or renew the published model",
    "baseline": "cluster by plain k-means",
    "prototypes": "choose representatives",
    "describe": "describe the representatives",
    "fuse": "make text counterparts",
    "vocabulary": "embed words",
    "nouns": "select nouns",
    "prepare": "compute features and neighbours",
    "duplicates": "find copies",
    "enhance": "adapt the encoder",
    "train": "train the ensemble",
    "align": "make the consensus",
    "publish": "name the clusters",
    "hierarchy": "arrange clusters in a tree",
    "map": "lay out the map",
    "lineage": "keep the clusters' keys",
    "report": "draw the report",
    "assign": "assign to the run's clusters",
}
"""Stage -> what it does, in a few words."""

DOES_WIDTH = 34

WIDE = 110
"""Columns from which a terminal has room for `DOES` beside the bars."""

_FACTS = {
    "added": "new",
    "changed": "changed",
    "deleted": "deleted",
    "linked_folders": "links to folders left out",
    "excluded": "excluded",
    "copied": "known before",
    "known": "known before",
    "rejected": "rejected",
    "missing": "missing",
    "failed": "failed",
}
"""Count in a stage's sums -> its word in the output. Other counts are only in the store and on the dashboard."""


@dataclass
class _Step:
    """Progress of a step of a stage."""

    units: int
    """Total number of units; 0 if the step does not report one."""
    unit: str
    there: int
    begun: float = field(default_factory=lambda: time.monotonic())
    done: int = 0
    first: tuple[float, int] | None = None
    """Time of the first report, and the units done by then. Before that the step loads models and data."""
    over: bool = False

    def then(self, units: int, unit: str, there: int) -> "_Step":
        """The next step of the same stage. If it does not report its number of units, this step goes on being shown."""
        step = _Step(units, unit, 0) if units else self
        step.there = self.there + there
        return step

    def advance(self, by: int) -> None:
        self.done += by
        if self.first is None:
            self.first = (time.monotonic(), self.done)

    def count(self) -> str:
        return f"{self.done:,} of {self.units:,} {self.unit}" if self.units else ""

    def pace(self, least: float) -> str:
        """Rate and time left, from ``least`` seconds after the first report; an empty text before."""
        if self.first is None:
            return ""
        seconds, made = time.monotonic() - self.first[0], self.done - self.first[1]
        if made <= 0 or seconds < least or self.done >= self.units:
            return ""
        rate = made / seconds
        return f"{f'{rate:,.0f}/s' if rate >= 1 else f'{60 * rate:.0f}/min'}, {duration((self.units - self.done) / rate)} left"

    def result(self, sums: Mapping[str, float]) -> str:
        """The result of the stage, whose last step this was: time and counts."""
        listed = [f"{sums['images']:,} images"] if "images" in sums else []  # ingest knows the number of images only at its end
        parts = [*listed, duration(sums["seconds"]), *(f"{int(sums[key]):,} {word}" for key, word in _FACTS.items() if sums.get(key))]
        if self.there:
            parts.append("1 shard was there" if self.there == 1 else f"{self.there:,} shards were there")
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """A duration in words: in one unit, or in two from 100 minutes on."""
    if seconds < 100:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


class _Rendered(ProgressColumn):
    """A progress column whose text is computed whenever it is drawn."""

    def __init__(self, text: Callable[[Task], str], justify: Literal["left", "right"] = "left") -> None:
        super().__init__()
        self._text, self._justify = text, justify

    def render(self, task: Task) -> Text:
        return Text(self._text(task), justify=self._justify)

    def get_table_column(self) -> Column:
        return Column(no_wrap=True, justify=self._justify)


class Bars:
    """Progress for a terminal: one bar for each stage, with rate and time left."""

    SECONDS = 3.0
    """Seconds of work before rate and time left are shown."""

    def __init__(self, console: Console) -> None:
        columns = (
            _Rendered(lambda task: task.description),
            *([_Rendered(lambda task: DOES[task.description])] if console.width >= WIDE else []),
            BarColumn(bar_width=24),
            _Rendered(lambda task: task.fields["step"].count(), "right"),
            _Rendered(lambda task: task.fields["result"] or task.fields["step"].pace(self.SECONDS)),
        )
        self.progress = Progress(*columns, console=console)
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._steps: dict[str, _Step] = {}

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        before = self._steps.get(stage)
        self._steps[stage] = step = before.then(units, unit, there) if before and not before.over else _Step(units, unit, there)
        if step is before:
            return
        if before:
            self.progress.remove_task(self._bars[stage])
        self._bars[stage] = self.progress.add_task(stage, total=units or None, step=step, result="")

    def advance(self, stage: str, by: int) -> None:
        with self._lock:
            self._steps[stage].advance(by)
        self.progress.advance(self._bars[stage], by)

    def end(self, stage: str, sums: Mapping[str, float]) -> None:
        step = self._steps[stage]
        step.done, step.over = step.units, True
        self.progress.update(self._bars[stage], total=step.units or 1, completed=step.units or 1, result=step.result(sums))


class Lines:
    """Progress where stderr is not a terminal: a line when a stage is done, and one every `SECONDS` while it works."""

    SECONDS = 10.0
    """Seconds between two lines of a stage, and seconds of work before rate and time left are shown."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stage = ""
        """The stage that is working, or an empty text."""
        self._step = _Step(0, "", 0)
        self._shown = time.monotonic()

    def begin(self, stage: str, units: int, unit: str, there: int) -> None:
        with self._lock:
            self._step = self._step.then(units, unit, there) if stage == self._stage else _Step(units, unit, there)
            self._stage = stage

    def advance(self, stage: str, by: int) -> None:
        with self._lock:
            self._step.advance(by)

    def end(self, stage: str, sums: Mapping[str, float]) -> None:
        with self._lock:
            count = f"{self._step.units:,} {self._step.unit}, " if self._step.units else ""
            self._say(f"{count}{self._step.result(sums)}")
            self._stage = ""

    def look(self) -> None:
        """Print the progress of the working stage if the last line is `SECONDS` old. Must be called about every second."""
        with self._lock:
            if self._stage and time.monotonic() - self._shown >= self.SECONDS:
                so_far = self._step.count() or f"at it for {duration(time.monotonic() - self._step.begun)}"
                self._say(", ".join(filter(None, (so_far, self._step.pace(self.SECONDS)))))

    def _say(self, text: str) -> None:
        self._shown = time.monotonic()
        print(f"{self._stage:<11} {DOES[self._stage]:<{DOES_WIDTH}} {text}", file=sys.stderr, flush=True)


@contextmanager
def watcher() -> Iterator[Bars | Lines]:
    """Context manager with the object that shows progress: `Bars` on a terminal, `Lines` elsewhere."""
    if err.is_terminal:
        bars = Bars(err)
        with bars.progress:
            yield bars
        return
    lines, done = Lines(), threading.Event()

    def watch() -> None:
        while not done.wait(1):
            lines.look()

    looking = threading.Thread(target=watch, daemon=True)
    looking.start()
    try:
        yield lines
    finally:
        done.set()
        looking.join()


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table of rows; its columns are those of the first row."""
    shown = Table(title=f"\n{title}", title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in rows[0] if rows else ():
        number = any(isinstance(row[column], int | float) for row in rows)
        shown.add_column(column, justify="right" if number else "left", overflow="fold", min_width=max(map(len, column.split())))
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    return shown


def minute(time: str) -> str:
    """A time as the store records it (UTC, ISO format), to the minute."""
    return f"{time[:10]} {time[11:16]} UTC"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
