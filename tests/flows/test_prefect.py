"""Prefect itself, as pinned: the flows' states on a temporary server, and a server that really schedules."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.pipeline import run_pipeline
from flows.stages import HELD, run_flow
from gsec_core import pipeline
from gsec_core.errors import Refused

from ..command import wait
from ..pictures import settings, write_pictures


@pytest.fixture(scope="module")
def api() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.mark.usefixtures("api")
def test_a_run_is_completed_and_shows_its_clusters(tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(20)), tmp_path / "store")
    state = run_pipeline(config, [], return_state=True)
    assert (state.is_completed(), state.name) == (True, "Completed")
    assert state.result()["made"]["encode"]["encoded"] == 20
    with get_client(sync_client=True) as client:
        [table] = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["clusters"])))
        progress = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(like_="encode-")))
    assert '"cluster": 0' in table.data
    assert [artifact.data for artifact in progress] == [100.0] * 3, "a bar a slice, filled"


@pytest.mark.usefixtures("api")
def test_too_many_rejects_complete_with_a_warning(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "in", range(10))
    (source / "bad.jpg").write_text("no image")
    state = run_pipeline(settings(source, tmp_path / "store"), [], return_state=True)
    assert (state.is_completed(), state.name) == (True, HELD)
    assert "1 of 11 images were rejected" in (state.message or "")


@pytest.mark.usefixtures("api")
def test_a_refusal_fails_the_flow_with_its_own_error(tmp_path: Path) -> None:
    state = run_pipeline(settings(write_pictures(tmp_path / "in", range(3)), tmp_path / "store", clusters=9), [], return_state=True)
    assert state.is_failed()
    with pytest.raises(Refused, match="clusters = 9"):
        state.result()


@pytest.mark.usefixtures("api")
def test_a_slice_is_retried_when_the_store_fails_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gsec_core.store import files

    config = settings(write_pictures(tmp_path / "in", range(10)), tmp_path / "store", clusters=2)
    run, _ = pipeline.request(config)
    real, failures = os.link, [OSError(28, "No space left on device"), OSError(5, "Input/output error")]

    def link(source: str, target: str) -> None:
        if "/embeddings/" in target and failures:
            raise failures.pop()
        real(source, target)

    monkeypatch.setattr(files.os, "link", link)
    assert run_flow(config, run.id, "encode")["ok"] == 10
    assert not failures


@flow
def nightly() -> None:
    """Never run here; only scheduled."""


def test_a_cron_deployment_yields_scheduled_runs(server: str) -> None:
    """With SQLAlchemy 2.1 Prefect's scheduler creates none, silently."""
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        flow_id = client.create_flow(nightly)
        from prefect.client.schemas.actions import DeploymentScheduleCreate
        from prefect.client.schemas.schedules import CronSchedule

        client.create_deployment(flow_id, "nightly", schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=True)])
        wait(lambda: any(run.state and run.state.is_scheduled() for run in client.read_flow_runs()), 60)
