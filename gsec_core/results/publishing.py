"""The last step of a run: decide whether to publish it.

A run is published under the name of its pipeline if nothing about it is suspicious, the published clustering is the one that
it continues, and that one is not of a newer generation. Otherwise the published clustering stays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gsec_core.config import PipelineConfig
from gsec_core.curation import published as curation
from gsec_core.errors import Refused
from gsec_core.section import output_settings
from gsec_core.stages import align, lineage, refit
from gsec_core.stages.base import Context
from gsec_core.store import Corpus, Publication, Run, Store
from gsec_core.store.publications import pipeline_of
from gsec_core.store.runs import now


@dataclass(frozen=True)
class Verdict:
    """The decision whether a finished run is published."""

    published: bool
    """Whether the run is the pipeline's published one now."""
    warnings: tuple[str, ...]
    """What users should check. A run that is `held` has at least one warning."""
    held: bool
    """Whether the run was not published because of the warnings."""
    moved_far: bool = False
    """Whether more images changed cluster than the settings allow, or no image is in common with the published clustering."""
    replaces: bool = False
    """Whether this call published the run."""
    why_not: str | None = None
    """For a run that could have been published but was not: the reason, or what to do."""


def told(summary: Mapping[str, Any]) -> list[str]:
    """Messages for the user about a finished run: its warnings, and why it is not published. ``summary`` has the fields of its `Verdict`."""
    return [*summary["warnings"], *([summary["why_not"]] if summary["why_not"] else [])]


def published(store: Store, config: PipelineConfig, corpus: Corpus) -> Publication | None:
    """The publication that a run with these settings would continue, or None. Raises Refused if the pipeline publishes another corpus."""
    newest = store.publications.newest(pipeline_of(config, corpus.name))
    if newest is not None and newest.corpus != corpus.name:
        raise Refused(f"pipeline = {newest.pipeline}: it publishes corpus {newest.corpus}, not {corpus.name}. Give another --pipeline.")
    return newest


def publish(context: Context, summary: dict[str, Any]) -> Verdict:
    """Publish a finished run unless something speaks against it, which the verdict then tells. ``summary`` is that of `finishing.summary`."""
    doubts = list(_suspicions(context, summary))
    if context.of_run is not None:
        return Verdict(False, tuple(doubts), bool(doubts))
    news = refit.warnings(context)
    run, store = context.run, Store(context.run.files)
    store.publications.point(pipeline_of(context.config, context.corpus.name))
    newest = published(store, context.config, context.corpus)
    if newest is not None and newest.run_id == run.id:
        curation.tell(store, newest.pipeline, context)
        return Verdict(True, (*doubts, *news, *curation.remarks(store, newest.pipeline)), held=False)
    wide, obstacle = _moved_far(context, summary["moved"]), _obstacle(context, newest)
    warnings = (*doubts, *([wide] if wide else []), *news)
    if obstacle is None:
        if back := _went_back(context, newest):
            warnings = (*warnings, back)
        if doubts or back or (wide and not _asked_for_another(context)):
            return Verdict(False, warnings, True, bool(wide), why_not=f"So it is not published. Look at it, then publish it with: gsec publish --run {run.id}")
        wanted = _next(context, newest, summary["moved"])
        if store.publications.add(wanted, partial(curation.additions, store, context)):
            return Verdict(True, (*warnings, *curation.remarks(store, wanted.pipeline)), False, bool(wide), replaces=True)
        obstacle = _OTHER_NOW
    return Verdict(False, warnings, bool(doubts), bool(wide), why_not=f"It is not published: {obstacle}")


