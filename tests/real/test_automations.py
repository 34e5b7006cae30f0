"""What a server does by itself about runs of which nobody hears any more; its automations wait for ten seconds here, the least that it takes."""

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
    """As a worker and a process report them; not within a moment, in which events may change places."""
    for state in states:
        client.set_flow_run_state(run, state)
        time.sleep(1)


def test_runs_are_begun_again_as_often_as_it_makes_sense(client: SyncPrefectClient) -> None:
    deployments = ("gsec/birds", "gsec/fish", "gsec/frogs", "gsec-encode/birds")  # the runs of one would wait for each other
    taken, crashing, broken, once = (client.create_flow_run_from_deployment(client.read_deployment_by_name(name).id).id for name in deployments)
    report(client, taken, Pending())
    report(client, broken, Pending(), Crashed())  # what its worker cannot load, it could not load the next time either
    report(client, once, Pending(), Running(), Crashed())  # somebody started one stage, and looks at it
    for _ in range(apply.MOST_BEGINNINGS):
        report(client, crashing, Pending(), Running(), Crashed())
        wait(lambda: state_of(client, crashing) == "AwaitingRetry", 60)
    report(client, crashing, Pending(), Running(), Crashed())
    wait(lambda: state_of(client, taken) == "AwaitingRetry", 60)
    deadline = time.monotonic() + 2 * LEAST.total_seconds()
    while time.monotonic() < deadline:
        assert [state_of(client, run) for run in (crashing, broken, once)] == ["Crashed"] * 3
        time.sleep(1)
