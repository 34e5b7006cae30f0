"""The flow of ingest: bring the corpus up to date with its source, and find or create the run of the request."""

import time

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows import roots
from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from tasks import progress


@flow(name="gsec-ingest", persist_result=False)
def ingest(config: PipelineConfig, redo: list[str] | None = None, of_run: str | None = None, counting: str | None = None) -> tuple[str, dict[str, int]]:
    """Bring the corpus up to date with its source. Returns the run's id and the counts of what changed. See `pipeline.request`.

    Args:
        config: The settings.
        redo: Stages to do again in this run.
        of_run: The run to whose clusters the images are assigned. Empty: new clusters are made.
        counting: The run that found the number of clusters. Empty: the settings give the number.
    """
    roots.check(config)
    started = time.monotonic()
    progress.begin("ingest", 0, "images", 0)
    asked_by = flow_run.root_flow_run_id if redo else None  # a flow run that is restarted after a crash does not redo the stages twice
    run, changes = pipeline.request(config, redo or [], of_run, counting, asked_by)
    progress.end("ingest", {**changes.counts(), "seconds": round(time.monotonic() - started, 1)})
    get_run_logger().info("ingest: %s", changes.counts())
    if linked := changes.counts().get("linked_folders"):
        get_run_logger().warning("%d links to folders were left out. To follow them: --set ingest.follow_links=true.", linked)
    return run.id, changes.counts()
