"""A store as the server sees it: read-only except for curation. Records that never change are read once, and damaged ones do not hide others."""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import UnsupportedOperation
from typing import IO, Any, NoReturn, TypeVar

from gsec_core.config import AUTO
from gsec_core.curation.log import Log
from gsec_core.errors import GsecError, Refused, Unreachable
from gsec_core.results import status
from gsec_core.store import CURATION, Finished, Publication, Run, Store
from gsec_core.store.corpus import NAME
from gsec_core.store.files import Files
from gsec_core.store.publications import DIRECTORY as PUBLISHED

T = TypeVar("T")
R = TypeVar("R")

RUN_ID = re.compile(r"[0-9a-f]{32}")
_STAGE = re.compile(r"[a-z][a-z0-9_]{0,39}")

FINISHED, DAMAGED = "finished", status.DAMAGED

UNPUBLISHED = "No pipeline of this name publishes a run here. The front page shows those that do."
"""The answer to a request for what a pipeline publishes if it publishes nothing."""

_REQUEST = "request.json"

SETTLED_SECONDS = 300.0
"""Seconds after which the records of a finished run are listed again."""

_AT_ONCE = 16
"""Number of records that are read at once, because an object store takes tens of milliseconds for each."""


class Damaged(GsecError):
    """Raised for a record that cannot be read, or that is not what gsec writes."""


@dataclass(frozen=True)
class Asked:
    """The parts of a run's request that the server shows."""

    created: str
    corpus: str
    pipeline: str
    stages: tuple[str, ...]
    clusters: int | str
    of_run: str | None

    @property
    def makes_clusters(self) -> bool:
        """Whether the run makes clusters of its own: it does not assign to another run's, nor only find their number."""
        return self.of_run is None and self.clusters != AUTO


@dataclass(frozen=True)
class Result:
    """The result that a finished run recorded."""

    at: str
    images: int
    rejected: int
    missing: int
    clusters: int | None
    agreement: float | None
    moved: float | None
    published: bool
    """Whether the run was published when it finished. A run that was held back may have been published since."""
    why_not: str | None
    """Why the run was not published."""
    remarks: tuple[str, ...]
    """Warnings, then remarks, for readers of the result."""


@dataclass(frozen=True)
class Attempt:
    """An attempt at a stage that has ended. One without an end was killed or is in progress, and its duration is unknown."""

    stage: str
    seconds: float
    failed: bool
    error: str | None
    sums: Mapping[str, float]