def publish_by_hand(context: Context, summary: dict[str, Any]) -> Publication:
    """Publish a finished run that was held back, or go back to one that was published before. Raises Refused for any other run."""
    run, store, pipeline = context.run, Store(context.run.files), pipeline_of(context.config, context.corpus.name)
    store.publications.point(pipeline)
    newest = published(store, context.config, context.corpus)
    if newest is not None and newest.run_id == run.id:
        curation.tell(store, pipeline, context)
        return newest
    if any(former.run_id == run.id for former in store.publications.newest_first(pipeline)):
        wanted = replace(_next(context, newest, None), left=newest.assignments if newest else None)
    elif obstacle := _obstacle(context, newest):
        raise Refused(f"--run {run.id}: {obstacle}")
    else:
        wanted = _next(context, newest, summary["moved"])
    if not store.publications.add(wanted, partial(curation.additions, store, context)):
        raise Refused(f"--run {run.id}: {_OTHER_NOW}")
    return wanted


def _next(context: Context, newest: Publication | None, moved: float | None) -> Publication:
    """The publication of this run that follows ``newest``."""
    never_given = max(int(lineage.keys_of(context.run).max()) + 1, newest.next_key if newest else 0)
    return Publication(
        pipeline=pipeline_of(context.config, context.corpus.name),
        number=newest.number + 1 if newest else 1,
        run_id=context.run.id,
        corpus=context.corpus.name,
        generation=context.generation.number,
        assignments=context.run.fingerprint(align.STAGE.name),
        next_key=never_given,
        moved=moved,
        left=None,
        at=now(),
    )


_OTHER_NOW = "another run was published after this one was requested, so this one does not continue its cluster keys. The same gsec run again continues them."


def _obstacle(context: Context, newest: Publication | None) -> str | None:
    """Why a run, even without warnings, cannot follow the published one; None if it can."""
    if context.run.request().get("previous") != (newest.previous if newest else None):
        return _OTHER_NOW
    if newest is not None and context.generation.number < newest.generation:
        return f"its generation is {context.generation.number}, and the published generation is {newest.generation}."
    return None


def _suspicions(context: Context, summary: dict[str, Any]) -> list[str]:
    found, config = [], context.config
    if summary["rejected"] > config.max_rejects * summary["images"]:
        found.append(
            f"{summary['rejected']} of {summary['images']} images were rejected, more than max_rejects = {config.max_rejects} allows: "
            "see unusable.csv of gsec export."
        )
    if summary["missing"] > config.ingest.max_shrink * summary["images"]:
        found.append(
            f"{summary['missing']} of {summary['images']} images could not be read, more than ingest.max_shrink = {config.ingest.max_shrink} allows; "
            "is the source complete, and does it answer?"
        )
    return found


def _went_back(context: Context, newest: Publication | None) -> str | None:
    """A warning if a user went back from this clustering, in one step or several: then it must not be published again automatically."""
    if newest is None:
        return None
    assignments = context.run.fingerprint(align.STAGE.name)
    for publication in Store(context.run.files).publications.newest_first(newest.pipeline):
        if publication.left is None or publication.assignments == assignments:
            return None
        if publication.left == assignments:
            return f"A user went back from these clusters to run {publication.run_id}."
    return None


def _moved_far(context: Context, moved: float | None) -> str | None:
    if moved is None:
        nothing = "This clustering has no image in common with the published one, so no cluster could keep its key."
        return nothing if context.run.request()["previous"] is not None else None
    if moved <= context.config.publish.max_moved:
        return None
    return (
        f"{moved:.1%} of the images in common with the published clustering moved to another cluster, more than publish.max_moved = "
        f"{context.config.publish.max_moved} allows."
    )


def _asked_for_another(context: Context) -> bool:
    """Whether the settings differ from those of the clustering that this one continues, so that images are expected to move.

    The number of clusters is ignored if gsec found it for both runs, because no user asked for it.
    """
    previous = context.run.request()["previous"]
    if previous is None:
        return True
    before = Run(context.run.files, previous["run_id"])
    counted = {"clusters"} if before.request()["counting"] and context.run.request()["counting"] else set()
    settings = ({name: value for name, value in output_settings(config).items() if name not in counted} for config in (before.asked(), context.run.asked()))
    return next(settings) != next(settings)
