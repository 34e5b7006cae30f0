"""The deployments, schedules, limits and automations that a stack file makes on a real Prefect server."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.workers.process import ProcessJobConfiguration

from deployments import apply, config
from deployments.config import POOL, StackConfig
from flows.stages import DESCRIBERS
from gsec_core.errors import GsecError, Refused

A_PIPELINE = 18
"""The number of deployments of a pipeline: the whole pipeline, ingest, 15 stages and assign."""


@pytest.fixture
def client(server: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as found:
        yield found


def stack(folder: Path, *names: str, **more: object) -> StackConfig:
    file = folder / "stack.toml"
    pipelines = "".join(f'[pipelines.{name}]\ncron = "0 3 * * *"\nsettings = {{ source = "in", store = "{folder}/store" }}\n' for name in names)
    file.write_text("".join(f"{name} = {value}\n" for name, value in more.items()) + pipelines)
    return config.load(file)


def records(client: SyncPrefectClient) -> dict[str, list[tuple[str, object]]]:
    """The records on the server, with their ids, which would change if they were made again."""
    flows = {flow.id: flow.name for flow in client.read_flows()}
    return {
        "deployments": sorted((f"{flows[found.flow_id]}/{found.name}", str(found.id)) for found in client.read_deployments()),
        "schedules": sorted((found.name, found.schedules[0].schedule.cron) for found in client.read_deployments() if found.schedules),  # type: ignore[union-attr]
        "automations": sorted((name, client.read_automations_by_name(name)[0].id) for name in (apply.CRASHED, apply.TAKEN, apply.RESUMED)),
    }


def test_applying_a_file_twice_changes_nothing_and_removed_pipelines_are_deleted(client: SyncPrefectClient, tmp_path: Path) -> None:
    assert len(apply.apply(stack(tmp_path, "birds", "fish"))) == 2 * A_PIPELINE + 1
    first = records(client)
    assert first["schedules"] == [("all", "0 12 * * 0"), ("birds", "0 3 * * *"), ("fish", "0 3 * * *")]
    apply.apply(stack(tmp_path, "birds", "fish"))
    assert records(client) == first
    apply.apply(stack(tmp_path, "fish"))
    assert records(client)["deployments"] == [(name, id) for name, id in first["deployments"] if not name.endswith("/birds")]
    apply.apply(stack(tmp_path))
    assert records(client)["deployments"] == []


def test_unwanted_deployments_are_deleted_even_if_there_is_more_than_one_page_of_them(client: SyncPrefectClient, tmp_path: Path) -> None:
    flow_id = client.create_flow_from_name("old")
    for number in range(51):
        client.create_deployment(flow_id=flow_id, name=f"old-{number}", tags=[apply.TAG])
    other = client.create_deployment(flow_id=flow_id, name="somebody-elses")
    assert len(apply.apply(stack(tmp_path, "birds"))) == A_PIPELINE + 1
    kept = client.read_deployments()
    assert len(kept) == A_PIPELINE + 2
    assert other in {found.id for found in kept}
    apply.apply(stack(tmp_path))
    client.delete_deployment(other)


def test_a_schedule_switched_off_by_a_user_stays_off_until_it_is_changed_in_the_file(client: SyncPrefectClient, tmp_path: Path) -> None:
    def active() -> bool:
        [schedule] = client.read_deployment_by_name("gsec/birds").schedules
        return schedule.active

    apply.apply(stack(tmp_path, "birds"))
    there = client.read_deployment_by_name("gsec/birds")
    client.update_deployment_schedule(there.id, there.schedules[0].id, active=False)
    assert not active()
    apply.apply(stack(tmp_path, "birds"))
    assert not active()
    file = tmp_path / "stack.toml"
    file.write_text(file.read_text().replace("0 3 * * *", "0 4 * * *"))
    apply.apply(config.load(file))
    assert active(), "a changed schedule must be active"
    apply.apply(stack(tmp_path))


def test_a_deployment_paused_by_a_user_stays_paused_with_and_without_a_schedule(client: SyncPrefectClient, tmp_path: Path) -> None:
    apply.apply(stack(tmp_path, "birds"))
    for name in ("gsec/birds", "gsec-train/birds"):
        client.pause_deployment(client.read_deployment_by_name(name).id)
    apply.apply(stack(tmp_path, "birds"))
    assert sorted(found.name for found in client.read_deployments() if found.paused) == ["birds", "birds"]
    apply.apply(stack(tmp_path))


def test_images_are_assigned_to_what_the_pipeline_publishes_also_under_another_name(client: SyncPrefectClient, tmp_path: Path) -> None:
    file = tmp_path / "stack.toml"
    file.write_text('[pipelines.birds.settings]\nsource = "in"\nstore = "store"\npipeline = "fowl"\n')
    apply.apply(config.load(file))
    assert client.read_deployment_by_name("gsec-assign-images/birds").parameters["pipeline_name"] == "fowl"
    apply.apply(stack(tmp_path))


def test_job_variables_of_the_dashboard_have_no_effect(client: SyncPrefectClient, tmp_path: Path) -> None:
    """The worker computes a run's environment and command from these variables, and must ignore them."""
    apply.apply(stack(tmp_path))
    given = {"env": {"GSEC_ROOTS": "/"}, "command": "touch x", "working_dir": "/", "stream_output": False}
    # In a thread, as a browser of earlier tests runs an event loop in this one.
    taken = run_coro_as_sync(ProcessJobConfiguration.from_template_and_values(client.read_work_pool(POOL).base_job_template, given))
    assert taken is not None
    assert (taken.env, taken.command, taken.working_dir) == ({}, None, None)


