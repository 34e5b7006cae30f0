"""One task: make a slice of a step's missing shards."""

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Protocol

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


class Sender(Protocol):
    """Of a slice that another process sent here."""

    def joined(self) -> AbstractContextManager[None]:
        """Inside, what a slice tells its process is told the sender."""


_reads = 0


def reads() -> int:
    """How often this process was to read again what runs are made of."""
    return _reads


def forget() -> None:
    """Read again what runs are made of, here and in every process that slices are sent to from now on."""
    follow(_reads + 1)


def follow(times: int) -> None:
    """Read again if the process that sends slices here has."""
    global _reads
    if times != _reads:
        _reads = times
        context.cache_clear()


@lru_cache(maxsize=1)
def context(config: PipelineConfig, run_id: str) -> base.Context:
    """The run as this process works on it; kept, so that its image list is read once and not once for each slice."""
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
def run_slice(config: PipelineConfig, run_id: str, stage: str, step: int, number: int, names: list[str], sender: Sender | None = None) -> dict[str, float]:
    """Make the shards ``names`` of a step. Returns the sums of their facts. Shards that are there already stay."""
    with sender.joined() if sender else nullcontext():
        found = pipeline.stage(stage)
        work = context(config, run_id)
        made = found.steps[step]
        missing = set(base.missing(work, found, made))  # a retried slice has done a part
        todo = [name for name in names if name in missing]
        units = made.units(work, todo)
        with progress.of_slice(stage, number, units, made.unit, made.units(work, names) - units if todo != names else 0) as advance:
            sums = base.work(work, found, made, todo, advance)
        get_run_logger().info("%s on %s: %s", stage, platform.node(), sums)
        return sums
