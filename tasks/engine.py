"""Engines run the slices of a stage: in threads of this process, or on the nodes of a Ray cluster.

The engine is not part of a run's identity. A run that was begun on one engine can be finished on another.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.stages.base import Stage, Step
from tasks import slices, watchdog
from tasks.slices import Sums


class Engine(Protocol):
    """Runs slices, and tells into how many a step is cut. The Prefect task of each slice is in a thread of this process."""

    def runner(self, config: PipelineConfig) -> TaskRunner[Any]:
        """The task runner for a flow that calls `run`."""

    def count(self, config: PipelineConfig, step: Step) -> int:
        """Maximal number of slices that a step is cut into."""

    def run(self, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]], seconds: float) -> list[Sums]:
        """Run a slice for each item of ``parts``, the names of the slice's shards, and return their sums. Must be called in a flow with the runner of `runner`.

        Raises GsecError if the stage makes no progress for this many ``seconds``, and the error of a slice.
        """


class Threads:
    """The default engine: threads of this process."""

    def runner(self, config: PipelineConfig) -> TaskRunner[Any]:
        return ThreadPoolTaskRunner(max_workers=config.max_workers)

    def count(self, config: PipelineConfig, step: Step) -> int:
        return 1 if step.whole or step.busy else config.max_slices

    def run(self, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]], seconds: float) -> list[Sums]:
        futures = slices.submit(slices.make, config, run_id, stage, step, parts)
        watchdog.wait(futures, stage.name, seconds)
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
