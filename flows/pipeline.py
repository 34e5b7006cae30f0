"""The whole DAG as one flow: ingest, then every stage as a flow of its own, then the summary."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from pydantic import Field

from flows import roots
from flows.ingest import ingest
from flows.stages import completed, run_flow
from gsec_core import pipeline
from gsec_core.config import AUTO, PipelineConfig, with_runtime
from gsec_core.errors import BadShard, GsecError, LostTable
from gsec_core.results import finishing
from gsec_core.stages import assign, base, encode, refit
from gsec_core.stages.base import Context, add
from gsec_core.stages.describe import RETRY
from gsec_core.store import Store
from gsec_core.store.publications import pipeline_of
from tasks import artifacts, engine, progress, slices

T = TypeVar("T")

Redo = Annotated[str, Field(json_schema_extra={"enum": [*(stage.name for stage in pipeline.ALL_STAGES if stage is not assign.STAGE), RETRY]})]


@flow(name="gsec", persist_result=False)
def run_pipeline(config: PipelineConfig, redo: list[Redo] | None = None, of_run: str | None = None) -> State[dict[str, Any]]:
    """Bring the corpus up to date with its source, do what is missing of every stage, and publish the clustering if nothing about it is suspicious.

    The result is that of `finishing.finish`, with ``changes`` (what ingest found), ``made`` (stage -> sums of `run_stage`),
    ``set_aside`` (damaged shards that were made again) and ``counting`` (id of the run that found the number of clusters).

    Args:
        config: The settings. If you change one that changes the output, a new run is made, which does only the stages that depend on it.
        redo: Stages to do again, each with all stages that depend on it. `describe-failed` asks again for the descriptions that failed.
        of_run: Id of a run to whose clusters the images are assigned. Empty: new clusters are made.
    """
    roots.check(config)
    with engine.opened(config):
        again: list[str] = list(redo or [])
        made: dict[str, dict[str, float]] = {}
        set_aside: list[str] = []
        found: list[dict[str, int]] = []  # what each ingest found
        counting: str | None = None
        if config.clusters == AUTO and of_run is None:
            now, later = pipeline.split_redo(again, config)
            if before := pipeline.numbered_before(config, again):
                config, counting = before
            else:
                counting, changes = ingest(config, now)
                found.append(changes)
                config = all_stages(config, counting, made, set_aside, lambda context: pipeline.numbered_by(context.run, config))
            again = later
        run_id, changes = ingest(config, again, of_run, counting)
        found.append(changes)
        summary = all_stages(config, run_id, made, set_aside, finishing.finish)
        summary |= {"changes": found[0], "made": made, "set_aside": set_aside, "counting": counting}
        context = slices.context(config, run_id)
        if of_run is None:  # at once: if the process is killed before this, its rerun finds the run published already and reports no news
            artifacts.tell(summary, pipeline_of(context.config, context.corpus.name))
        artifacts.show_run(summary, encode.reasons(context) if summary["rejected"] + summary["missing"] else [])
        return completed(summary, summary)


def all_stages(config: PipelineConfig, run_id: str, made: dict[str, dict[str, float]], set_aside: list[str], then: Callable[[Context], T]) -> T:
    """Do what is missing of every stage of a run, and return the result of ``then`` for its context.

    The sums of each stage are added to ``made``. Damaged shards are made again, and their paths added to ``set_aside``. So are tables that another run,
    such as the published one, has lost.
    """
    lost: LostTable | None = None
    restored: list[tuple[object, ...]] = []
    while True:
        try:
            if lost is not None:
                restore(config, lost)
                restored.append(lost.args)
                lost = None
            context = slices.context(config, run_id)
            if context.run.is_finished():  # reads only records and listings, while beginning the stages again would read every shard
                for name in context.run.stage_names():
                    add(made.setdefault(name, {}), _there(context, name))
                return then(context)
            pipeline.check_servers(context)
            done: list[str] = []
            while left := [stage for stage in context.run.stage_names() if stage not in done]:
                progress.check_signals()
                base.begin(context, pipeline.stage(left[0]))
                complete = context.run.is_complete(left[0])  # a flow takes a second to start
                add(made.setdefault(left[0], {}), _there(context, left[0]) if complete else run_flow(config, run_id, left[0]))
                done.append(left[0])
                if left[0] == refit.STAGE.name:
                    context = _decided(config, run_id)
            return then(context)
        except LostTable as error:
            if error.run_id == run_id or error.args in restored or (lost is not None and error.args == lost.args):
                raise
            lost = error
        except BadShard as error:
            again = set_bad_aside(config, error, set_aside)
            get_run_logger().warning("damaged, set aside and made again: %s", ", ".join(again))
            set_aside += again


def restore(config: PipelineConfig, lost: LostTable) -> None:
    """Do what is missing of the stage that makes a lost table, in its own run and with that run's settings."""
    theirs = with_runtime(Store.open(config.store).run(lost.run_id).config(), config)
    roots.check(theirs)
    get_run_logger().warning("run %s has lost shards of table %s: its stage %s makes them again", lost.run_id, lost.table, lost.stage)
    run_flow(theirs, lost.run_id, lost.stage)
    slices.forget()  # the context in its cache is of that run


def _there(context: Context, name: str) -> dict[str, float]:
    """Sums, as of `run_stage`, for a stage of which nothing is missing."""
    planned = context.run.stages()[name]["tables"]
    return {"shards": 0, "there": sum(len(planned.get(step.tables[0], ())) for step in pipeline.stage(name).steps)}


def _decided(config: PipelineConfig, run_id: str) -> Context:
    """Context of the run after the decision about the published model, which may change the number of clusters.

    The servers are checked here, because only the decision determines which of them the run needs.
    """
    context = slices.context(config, run_id)
    get_run_logger().info("refit: %s", refit.in_words(context))
    if context.config.clusters != context.run.config().clusters:
        slices.forget()
        context = slices.context(config, run_id)
    pipeline.check_servers(context)
    return context


def set_bad_aside(config: PipelineConfig, error: BadShard, before: list[str]) -> list[str]:
    """Rename damaged shards, so that their stage makes them again. Returns their paths.

    Raises GsecError if one of them is in ``before``, the shards set aside earlier in this flow: then the disk damages
    new shards, and making them again would never end.
    """
    again = set(error.paths) & set(before)
    if again:
        raise GsecError(f"{sorted(again)[0]} was damaged, made again and is damaged again. Check the disk under the store.") from error
    store = Store.open(config.store)
    for path in error.paths:
        shards, name = store.shard_at(path)
        shards.set_aside(name)
    slices.forget()  # tables in its cache may change
    return list(error.paths)
