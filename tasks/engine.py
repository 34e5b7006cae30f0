"""Engines run the slices of a stage: in threads of this process, or on the nodes of a Ray cluster.

The engine is not part of a run's identity. A run that was begun on one engine can be finished on another.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.stages.base import Stage, Step
from tasks import watchdog
from tasks.slices import run_slice

Sums = dict[str, float]


class Engine(Protocol):
    """Runs slices, and tells into how many a step is cut."""

    def runner(self, config: PipelineConfig) -> TaskRunner[Any]:
        """The task runner for a flow that submits slices."""

    def count(self, config: PipelineConfig, step: Step) -> int:
        """Maximal number of slices that a step is cut into."""

    def submit(self, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]]) -> list[PrefectFuture[Sums]]:
        """Submit a task for each item of ``parts``, the names of the slice's shards. Must be called in a flow with the task runner of `runner`."""

    def wait(self, futures: Sequence[PrefectFuture[Sums]], stage: str, seconds: float) -> list[Sums]:
        """The sums of the tasks. Raises GsecError if the stage makes no progress for this many ``seconds``, and the error of a slice."""


class Threads:
    """The default engine: threads of this process."""

    def runner(self, config: PipelineConfig) -> TaskRunner[Any]:
        return ThreadPoolTaskRunner(max_workers=config.max_workers)

    def count(self, config: PipelineConfig, step: Step) -> int:
        return 1 if step.whole or step.busy else config.max_slices

    def submit(self, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]]) -> list[PrefectFuture[Sums]]:
        return [run_slice.submit(config, run_id, stage.name, step, number, list(part)) for number, part in enumerate(parts, 1)]

    def wait(self, futures: Sequence[PrefectFuture[Sums]], stage: str, seconds: float) -> list[Sums]:
        watchdog.wait(futures, stage, seconds)
        return [future.result() for future in futures]


_current: ContextVar[Engine | None] = ContextVar("engine", default=None)


@contextmanager
def opened(config: PipelineConfig) -> Iterator[Engine]:
    """Context manager that opens the engine of the settings, or reuses the open one. Raises Refused if the engine is not installed or cannot be used."""
    engine = _current.get()
    if engine is not None:
        yield engine
        return
    if config.engine == "threads":
        yield from _as_current(Threads())
        return
    try:
        from tasks.cluster import connected
    except ModuleNotFoundError as error:
        raise Refused(f'engine = ray: {error.name} is not installed here. Install it with gsec: pip install "gsec[ray]".') from None
    with connected(config) as cluster:
        yield from _as_current(cluster)


def _as_current(engine: Engine) -> Iterator[Engine]:
    token = _current.set(engine)
    try:
        yield engine
    finally:
        _current.reset(token)
