"""The flows under the pinned version of Prefect: their states and artifacts, and the server's scheduler."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
)

from flows.pipeline import run_pipeline
from flows.stages import HELD, run_flow
from gsec_core import pipeline
from gsec_core.errors import Refused
from tasks.progress import watched

from ..command import asking, wait
from ..pictures import settings, write_pictures


@pytest.fixture(autouse=True)
def _prefect(server: str) -> Iterator[None]:
    with asking(server):
        yield


def test_a_completed_run_has_artifacts_of_clusters_progress_and_stages(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(20)), tmp_path / "store")
    state = run_pipeline(config, [], return_state=True)
    assert (state.is_completed(), state.name) == (True, "Completed")
    assert state.result()["made"]["encode"]["encoded"] == 20
    run = [state.state_details.flow_run_id]
    its, of_its_stages = FlowRunFilter(id=FlowRunFilterId(any_=run)), FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=run))
    with get_client(sync_client=True) as client:
        [table] = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["clusters"])), flow_run_filter=its)
        progress = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="encode-")), flow_run_filter=of_its_stages)
    assert '"cluster": 0' in table.data
    assert [artifact.data for artifact in progress] == [100.0] * 3, "each slice must have a progress bar at 100%"

    again = run_pipeline(config.model_copy(update={"clusters": 3}), [], return_state=True)
    made = again.result()["made"]
    assert (made["encode"], made["baseline"]["shards"]) == ({"shards": 0, "there": 3}, 3)
    its = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[again.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        begun = {run.name.partition("-")[0] for run in client.read_flow_runs(flow_run_filter=its)}
        shown = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["stages"])))
    assert begun & {"encode", "baseline"} == {"baseline"}, "a stage with nothing to do must not begin a flow"
    assert '"stage": "encode", "shards made": 0, "shards there": 3' in next(one.data for one in shown if again.result()["run_id"] in one.description)


def test_a_run_with_too_many_rejects_completes_in_a_state_with_a_warning(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    (source / "bad.jpg").write_text("no image")
    state = run_pipeline(settings(source, tmp_path / "store"), [], return_state=True)
    assert (state.is_completed(), state.name) == (True, HELD)
    assert "1 of 11 images were rejected" in (state.message or "")


def test_a_refused_run_fails_the_flow_with_the_original_error(tmp_path: Path) -> None:
    state = run_pipeline(settings(write_pictures(tmp_path / "in", range(3)), tmp_path / "store", clusters=9), [], return_state=True)
    assert state.is_failed()
    with pytest.raises(Refused, match="clusters = 9"):
        state.result()


def test_a_slice_is_retried_when_the_store_fails_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsec_core.store import files

    config = settings(write_pictures(tmp_path / "in", range(10)), tmp_path / "store", clusters=2)
    run, _ = pipeline.request(config)
    real, failures = os.link, [OSError(28, "No space left on device"), OSError(5, "Input/output error")]

    def link(source: str, target: str) -> None:
        if "/embeddings/" in target and failures:
            raise failures.pop()
        real(source, target)

    class Told:
        units = done = made = 0

        def begin(self, stage: str, units: int, unit: str, there: int) -> None:
            self.units = units

        def advance(self, stage: str, by: int) -> None:
            self.done += by

        def end(self, stage: str, sums: Mapping[str, float]) -> None:
            self.made = sums["ok"]

    monkeypatch.setattr(files.os, "link", link)
    told = Told()
    with watched(told):
        assert run_flow(config, run.id, "encode")["ok"] == 10
    assert not failures
    assert (told.done, told.units, told.made) == (10, 10, 10), "images that a slice does twice must count once"


@flow
def nightly() -> None:
    """Never run here; only scheduled."""


def test_the_scheduler_creates_runs_of_a_deployment_with_a_cron_schedule() -> None:
    """With SQLAlchemy 2.1 Prefect's scheduler silently creates none."""
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(nightly)
        from prefect.client.schemas.actions import DeploymentScheduleCreate
        from prefect.client.schemas.schedules import CronSchedule

        deployment = client.create_deployment(flow_id, "nightly", schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)])
        its = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
        wait(lambda: any(run.state and run.state.is_scheduled() for run in client.read_flow_runs(flow_run_filter=its)), 300)
