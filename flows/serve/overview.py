"""What the front page shows: every run of every store, from small records and listings; no table of images is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flows.serve.known import DAMAGED, FINISHED, Asked, Damaged, Known, Result, curations, each
from gsec_core.errors import without_secrets
from gsec_core.store import Publication, Run

MOST_RUNS = 200
"""Runs that a page shows."""


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
    held: bool
    """Whether it finished after what is published now was published, and was not published itself: it was held back, or another was faster."""
    report: str | None
    """Id of the run whose report is to be opened."""
    explorable: bool
    """Whether its images can be looked into: it is finished, and has clusters of its own."""


@dataclass(frozen=True)
class Published:
    """What a pipeline publishes now."""

    store: str
    publication: Publication
    result: Result | None
    """What its run found; None if that is gone, damaged, or of an older gsec."""
    address: str
    """Of its report: one to keep, unless a store that was named before has a pipeline of the same name."""
    explorer: str
    """Where its images are looked into: as the former."""


@dataclass(frozen=True)
class Overview:
    """The front page, or one of those behind it with older runs."""

    stores: list[str]
    published: list[Published]
    lines: list[Line]
    """Newest first."""
    page: int
    """From 1."""
    pages: int
    count: int
    """Runs on all pages."""
    wrong: list[str]
    """What cannot be read."""


def overview(stores: Sequence[Known], page: int = 1) -> Overview:
    """Everything that a page shows."""
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
    """Of a publication, whose run may be gone or damaged."""
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
    held = not published and result is not None and not result.published and (since is None or result.at > since.at)
    return Line(
        store.url, run.id, asked, state, error and without_secrets(error), begun, result, published, held, report, state == FINISHED and asked.makes_clusters
    )


def _has_report(progress: list[tuple[str, int, int]]) -> bool:
    return any(stage == "report" and 0 < planned == done for stage, done, planned in progress)
