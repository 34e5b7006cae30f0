"""One task: make a slice of a step's missing shards."""

from functools import lru_cache
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.errors import Unreachable
from gsec_core.stages import base
from gsec_core.store import Store
from tasks import progress


def _transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may help: the network, the disk, the store; never a refusal, a bad shard or a fault."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError | Unreachable)


@lru_cache(maxsize=1)
def context(config: PipelineConfig, run_id: str) -> base.Context:
    """The run as this process works on it; kept, so that its image list is read once and not once a slice."""
    return base.Context.of(Store.open(config.store).run(run_id), config)


@task(
    name="slice",
    task_run_name="{stage}-{number}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[1, 5, 20],
    retry_jitter_factor=0.5,
    retry_condition_fn=_transient,
)
def run_slice(config: PipelineConfig, run_id: str, stage: str, step: int, number: int, names: list[str]) -> dict[str, float]:
    """Make the shards ``names`` of a step. Returns the sums of their facts. Shards that are there already stay."""
    found = pipeline.stage(stage)
    work = context(config, run_id)
    todo = set(base.missing(work, found, found.steps[step]))  # a retried slice has done a part
    names = [name for name in names if name in todo]
    with progress.of_slice(stage, number, found.steps[step].units(work, names), found.steps[step].unit) as advance:
        sums = base.work(work, found, found.steps[step], names, advance)
    get_run_logger().info("%s: %s", stage, sums)
    return sums
