"""What the front page shows: every run of every store, from small records and listings; no table of images is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.serve.known import DAMAGED, FINISHED, Asked, Damaged, Known, Result, each
from gsec_core.errors import without_secrets
from gsec_core.store import Publication, Run

MOST_RUNS = 200
"""Runs that the page shows; older ones are named in `gsec status`."""


@dataclass(frozen=True)
class Line:
    """One run."""

    store: str
    run: str
    asked: Asked
    state: str
    error: str | None
    progress: list[tuple[str, int, int]]
    """Of a run that is not finished: stage, shards done, shards planned; of the stages that have begun."""
    result: Result | None
    published: bool
    report: str | None
    """Id of the run whose report is to be opened."""


@dataclass(frozen=True)
class Overview:
    """The front page."""

    stores: list[str]
    published: list[tuple[Publication, Result | None]]
    """What is published now, with what its run found."""
    lines: list[Line]
    """Newest first."""
    more: int
    """Runs that are not shown."""
    wrong: list[str]
    """What cannot be read."""


def overview(stores: Sequence[Known]) -> Overview:
    """Everything that the front page shows."""
    found, published, wrong = [], [], []
    for store in stores:
        runs, damaged = store.runs()
        publications, unclear = store.publications()
        wrong += [*damaged, *unclear]
        published += [(publication, _result(store, publication.run_id)) for publication in publications]
        ids = {publication.run_id for publication in publications}
        found += [(asked, run, store, run.id in ids) for asked, run in runs]
    found.sort(key=lambda one: one[0].created, reverse=True)
    lines = each(lambda one: _line(*one), found[:MOST_RUNS])
    return Overview([store.url for store in stores], published, lines, len(found) - len(lines), [without_secrets(one) for one in wrong])


def _result(store: Known, run_id: str) -> Result | None:
    """Of a publication, whose run may be gone or damaged."""
    run = store.find(run_id)
    try:
        return store.result(run) if run else None
    except Damaged:
        return None


def _line(asked: Asked, run: Run, store: Known, published: bool) -> Line:
    try:
        state = store.state(run)
        result = store.result(run)
        if state == FINISHED:
            progress, error = [], None
            drawn = result is not None or _has_report(store.progress(run) if asked.makes_clusters else [])
        else:
            progress, error = store.progress(run), store.error(run)
            drawn = _has_report(progress)
    except Damaged as damaged:
        return Line(store.url, run.id, asked, DAMAGED, without_secrets(str(damaged)), [], None, published, asked.of_run)
    report = asked.of_run or (run.id if drawn and "report" in asked.stages else None)
    begun = [(stage, done, planned) for stage, done, planned in progress if planned]
    return Line(store.url, run.id, asked, state, error and without_secrets(error), begun, result, published, report)


def _has_report(progress: list[tuple[str, int, int]]) -> bool:
    return any(stage == "report" and 0 < planned == done for stage, done, planned in progress)
