"""The whole DAG as one flow: ingest, then every stage as a flow of its own, then the summary."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.ingest import ingest
from flows.stages import run_flow
from gsec_core import pipeline
from gsec_core.config import AUTO, PipelineConfig
from gsec_core.errors import BadShard, GsecError
from gsec_core.stages.base import Context, add
from gsec_core.store import Store
from tasks import slices
from tasks.progress import shown

T = TypeVar("T")

HELD = "CompletedNotPublished"
"""State of a run that is done but suspicious, as by more rejects than its settings allow, so that the clustering published before it stays."""


MOST_ROWS = 1_000
"""Clusters that the dashboard shows; the report and the cluster table have all."""


@flow(name="gsec", persist_result=False)
def run_pipeline(config: PipelineConfig, redo: list[str], of_run: str | None = None) -> State[dict[str, Any]]:
    """Cluster a source, or with ``of_run`` assign it to the clusters of a run: do what is missing of every stage.

    The result is `pipeline.summary`, with ``changes`` (what ingest found), ``made`` (stage -> what was made now),
    ``set_aside`` (damaged shards that were made anew) and ``counting`` (id of the run that found the number of clusters).
    """
    if flow_run.run_count > 1:
        redo = []  # a retried flow run goes on with the redo that it began
    made: dict[str, dict[str, float]] = {}
    set_aside: list[str] = []
    found: list[dict[str, int]] = []  # what each ingest found
    counting: str | None = None
    if config.clusters == AUTO and of_run is None:
        now, redo = pipeline.split_redo(redo)
        counting, changes = ingest(config, now)
        found.append(changes)
        config = all_stages(config, counting, made, set_aside, lambda context: pipeline.numbered_by(context.run, config))
    run_id, changes = ingest(config, redo, of_run)
    found.append(changes)
    summary = all_stages(config, run_id, made, set_aside, pipeline.finish)
    largest = [{key: _plain(value) for key, value in row.items()} for row in summary["cluster_rows"][:MOST_ROWS]]
    where = summary["report"] or "that of the run whose clusters they are"
    about = f"The {len(largest)} largest of {summary['clusters']} clusters of run {run_id}. Report: {where}"
    shown(create_table_artifact, largest, key="clusters", description=about)
    if summary["descriptions"]:
        about = f"The descriptions of run {run_id}, and what they took, whenever they were asked for."
        shown(create_table_artifact, [summary["descriptions"]], key="descriptions", description=about)
    summary |= {"changes": found[0], "made": made, "set_aside": set_aside, "counting": counting}
    return Completed(name=HELD, message=" ".join(summary["warnings"]), data=summary) if summary["held"] else Completed(data=summary)


def all_stages(config: PipelineConfig, run_id: str, made: dict[str, dict[str, float]], set_aside: list[str], then: Callable[[Context], T]) -> T:
    """Do what is missing of every stage of a run, and return what ``then`` reads from its tables.

    What was made is added to ``made``; damaged shards are made anew and their paths added to ``set_aside``.
    """
    while True:
        try:
            context = slices.context(config, run_id)
            pipeline.check_servers(context)
            for stage in context.run.request()["stages"]:
                add(made.setdefault(stage, {}), run_flow(config, run_id, stage))
            return then(context)
        except BadShard as error:
            again = set_bad_aside(config, error, set_aside)
            get_run_logger().warning("damaged, set aside and to be made anew: %s", ", ".join(again))
            set_aside += again


def _plain(value: object) -> object:
    """A text that the dashboard shows as text. It takes cells for Markdown and HTML: a caption could have it fetch a picture from anywhere.

    An invisible word joiner behind what would begin a tag or an address; entities the dashboard shows as they are written.
    """
    return re.sub(r"[<\]]|:(?=//)", "\\g<0>\u2060", value) if isinstance(value, str) else value


def set_bad_aside(config: PipelineConfig, error: BadShard, before: list[str]) -> list[str]:
    """Rename damaged shards, so that their stage makes them anew. Returns their paths.

    Raises GsecError if one of them was set ``before`` in this flow: a disk that damages what was just written is not
    to be fed for ever.
    """
    again = set(error.paths) & set(before)
    if again:
        raise GsecError(f"{sorted(again)[0]} was damaged, made anew and is damaged again. Check the disk under the store.") from error
    store = Store.open(config.store)
    for path in error.paths:
        shards, name = store.path_of(path)
        shards.set_aside(name)
    slices.context.cache_clear()  # what it had read may change
    return list(error.paths)