class Known:
    """One store. Every method raises Unreachable or OSError if the store does not answer; methods for one run raise Damaged if its records are damaged."""

    def __init__(self, store: Store, curate: bool = False) -> None:
        """``curate``: whether acts of curation may be written to the store. Nothing else is ever written."""
        self.url = store.url
        self._files = Remembered(store.files, curate)
        self._store = Store(self._files)
        self._logs: dict[str, Log] = {}

    def check(self) -> None:
        """Raises if the store cannot be listed. Always asks the store, without a cache."""
        self._files.directories("")

    def drop_gone(self) -> None:
        """Drop the cached records of runs that are gone. Always asks the store."""
        self._files.directories("runs")

    def runs(self) -> tuple[list[tuple[Asked, Run]], list[str]]:
        """All runs, newest first, and a message for each run whose request cannot be read."""
        found, wrong = _readable(self._asked, sorted(filter(RUN_ID.fullmatch, self._files.directories("runs"))))
        return sorted(found, key=lambda pair: pair[0].created, reverse=True), wrong

    def find(self, id: str) -> Run | None:
        """The run with this id, or None."""
        run = Run(self._files, id)
        return run if RUN_ID.fullmatch(id) and run.exists() else None

    def asked(self, run: Run) -> Asked:
        """The request of a run. Raises Refused if there is no such run."""
        with _reading(f"the request of run {run.id}"):
            request = run.request()
            config, of_run = request["config"], request.get("of_run")
            corpus = _matching(NAME, request["corpus"])
            return Asked(
                created=_time(request["created"]),
                corpus=corpus,
                pipeline=_matching(NAME, config.get("pipeline") or corpus),
                stages=tuple(_matching(_STAGE, stage) for stage in request["stages"]),
                clusters=AUTO if config["clusters"] == AUTO else int(config["clusters"]),
                of_run=None if of_run is None else _matching(RUN_ID, of_run),
            )

    def state(self, run: Run) -> str:
        """The state of a run, as in `gsec status`. A finished run stays finished, even if shards are damaged later: the next run makes them again."""
        if self._files.is_settled(run.directory):
            return FINISHED
        asked = self.asked(run)
        with _reading(f"run {run.id}"):
            if run.result() is not None:
                self._files.settle(run.directory)
                return FINISHED
            ends = [attempt["end"] for attempt in run.attempts()]
            state = status.state(run, ends)
            # A run that makes clusters records its result, and every run its last end, a moment after its last shard.
            if state == FINISHED and not asked.makes_clusters and None not in ends:
                self._files.settle(run.directory)
            return state

    def result(self, run: Run) -> Result | None:
        """The result of a run. None if it is not finished, finds the number of clusters, or an older gsec made it; if it only assigns, only images are set."""
        with _reading(f"the result of run {run.id}"):
            found = run.result()
            if found is None:
                return None
            return Result(
                at=_time(found["at"]),
                images=int(found["images"]),
                rejected=int(found["rejected"]),
                missing=int(found["missing"]),
                clusters=_optional(int, found.get("clusters")),
                agreement=_optional(float, found.get("agreement")),
                moved=_optional(float, found.get("moved")),
                published=bool(found.get("published")),
                why_not=_optional(str, found.get("why_not")),
                remarks=tuple(map(str, [*found.get("warnings", ()), *found.get("remarks", ())])),
            )

    def progress(self, run: Run) -> list[tuple[str, int, int]]:
        """(stage, shards done, shards planned) for each stage of the run."""
        with _reading(f"run {run.id}"):
            return [(_matching(_STAGE, stage), *run.shards_done(stage)) for stage in run.stage_names()]

    def attempts(self, run: Run) -> list[Attempt]:
        """The attempts that have ended, oldest first."""
        with _reading(f"the attempts of run {run.id}"):
            return [_attempt(attempt["start"], attempt["end"]) for attempt in run.attempts() if attempt["end"] is not None]

    def error(self, run: Run) -> str | None:
        """The error of the newest attempt; None if it did not fail or has not ended."""
        with _reading(f"the attempts of run {run.id}"):
            attempts = run.attempts()
            end = attempts[-1]["end"] if attempts else None
            return _optional(str, end.get("error")) if end else None

    def publications(self) -> tuple[list[Publication], list[str]]:
        """The newest publication of each pipeline, and a message for each pipeline whose publication cannot be read."""
        return _readable(self._publication, self._store.publications.pipelines())

    def finished(self) -> tuple[list[tuple[str, Finished]], list[str]]:
        """The run of each pipeline that finished last, and a message for each pipeline whose record cannot be read."""
        return _readable(self._finished, self._store.publications.pipelines())

    def curation(self, pipeline: str) -> tuple[int, int | None]:
        """Number of acts in the curation log of a pipeline, and how many were open when an act was last added or a run finished (None if unknown).

        Raises Damaged if an act cannot be read.
        """
        log = self._logs.setdefault(pipeline, Log(self._files, pipeline))
        with _reading(f"the log of curation of pipeline {pipeline}"):
            acts = log.read()
            curated = self._store.publications.pointer(pipeline).get("curated")
            return len(acts), _optional(int, curated.get("open")) if curated else None

    def _publication(self, pipeline: str) -> Publication | None:
        with _reading(f"what pipeline {pipeline} publishes"):
            newest = self._store.publications.newest(pipeline)
            if newest is None:
                return None
            return Publication(
                pipeline=pipeline,
                number=int(newest.number),
                run_id=_matching(RUN_ID, newest.run_id),
                corpus=_matching(NAME, newest.corpus),
                generation=int(newest.generation),
                assignments=str(newest.assignments),
                next_key=int(newest.next_key),
                moved=_optional(float, newest.moved),
                left=_optional(str, newest.left),
                at=_time(newest.at),
            )

    def _finished(self, pipeline: str) -> tuple[str, Finished] | None:
        with _reading(f"when a run of pipeline {pipeline} last finished"):
            last = self._store.publications.finished(pipeline)
            if last is None:
                return None
            return pipeline, Finished(_matching(RUN_ID, last.run_id), _matching(NAME, last.corpus), bool(last.held), _time(last.at))

    def _asked(self, name: str) -> tuple[Asked, Run] | None:
        run = Run(self._files, name)
        try:
            return self.asked(run), run
        except Refused:
            return None  # there is no request: the run is being pruned, or not written yet


def published_run(stores: Iterable[Known], pipeline: str) -> str | None:
    """Id of the run that a pipeline publishes, in the first store where it publishes one; None if there is none."""
    return next((found.run_id for store in stores for found in store.publications()[0] if found.pipeline == pipeline), None)


def curations(store: Known, publications: Iterable[Publication]) -> tuple[list[tuple[Publication, tuple[int, int | None]]], list[str]]:
    """Each publication with the counts of `Known.curation`, and a message for each curation log that cannot be read."""
    return _readable(lambda publication: (publication, store.curation(publication.pipeline)), publications)


