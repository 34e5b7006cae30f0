"""What `gsec deploy` puts on a server. That the automations work is proved by the tests on a real server."""

import pytest
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import apply
from deployments.config import StackConfig
from gsec_core.errors import Refused


def test_automations_that_restart_runs_do_not_expect_the_state_that_they_set() -> None:
    """Prefect may read the event of this state before it removes the trigger that fired. It would fire twice."""
    restarted = []
    for automation in apply.automations(StackConfig()):
        (action,) = automation.actions
        assert isinstance(action, ChangeFlowRunState)
        assert isinstance(automation.trigger, EventTrigger)
        if action.name == "AwaitingRetry":
            restarted.append(automation.name)
            assert not automation.trigger.expect & {f"prefect.flow-run.{action.name}"}
    assert restarted == [apply.TAKEN, apply.RESUMED]


@pytest.mark.parametrize("address", [None, ""])
def test_without_the_address_of_a_server_nothing_is_deployed(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply, "get_client", lambda **given: pytest.fail("it would start a temporary server"))
    with temporary_settings({PREFECT_API_URL: address}), pytest.raises(Refused, match="PREFECT_API_URL: it says where"):
        apply.apply(StackConfig())
