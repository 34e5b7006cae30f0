"""The last step of a run: whether it may stand for the collection from now on.

A run publishes under the name of its pipeline if nothing about it is suspicious and what is published is the clustering that
it continues, of a generation that is not newer. Otherwise what was published stays.
"""

from dataclasses import dataclass
from typing import Any

from gsec_core.config import PipelineConfig, output_settings
from gsec_core.errors import Refused
from gsec_core.stages import lineage
from gsec_core.stages.base import Context
from gsec_core.store import Corpus, Publication, Run, Store
from gsec_core.store.runs import now


@dataclass(frozen=True)
class Verdict:
    """What became of a finished run."""

    published: bool
    """Whether it is what the pipeline publishes now."""
    warnings: tuple[str, ...]
    """What people should look at; a run that is `held` has at least one."""
    held: bool
    """Whether it was not published because of them."""
    moved_far: bool = False
    """Whether more of the images that the published clustering has too are in other clusters than the settings allow."""


def pipeline_of(config: PipelineConfig, corpus: str) -> str:
    """The name that runs of these settings publish under."""
    return corpus if config.pipeline is None else config.pipeline


def published(store: Store, config: PipelineConfig, corpus: Corpus) -> Publication | None:
    """What a run of these settings would continue. Raises Refused if the pipeline publishes another corpus."""
    newest = store.publications.newest(pipeline_of(config, corpus.name))
    if newest is not None and newest.corpus != corpus.name:
        raise Refused(f"pipeline = {newest.pipeline}: it publishes corpus {newest.corpus}, and not {corpus.name}. Give another --pipeline.")
    return newest


def publish(context: Context, summary: dict[str, Any]) -> Verdict:
    """Publish a finished run if that is right; say why if not. ``summary`` is what `pipeline.summary` says of it."""
    suspicions = list(_suspicions(context, summary))
    if context.of_run is not None:
        return Verdict(False, tuple(suspicions), bool(suspicions))
    store, run = Store(context.run.files), context.run
    newest = published(store, context.config, context.corpus)
    if newest is not None and newest.run_id == run.id:
        store.publications.point(newest)
        return Verdict(True, tuple(suspicions), held=False)
    wide = _moved_far(context, summary["moved"])
    if suspicions or (wide and not _asked_for_another(context)):
        held = [*suspicions, *([wide] if wide else [])]
        return Verdict(False, (*held, f"So it is not published. After a look at it: gsec publish --run {run.id}"), held=True, moved_far=bool(wide))
    warnings = [wide] if wide else []
    obstacle = _obstacle(context, newest)
    if obstacle is None and not store.publications.add(_next(context, newest, summary["moved"])):
        obstacle = _OTHER_NOW
    return Verdict(obstacle is None, (*warnings, *([f"It is not published: {obstacle}"] if obstacle else [])), held=False, moved_far=bool(wide))


def publish_by_hand(context: Context, summary: dict[str, Any]) -> Publication:
    """Publish a finished run that was held back, or one that was published before. Raises Refused for any other."""
    publications, run = Store(context.run.files).publications, context.run
    newest = published(Store(context.run.files), context.config, context.corpus)
    before = {former.run_id for former in publications.all(pipeline_of(context.config, context.corpus.name))}
    if newest is not None and newest.run_id == run.id:
        publications.point(newest)
        return newest
    if run.id not in before and (obstacle := _obstacle(context, newest)):
        raise Refused(f"--run {run.id}: {obstacle}")
    wanted = _next(context, newest, summary["moved"])
    if not publications.add(wanted):
        raise Refused(f"--run {run.id}: {_OTHER_NOW}")
    return wanted


def _next(context: Context, newest: Publication | None, moved: float | None) -> Publication:
    """What comes after ``newest``."""
    never_given = max(int(lineage.keys_of(context.run).max()) + 1, newest.next_key if newest else 0)
    name = pipeline_of(context.config, context.corpus.name)
    number = newest.number + 1 if newest else 1
    return Publication(name, number, context.run.id, context.corpus.name, context.generation.number, never_given, moved, now())


_OTHER_NOW = "another was published since it was asked for, whose cluster keys it does not continue. The same gsec run again makes one that does."


def _obstacle(context: Context, newest: Publication | None) -> str | None:
    """Why a run without fault cannot follow what is published."""
    if context.run.request().get("previous") != (newest.previous if newest else None):
        return _OTHER_NOW
    if newest is not None and context.generation.number < newest.generation:
        return f"it is of generation {context.generation.number}, and what is published of generation {newest.generation}."
    return None


def _suspicions(context: Context, summary: dict[str, Any]) -> list[str]:
    found, config = [], context.config
    if summary["rejected"] > config.max_rejects * summary["images"]:
        found.append(
            f"{summary['rejected']} of {summary['images']} images were rejected, more than max_rejects = {config.max_rejects} allows; "
            "the reasons are in the column `reason` of the embeddings."
        )
    if summary["missing"] > config.ingest.max_shrink * summary["images"]:
        found.append(
            f"{summary['missing']} of {summary['images']} images could not be read, more than ingest.max_shrink = {config.ingest.max_shrink} allows; "
            "is the source whole, and does it answer?"
        )
    return found


def _moved_far(context: Context, moved: float | None) -> str | None:
    if moved is None or moved <= context.config.publish.max_moved:
        return None
    return (
        f"{moved:.1%} of the images that the published clustering has too are in another cluster now, "
        f"more than publish.max_moved = {context.config.publish.max_moved} allows."
    )


def _asked_for_another(context: Context) -> bool:
    """Whether the settings are not those of the clustering that this one continues, so that one expects images to move."""
    previous = context.run.request()["previous"]
    return previous is None or output_settings(Run(context.run.files, previous["run_id"]).config()) != output_settings(context.config)
