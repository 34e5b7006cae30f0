"""The automations of a stack. That they work is proved by the tests on a real server."""

from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger

from deployments import apply
from deployments.config import StackConfig


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
