"""Where the slices of a stage are worked on: by threads of this process, or on the nodes of a Ray cluster.

An engine is no part of what a run is. A run that was begun on one is finished on another.
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
    """Takes slices, and says how they are to be cut."""

    def runner(self, config: PipelineConfig) -> TaskRunner[Any]:
        """What runs the tasks of a flow."""

    def count(self, config: PipelineConfig, step: Step) -> int:
        """Slices that a step is cut into at most."""

    def submit(self, config: PipelineConfig, run_id: str, stage: Stage, step: int, parts: Sequence[Sequence[str]]) -> list[PrefectFuture[Sums]]:
        """A task for each of ``parts``, the names of its shards. To be called in a flow that has the `runner`."""

    def wait(self, futures: Sequence[PrefectFuture[Sums]], stage: str, seconds: float) -> list[Sums]:
        """What they come to. Raises GsecError if the stage makes no progress for so many ``seconds``, and what a slice raised."""


class Threads:
    """The engine that is there anyway."""

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
    """The engine of the settings, for all flows inside; one that is open already serves. Raises Refused if it cannot be used as they say."""
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
