"""The Prefect task that makes a slice of a step's missing shards."""

import platform
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.tasks import Task

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.errors import Unreachable
from gsec_core.stages import base
from gsec_core.stages.base import Progress, Stage
from gsec_core.store import Store
from tasks import progress


def _transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry may help: after errors of the network, the disk or the store, but not after a refusal, a bad shard or a bug."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, OSError | Unreachable)


Sums = dict[str, float]


class Maker(Protocol):
    """Makes the shards ``names`` of a step, except those that exist already, in this thread or elsewhere.

    Returns the sums of the facts of the new shards, and the name of the machine that made them.
    """

    def __call__(self, config: PipelineConfig, run_id: str, stage: str, step: int, names: list[str], advance: Progress) -> tuple[Sums, str]: ...


_reads = 0


def reads() -> int:
    """How often `forget` was called: a number that other processes compare to know whether their cached run is out of date."""
    return _reads


def forget() -> None:
    """Drop the cached run, here and in every process that slices are sent to from now on."""
    follow(_reads + 1)


def follow(times: int) -> None:
    """Drop the cached run if ``times``, the sender's `reads`, differs from this process's."""
    global _reads
    if times != _reads:
        _reads = times
        context.cache_clear()


@lru_cache(maxsize=1)
def context(config: PipelineConfig, run_id: str) -> base.Context:
    """The context of a run, cached so that its list of images is read once, not once for each slice."""
    return base.Context.of(Store.open(config.store).run(run_id), config)


def make(config: PipelineConfig, run_id: str, stage: str, step: int, names: list[str], advance: Progress) -> tuple[Sums, str]:
    """The `Maker` of this thread."""
    found = pipeline.stage(stage)
    work = context(config, run_id)
    made = found.steps[step]
    missing = set(base.missing(work, found, made))  # a retried slice has made some of its shards
    todo = [name for name in names if name in missing]
    if todo != names:
        advance(made.units(work, names) - made.units(work, todo))
    return base.work(work, found, made, todo, advance), platform.node()


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
def run_slice(make: Maker, config: PipelineConfig, run_id: str, stage: str, step: int, number: int, names: list[str]) -> Sums:
    """Make a slice of a step's missing shards. Returns the sums of the facts of the new shards."""
    made = pipeline.stage(stage).steps[step]
    with progress.of_slice(stage, number, made.units(context(config, run_id), names), made.unit) as advance:
        sums, node = make(config, run_id, stage, step, names, advance)
    progress.advance(stage, 0)  # a finished slice is progress, even if its step counts no units
    get_run_logger().info("%s on %s: %s", stage, node, sums)
    return sums


def submit(make: Maker, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]]) -> list[PrefectFuture[Sums]]:
    """Submit a task for each item of ``parts``, the names of a slice's shards. Must be called in a flow."""
    return [run_slice.submit(make, config, run_id, stage.name, step, number, list(part)) for number, part in enumerate(parts, 1)]
