"""What the front page shows: every run of every store, from small files and listings; no table of images is read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gsec_core import status
from gsec_core.config import AUTO
from gsec_core.errors import GsecError, Unreachable
from gsec_core.store import Publication, Run, Store

MOST_RUNS = 200
"""Runs that the page shows; older ones are named in `gsec status`."""

FINISHED, DAMAGED = "finished", "damaged"

UNREADABLE = (GsecError, OSError, ValueError, KeyError)
"""What a damaged or half-pruned run raises: it is shown as one, and hides no other."""


@dataclass(frozen=True)
class Line:
    """One run."""

    run: str
    created: str
    corpus: str
    pipeline: str
    kind: str
    """clusters, assigns to another run, or counts clusters."""
    clusters: object
    state: str
    error: str | None
    progress: tuple[tuple[str, int, int], ...]
    """Of a run that is not finished: stage, shards done, shards planned."""
    result: dict[str, Any]
    """What `Run.result` says of a finished run; empty of others."""
    published: bool
    report: str | None
    """Id of the run whose report is to be opened."""


@dataclass(frozen=True)
class Overview:
    """The front page."""

    published: list[tuple[Publication, dict[str, Any]]]
    """What is published now, with the run's result."""
    lines: list[Line]
    """Newest first."""
    more: int
    """Runs that are not shown."""


def overview(stores: Sequence[Store]) -> Overview:
    """Everything that the front page shows."""
    published = [(publication, result_of(Run(store.files, publication.run_id))) for store in stores for publication in publications(store)]
    ids = {publication.run_id for publication, _ in published}
    found = sorted((pair for store in stores for pair in _created(store)), key=lambda pair: pair[0], reverse=True)
    return Overview(published, [_line(run, ids) for _, run in found[:MOST_RUNS]], max(0, len(found) - MOST_RUNS))


def publications(store: Store) -> list[Publication]:
    """What each pipeline of a store publishes now."""
    newest = (store.publications.newest(pipeline) for pipeline in store.publications.pipelines())
    return [publication for publication in newest if publication is not None]


def runs(store: Store) -> list[Run]:
    """Newest first."""
    return [run for _, run in sorted(_created(store), key=lambda pair: pair[0], reverse=True)]


def find(stores: Sequence[Store], run_id: str) -> Run | None:
    """The run of this id, whichever store it is in."""
    return next((run for store in stores if (run := Run(store.files, run_id)).exists()), None)


def state_of(run: Run) -> str:
    """As `gsec status` calls it."""
    if _recorded(run) is not None:
        return FINISHED
    return status.state(run, [attempt["end"] for attempt in run.attempts()])


def request_of(run: Run) -> dict[str, Any]:
    """Its request, which never changes: read once."""
    return _request(run)


def _created(store: Store) -> Iterator[tuple[str, Run]]:
    for name in store.files.directories("runs"):
        run = Run(store.files, name)
        try:
            yield str(_request(run)["created"]), run
        except Unreachable:
            raise
        except UNREADABLE:
            continue  # pruned by half, or not written yet: it has no request


def _line(run: Run, published: set[str]) -> Line:
    request = _request(run)
    config, of_run = request["config"], request.get("of_run")
    kind = "assigns" if of_run else "counts" if config["clusters"] == AUTO else "clusters"
    about = (run.id, request["created"], request["corpus"], config.get("pipeline") or request["corpus"], kind, config["clusters"])
    try:
        state = state_of(run)
        ends = [] if state == FINISHED else [attempt["end"] for attempt in run.attempts()]
        error = ends[-1].get("error") if ends and ends[-1] and state != FINISHED else None
        progress = () if state == FINISHED else tuple((stage, *run.shards_done(stage)) for stage in request["stages"])
        report = of_run or (run.id if "report" in request["stages"] and run.is_complete("report") else None)
    except Unreachable:
        raise
    except UNREADABLE as unreadable:
        return Line(*about, DAMAGED, str(unreadable), (), {}, run.id in published, None)
    return Line(*about, state, error, progress, result_of(run), run.id in published, report)


def result_of(run: Run) -> dict[str, Any]:
    """What `Run.result` says; empty of a run that is not finished, or that an older gsec finished."""
    return _recorded(run) or {}


_results: dict[tuple[str, str], dict[str, Any]] = {}


def _recorded(run: Run) -> dict[str, Any] | None:
    """What the run recorded when it was finished. It never changes: read once."""
    key = (run.files.url, run.id)
    if key not in _results and (found := run.result()) is not None:
        _results[key] = found
    return _results.get(key)


@lru_cache(maxsize=10_000)
def _request(run: Run) -> dict[str, Any]:
    return run.request()
