"""The flows of the stages."""

import pytest
from prefect import flow

from flows.stages import FLOWS


@pytest.mark.parametrize("name", ["encode", "report"])
def test_the_flow_of_a_stage_is_as_prefect_makes_it(name: str) -> None:
    own = FLOWS[name]
    made = flow(name=f"gsec-{name}", flow_run_name=own.flow_run_name, persist_result=False)(own.fn)
    assert vars(own) == {**vars(made), "task_runner": own.task_runner}
    assert own.__doc__ == own.fn.__doc__