def _readable(read: Callable[[T], R | None], items: Iterable[T]) -> tuple[list[R], list[str]]:
    """What ``read`` finds for the items, in order, and a message for each item for which it raises Damaged."""

    def found_or_wrong(item: T) -> R | Damaged | None:
        try:
            return read(item)
        except Damaged as error:
            return error

    results = each(found_or_wrong, items)
    found = [one for one in results if one is not None and not isinstance(one, Damaged)]
    return found, [str(one) for one in results if isinstance(one, Damaged)]


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a function to every item in parallel; results are in order."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, items))


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Context manager that converts the errors of a damaged record to Damaged, but not those of an unreachable store or a missing run."""
    try:
        yield
    except (Unreachable, Refused, Damaged):
        raise
    except (GsecError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise Damaged(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def _attempt(start: Mapping[str, Any], end: Mapping[str, Any]) -> Attempt:
    return Attempt(
        stage=_matching(_STAGE, start["stage"]),
        seconds=(datetime.fromisoformat(end["at"]) - datetime.fromisoformat(start["at"])).total_seconds(),
        failed=end["outcome"] != "done",
        error=_optional(str, end.get("error")),
        sums={str(fact): float(value) for fact, value in end.get("sums", {}).items()},
    )


def _matching(pattern: re.Pattern[str], value: str) -> str:
    """Check a name that becomes a part of an address or a path, so that no record leads outside. Raises ValueError."""
    if not pattern.fullmatch(value):
        raise ValueError(f"{value[:100]!r} has a wrong place")
    return value


def _time(value: str) -> str:
    if datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(f"{value[:100]!r} has no time zone")
    return value


def _optional(kind: Callable[[Any], R], value: object) -> R | None:
    return None if value is None else kind(value)


class Remembered:
    """Files of a store, read-only except for curation if ``curate``, with a cache of the records of runs.

    Records of runs are created once and never changed (see `gsec_core.store.runs`), so each is read only once. The cache of a run
    is dropped when the run is gone. For a settled run the listing is cached too.
    """

    def __init__(self, files: Files, curate: bool = False) -> None:
        self.url = files.url
        self.readers = files.readers
        self._files = files
        self._curate = curate
        self._records: dict[str, dict[str, bytes]] = {}
        """Directory of a run -> name -> contents."""
        self._listed: dict[str, tuple[float, set[str]]] = {}
        """Directory of a run -> when it was last listed, and the names of its records."""
        self._settled: set[str] = set()
        self._lock = threading.Lock()

    def settle(self, directory: str) -> None:
        """Treat the run as settled: nothing will be added to it, except attempts to repair damaged shards."""
        self._list(directory)
        self._settled.add(directory)

    def is_settled(self, directory: str) -> bool:
        return directory in self._settled

    def read(self, path: str) -> bytes:
        directory, _, name = path.rpartition("/")
        if not directory.startswith("runs/"):
            return self._files.read(path)
        records = self._records.setdefault(directory, {})
        data = records.get(name)
        if data is None:
            listed = self._listed.get(directory)
            if listed is not None and name not in listed[1] and name != _REQUEST:
                raise FileNotFoundError(path)  # saves two requests to an object store
            data = self._files.read(path)
            json.loads(data)  # raises for a damaged record, so that it is not cached
            records[name] = data
        return data

    def files(self, directory: str) -> set[str]:
        if not directory.startswith("runs/"):
            return self._files.files(directory)
        at, names = self._listed.get(directory, (-math.inf, set()))
        if directory in self._settled and time.monotonic() - at < SETTLED_SECONDS:
            return set(names)
        return self._list(directory)

    def _list(self, directory: str) -> set[str]:
        at = time.monotonic()
        names = self._files.files(directory)
        with self._lock:
            if at < self._listed.get(directory, (-math.inf,))[0]:
                return set(self._listed[directory][1])  # another thread has listed it more recently
            self._listed[directory] = (at, names)
        records = self._records.get(directory, {})
        for name in records.copy().keys() - names:
            records.pop(name, None)
        return set(names)

    def directories(self, directory: str) -> set[str]:
        names = self._files.directories(directory)
        if directory == "runs":
            there = {f"runs/{name}" for name in names}
            self._settled &= there  # first, because settled runs are assumed to have a cached listing
            for remembered in (self._records, self._listed):
                for gone in remembered.copy().keys() - there:
                    remembered.pop(gone, None)
        return names

    def open(self, path: str) -> IO[bytes]:
        return self._files.open(path)

    def leftovers(self, directory: str) -> set[str]:
        return self._files.leftovers(directory)

    def modified(self, path: str) -> datetime:
        return self._files.modified(path)

    def location(self, path: str) -> str:
        return self._files.location(path)

    def create(self, path: str, data: bytes) -> bool:
        if not (self._curate and path.startswith(f"{CURATION}/")):
            _refuse(path)
        return self._files.create(path, data)

    def replace(self, path: str, data: bytes) -> None:
        if not (self._curate and path.startswith(f"{PUBLISHED}/")):
            _refuse(path)
        self._files.replace(path, data)

    def move(self, path: str, to: str) -> None:
        _refuse(path)

    def remove(self, path: str) -> None:
        _refuse(path)


def _refuse(path: str) -> NoReturn:
    raise UnsupportedOperation(f"{path}: the report server writes nothing")
