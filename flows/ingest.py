"""The flow of ingest: the corpus brought up to date with its source, and the run of the request."""

from prefect import flow, get_run_logger

from gsec_core import pipeline
from gsec_core.config import PipelineConfig


@flow(name="gsec-ingest", persist_result=False)
def ingest(config: PipelineConfig, redo: list[str], of_run: str | None = None) -> tuple[str, dict[str, int]]:
    """Returns the run's id and the counts of what changed. See `pipeline.request`."""
    run, changes = pipeline.request(config, redo, of_run)
    get_run_logger().info("ingest: %s", changes.counts())
    return run.id, changes.counts()
