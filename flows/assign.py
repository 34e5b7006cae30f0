"""The flow of assign, for deployments: assign new images to the clusters of a run."""

from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import State

from flows import roots
from flows.pipeline import run_pipeline
from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.store import Store


@flow(name="gsec-assign-images", persist_result=False)
def assign(source: str, store: str, run_id: str | None = None, pipeline_name: str | None = None, corpus: str | None = None) -> State[dict[str, Any]]:
    """Assign new images to the clusters of a run. The run and its corpus do not change.

    Args:
        source: A folder, a Parquet file or glob, or WebDataset tars; local or remote.
        store: The store of the run.
        run_id: The run: its id, or the beginning of its id.
        pipeline_name: The pipeline whose published run is used. Give either this or run_id.
        corpus: Name for the corpus of the new images. Empty: made from the source.
    """
    config = PipelineConfig(source=source, store=store, corpus=corpus)
    roots.check(config)
    place = Store.open(store)
    if (run_id is None) == (pipeline_name is None):
        raise Refused("assign: give either run_id or pipeline_name.")
    if pipeline_name is not None:
        published = place.publications.newest(pipeline_name)
        if published is None:
            raise Refused(f"pipeline_name = {pipeline_name}: nothing is published under this name in {place.url}.")
        run_id = published.run_id
    found = place.run(str(run_id))
    state = cast(State[dict[str, Any]], run_pipeline(pipeline.assignment_config(found, config), of_run=found.id, return_state=True))
    state.result()  # raises the error, if any, so that this flow run fails with it too
    return state
