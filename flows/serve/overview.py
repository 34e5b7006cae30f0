"""Content of the front page: every run of every store, from small records and listings. No table of images is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.serve.known import DAMAGED, FINISHED, Asked, Damaged, Known, Result, curations, each
from gsec_core.errors import without_secrets
from gsec_core.store import Publication, Run

MOST_RUNS = 200
"""Runs on one page."""


@dataclass(frozen=True)
class Line:
    """One run in the list."""

    store: str
    run: str
    asked: Asked
    state: str
    error: str | None
    progress: list[tuple[str, int, int]]
    """(stage, shards done, shards planned) for each stage that has begun; empty for a finished run."""
    result: Result | None
    published: bool
    held: bool
    """Whether the run finished after the current publication and was not published: it was held back, or another run was faster."""
    report: str | None
    """Id of the run whose report the page links to."""
    explorable: bool
    """Whether the run can be explored: it is finished, and has clusters of its own."""


@dataclass(frozen=True)
class Published:
    """What a pipeline publishes now."""

    store: str
    publication: Publication
    result: Result | None
    """Result of the published run; None if the run is gone or damaged, or an older gsec made it."""
    address: str
    """Address of the report: a permanent one, unless an earlier store has a pipeline of the same name."""
    explorer: str
    """Address of the explorer, permanent in the same case."""


@dataclass(frozen=True)
class Overview:
    """The front page, or a later page with older runs."""

    stores: list[str]
    published: list[Published]
    lines: list[Line]
    """Newest first."""
    page: int
    """Number of this page, from 1."""
    pages: int
    count: int
    """Number of runs on all pages."""
    wrong: list[str]
    """Messages about records that cannot be read."""


def overview(stores: Sequence[Known], page: int = 1) -> Overview:
    """Collect everything that page number ``page`` shows."""
    found, wrong = [], []
    published: list[Published] = []
    for store in stores:
        runs, damaged = store.runs()
        publications, unclear = store.publications()
        wrong += [*damaged, *unclear, *curations(store, publications)[1]]
        taken = {before.publication.pipeline for before in published}
        published += [_published(store, publication, publication.pipeline in taken) for publication in publications]
        now = {publication.pipeline: publication for publication in publications}
        found += [(asked, run, store, now) for asked, run in runs]
    found.sort(key=lambda one: one[0].created, reverse=True)
    lines = each(lambda one: _line(*one), found[(page - 1) * MOST_RUNS : page * MOST_RUNS])
    pages = max(1, -(-len(found) // MOST_RUNS))
    return Overview([store.url for store in stores], published, lines, page, pages, len(found), [without_secrets(one) for one in wrong])


def _published(store: Known, publication: Publication, taken: bool) -> Published:
    of_run = f"/runs/{publication.run_id}"
    report, explorer = (
        (f"{of_run}/report/index.html", f"{of_run}/explore") if taken else (f"/published/{publication.pipeline}", f"/explore/{publication.pipeline}")
    )
    return Published(store.url, publication, _result(store, publication.run_id), report, explorer)


def _result(store: Known, run_id: str) -> Result | None:
    """Result of a published run; None if the run is gone or damaged."""
    run = store.find(run_id)
    try:
        return store.result(run) if run else None
    except Damaged:
        return None


def _line(asked: Asked, run: Run, store: Known, now: Mapping[str, Publication]) -> Line:
    published = any(publication.run_id == run.id for publication in now.values())
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
        return Line(store.url, run.id, asked, DAMAGED, without_secrets(str(damaged)), [], None, published, False, asked.of_run, False)
    report = asked.of_run or (run.id if drawn and "report" in asked.stages else None)
    begun = [(stage, done, planned) for stage, done, planned in progress if planned]
    since = now.get(asked.pipeline)
    held = asked.makes_clusters and not published and result is not None and not result.published and (since is None or result.at > since.at)
    return Line(
        store.url, run.id, asked, state, error and without_secrets(error), begun, result, published, held, report, state == FINISHED and asked.makes_clusters
    )


def _has_report(progress: list[tuple[str, int, int]]) -> bool:
    return any(stage == "report" and 0 < planned == done for stage, done, planned in progress)