def test_concurrency_limits_follow_the_stack_file(client: SyncPrefectClient, tmp_path: Path) -> None:
    for runs, describers in ((1, 1), (3, 2)):
        apply.apply(stack(tmp_path, runs_at_once=runs, describe_at_once=describers))
        assert client.read_work_pool(POOL).concurrency_limit == runs
        assert client.read_global_concurrency_limit_by_name(DESCRIBERS).limit == describers


def test_an_automation_that_is_no_longer_wanted_is_deleted(client: SyncPrefectClient, tmp_path: Path) -> None:
    apply.apply(stack(tmp_path, resume_crashed="true"))
    (crashed,) = client.read_automations_by_name(apply.CRASHED)
    assert client.read_automations_by_name(apply.RESUMED)
    apply.apply(stack(tmp_path, resume_crashed="false"))
    assert not client.read_automations_by_name(apply.RESUMED)
    assert client.read_automations_by_name(apply.CRASHED)[0].id == crashed.id


def test_applying_without_a_server_is_an_error_that_says_so(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(Refused, match="PREFECT_API_URL"):
        apply.apply(stack(tmp_path))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}), pytest.raises(GsecError, match="the server does not answer"):
        apply.apply(stack(tmp_path))


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (503, GsecError, "503; .*database is locked"),
        (401, Refused, "401; set PREFECT_API_AUTH_STRING"),
        (httpx.ReadTimeout("timed out"), GsecError, "the server does not answer .timed out"),
        (KeyError("no such pool"), GsecError, "a deployment cannot be made .*no such pool"),
    ],
)
def test_an_error_while_a_deployment_is_made_is_reported_in_one_sentence(
    raised: int | Exception, kind: type[GsecError], said: str, client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_deployment(self: SyncPrefectClient, **given: object) -> None:
        if isinstance(raised, Exception):
            raise raised
        answer = httpx.Response(raised, json={"exception_message": "database is locked"}, request=httpx.Request("POST", "http://server/api"))
        raise PrefectHTTPStatusError("not made", request=answer.request, response=answer)

    monkeypatch.setattr(SyncPrefectClient, "create_deployment", create_deployment)
    with pytest.raises(GsecError, match=f"^PREFECT_API_URL = http.*/api: {said}") as error:
        apply.apply(stack(tmp_path, "birds"))
    assert type(error.value) is kind
