"""The automations for runs whose process is lost. They wait only ten seconds here, the least that Prefect allows."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Pending, Running

from deployments import apply, config

from ..command import wait

LEAST = timedelta(seconds=10)


@pytest.fixture
def client(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setattr(apply, "BEGINS_WITHIN", LEAST)
    monkeypatch.setattr(apply, "SETTLES_WITHIN", LEAST)
    stack = tmp_path / "stack.toml"
    stack.write_text("".join(f'[pipelines.{name}.settings]\nsource = "in"\nstore = "{tmp_path}/store"\n' for name in ("birds", "fish", "frogs")))
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as found:
        apply.apply(config.load(stack))
        yield found
        stack.write_text("")
        apply.apply(config.load(stack))
        for name in (apply.CRASHED, apply.TAKEN, apply.RESUMED):
            found.delete_automation(found.read_automations_by_name(name)[0].id)


def state_of(client: SyncPrefectClient, run: UUID) -> str:
    state = client.read_flow_run(run).state
    return str(state and state.name)


def report(client: SyncPrefectClient, run: UUID, *states: State) -> None:
    """Set the states as a worker and a process would, with a pause after each, as events within a moment may be reordered."""
    for state in states:
        client.set_flow_run_state(run, state)
        time.sleep(1)


def test_lost_and_crashed_pipeline_runs_are_restarted_a_limited_number_of_times(client: SyncPrefectClient) -> None:
    deployments = ("gsec/birds", "gsec/fish", "gsec/frogs", "gsec-encode/birds")  # four deployments, because runs of one would wait for each other
    taken, crashing, broken, once = (client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id).id for name in deployments)
    report(client, taken, Pending())
    report(client, broken, Pending(), Crashed())  # it crashed before it ran: its worker could not load it, and could not the next time either
    report(client, once, Pending(), Running(), Crashed())  # a single stage that a user started, who watches it
    for _ in range(apply.MOST_BEGINNINGS):
        report(client, crashing, Pending(), Running(), Crashed())
        wait(lambda: state_of(client, crashing) == "AwaitingRetry", 120)
    report(client, crashing, Pending(), Running(), Crashed())
    wait(lambda: state_of(client, taken) == "AwaitingRetry", 120)
    deadline = time.monotonic() + 2 * LEAST.total_seconds()
    while time.monotonic() < deadline:
        assert [state_of(client, run) for run in (crashing, broken, once)] == ["Crashed"] * 3
        time.sleep(1)
