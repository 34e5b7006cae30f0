"""Simulates a machine whose processes share a folder, can be stopped before every call to the operating system, and may lose power.

`gsec_core.store.files` gets a `Machine` in place of ``os``. Calls are passed on to a real folder and recorded in a trace. From
a trace, `after_power_loss` computes what a disk may hold. It grants no more than POSIX guarantees:

* a file's bytes are durable up to its last fsync; of later bytes any beginning may be there, or zeros in their place;
* a change of a directory's entries (a name made, linked, renamed or removed) is durable once that directory was
  synced after it; of the later changes any subset may be there.
"""

import builtins
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from greenlet import greenlet

from gsec_core.store import files


class Node(NamedTuple):
    """A file or a directory, independent of its names."""

    number: int
    is_directory: bool


class Wrote(NamedTuple):
    """Bytes at the end of a file."""

    node: Node
    data: bytes


class Synced(NamedTuple):
    """An fsync of a file or a directory."""

    node: Node


class Named(NamedTuple):
    """Entries of a directory that changed at once: name -> node, or None where the name is gone."""

    directory: Node
    entries: dict[str, Node | None]


class Promised(NamedTuple):
    """A process was told that ``what`` exists; from then on it must survive a power loss."""

    what: str


Event = Wrote | Synced | Named | Promised
Schedule = Sequence[tuple[int, int]]
"""Whose turn it is, and for how many calls. Processes that are not done after the last turn run to their end, one after the other."""

_ROOT = Node(0, is_directory=True)
_OUTSIDE = Node(-1, is_directory=True)


class Killed(BaseException):
    """SIGKILL: no call after this one happens, not in a finally clause either."""


class _Process:
    """A coroutine that hands control back to the machine before each of its calls to the operating system."""

    def __init__(self, body: Callable[[], object], kill_after: int | None) -> None:
        self.calls_left = kill_after
        self._body = body
        self._greenlet = greenlet(self._live)

    @property
    def done(self) -> bool:
        return self._greenlet.dead

    def resume(self) -> None:
        self._greenlet.switch()

    def end(self) -> None:
        """Unwind what is left of a process when another has failed."""
        if self._greenlet and not self.done:
            self._greenlet.throw(Killed)

    def stop(self) -> None:
        """Before a call: wait for the next `resume`. A process that is out of calls is killed instead."""
        if self.calls_left is not None:
            if self.calls_left == 0:
                raise Killed
            self.calls_left -= 1
        self._greenlet.parent.switch()

    def _live(self) -> None:
        with suppress(Killed):
            self._body()


class Machine:
    """Takes the place of ``os`` in `gsec_core.store.files`. Attributes that it does not define are those of the real ``os``."""

    def __init__(self, folder: Path, hard_links: bool = True) -> None:
        self.folder = folder
        self.trace: list[Event] = []
        self._hard_links = hard_links
        self._nodes = {str(folder): _ROOT, str(folder.parent): _OUTSIDE}
        self._made = 0
        self._open: dict[int, Node] = {}
        self.calls = 0
        self._running: _Process | None = None
        self._take_stock()
        self.began = len(self.trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    # Processes

    def run(self, bodies: Sequence[Callable[[], object]], schedule: Schedule = (), kills: Sequence[int | None] = ()) -> None:
        """Run ``bodies`` as processes that take turns; process i is killed after ``kills[i]`` calls."""
        processes = [_Process(body, kill_after) for body, kill_after in zip_longest(bodies, kills)]
        try:
            for process in _turns(processes, schedule):
                self._running = process
                process.resume()
        finally:
            self._running = None
            for process in processes:
                process.end()

    def promise(self, what: str) -> None:
        self.trace.append(Promised(what))

    def _before_call(self) -> None:
        if self._running is not None:
            self._running.stop()
        self.calls += 1

    # Calls

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._before_call()
        descriptor = os.open(path, flags, mode)
        if path not in self._nodes:
            self._name({path: self._new_node(is_directory=False)})
        self._open[descriptor] = self._nodes[path]
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write at most 1000 bytes, as a real short write may."""
        self._before_call()
        written = os.write(descriptor, data[:1000])
        self.trace.append(Wrote(self._open[descriptor], bytes(data[:written])))
        return written

    def fsync(self, descriptor: int) -> None:
        self._before_call()
        self.trace.append(Synced(self._open[descriptor]))

    def close(self, descriptor: int) -> None:
        # No stop before this call: it has no visible effect, and the files of a killed process are closed too.
        os.close(descriptor)
        del self._open[descriptor]

    def mkdir(self, path: str) -> None:
        self._before_call()
        os.mkdir(path)
        self._name({path: self._new_node(is_directory=True)})

    def link(self, path: str, to: str) -> None:
        self._before_call()
        if not self._hard_links:
            raise PermissionError(errno.EPERM, "no hard links here", to)
        os.link(path, to)
        self._name({to: self._nodes[path]})

    def rename(self, path: str, to: str) -> None:
        self._before_call()
        os.rename(path, to)
        self._name({path: None, to: self._nodes[path]})

    def rename_exclusively(self, path: str, to: str) -> bool:
        """Replaces the rename that `files` calls through ctypes."""
        self._before_call()
        renamed = _real_rename_exclusively(path, to)
        if renamed:
            self._name({path: None, to: self._nodes[path]})
        return renamed

    def unlink(self, path: str) -> None:
        self._before_call()
        os.unlink(path)
        self._name({path: None})

    def rmdir(self, path: str) -> None:
        self._before_call()
        os.rmdir(path)
        self._name({path: None})

    def scandir(self, path: str) -> Any:
        self._before_call()
        return os.scandir(path)

    def open_to_read(self, path: str, mode: str) -> Any:
        """Replaces the builtin ``open`` that `files` calls."""
        self._before_call()
        return builtins.open(path, mode)

    def is_directory(self, descriptor: int) -> bool:
        return self._open[descriptor].is_directory

    def _take_stock(self) -> None:
        """Record the files already on the disk as durable."""
        for where, directories, names in os.walk(self.folder):
            for name in directories + names:
                path = os.path.join(where, name)
                node = self._new_node(is_directory=name in directories)
                self._name({path: node})
                if not node.is_directory:
                    self.trace.append(Wrote(node, Path(path).read_bytes()))
                    self.trace.append(Synced(node))
            self.trace.append(Synced(self._nodes[where]))

    def _new_node(self, is_directory: bool) -> Node:
        self._made += 1
        return Node(self._made, is_directory)

    def _name(self, paths: dict[str, Node | None]) -> None:
        directory = self._nodes[os.path.dirname(next(iter(paths)))]
        self.trace.append(Named(directory, {os.path.basename(path): node for path, node in paths.items()}))
        for path, node in paths.items():
            if node is None:
                del self._nodes[path]
            else:
                self._nodes[path] = node


_real_rename_exclusively = files._rename_exclusively


@contextmanager
def machine(hard_links: bool = True, left: Mapping[str, bytes] | None = None) -> Iterator[Machine]:
    """A machine whose disk holds only the files ``left`` from before: path -> content."""
    # In memory if possible, which is faster: what a real disk would do is computed by `after_power_loss`.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        for path, data in (left or {}).items():
            Path(folder, path).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, path).write_bytes(data)
        made = Machine(Path(folder), hard_links)
        with (
            patch.object(files, "os", made),
            patch.object(files, "open", made.open_to_read, create=True),
            patch.object(files, "_rename_exclusively", made.rename_exclusively),
        ):
            yield made


@dataclass
class Fate:
    """Decides about data that was never synced: each piece survives with a probability of ``survival``."""

    survival: float
    chance: Random = field(default_factory=Random)

    def survives(self) -> bool:
        return self.chance.random() < self.survival

    def left_of(self, data: bytes, safe: int) -> bytes:
        """What remains of ``data``, of which ``safe`` bytes are durable."""
        if len(data) == safe or self.survives():
            return data
        kept = self.chance.randint(safe, len(data)) if self.survival else safe
        return data[:kept] + (bytes(len(data) - kept) if self.chance.random() < 0.5 else b"")


WORST = Fate(survival=0)
BEST = Fate(survival=1)
"""Everything survives; that is also what other processes see after one was killed."""


def after_power_loss(trace: Iterable[Event], fate: Fate) -> dict[str, bytes]:
    """What a disk may hold after a power loss at the end of ``trace``: path -> content."""
    contents: dict[Node, bytes] = {}
    changes: dict[Node, list[dict[str, Node | None]]] = {}
    safe: dict[Node, int] = {}  # bytes of a file, changes of a directory
    for event in trace:
        if isinstance(event, Wrote):
            contents[event.node] = contents.get(event.node, b"") + event.data
        elif isinstance(event, Named):
            changes.setdefault(event.directory, []).append(event.entries)
        elif isinstance(event, Synced):
            safe[event.node] = len(changes.get(event.node, []) if event.node.is_directory else contents.get(event.node, b""))

    def found(directory: Node, path: str) -> Iterator[tuple[str, bytes]]:
        entries: dict[str, Node | None] = {}
        for number, change in enumerate(changes.get(directory, [])):
            if number < safe.get(directory, 0) or fate.survives():
                entries.update(change)
        for name, node in entries.items():
            if node is not None and node.is_directory:
                yield from found(node, f"{path}{name}/")
            elif node is not None:
                yield path + name, fate.left_of(contents.get(node, b""), safe.get(node, 0))

    return dict(found(_ROOT, ""))


def _turns(processes: list[_Process], schedule: Schedule) -> Iterator[_Process]:
    """Yield a process each time it may do a call: first by the schedule, then each remaining process to its end."""
    for number, calls in schedule:
        process = processes[number % len(processes)]
        for _ in range(calls):
            if process.done:
                break
            yield process
    for process in processes:
        while not process.done:
            yield process
