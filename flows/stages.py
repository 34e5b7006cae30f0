"""A flow for each stage, which does what is missing of the stage in one run, in slices."""

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import update_wrapper
from typing import Any, TypeVar

from prefect import Flow, flow
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import roots
from gsec_core import pipeline
from gsec_core.config import PipelineConfig, with_runtime
from gsec_core.results import finishing, publishing
from gsec_core.stages import base, describe, report
from gsec_core.stages.base import Stage
from gsec_core.store.publications import pipeline_of
from tasks import artifacts, engine, progress, slices, watchdog
from tasks.slices import Sums

T = TypeVar("T")

DESCRIBERS = "gsec-describe"
"""Global concurrency limit on the stages describe that run at once in all pipelines, because they share the servers."""


def run_stage(config: PipelineConfig, run_id: str, stage: Stage) -> Sums:
    """Do what is missing of ``stage``, one task for each slice. Must be called in a flow.

    Returns the sums of the facts of the new shards. ``shards`` counts the new shards, ``there`` those that were done before, and
    ``seconds`` is the time taken. Raises GsecError if a task hangs.
    """
    context = slices.context(config, run_id)
    base.begin(context, stage)
    sums: Sums = {"shards": 0, "there": 0}
    started = time.monotonic()
    for number, step in enumerate(stage.steps):
        names = base.missing(context, stage, step)
        there = len(step.plan(context)) - len(names)
        sums["there"] += there
        if not names:
            continue
        progress.begin(stage.name, step.units(context, names), step.unit, there)
        with engine.opened(config) as where, progress.ended_by_signals():
            seconds = config.hang_timeout + (config.describe.patience if stage is describe.STAGE else 0)
            for made in where.run(config, run_id, stage, number, base.slices(names, where.count(config, step)), seconds):
                base.add(sums, made)
    if sums["shards"]:
        sums["seconds"] = round(time.monotonic() - started, 1)
        progress.end(stage.name, sums)
    return sums


def _name() -> str:
    """Name of a stage's flow run."""
    return f"{flow_run.flow_name.removeprefix('gsec-')}-{flow_run.parameters.get('run_id') or 'newest'}"


def _function_of(stage: Stage) -> Callable[..., Sums | State[Sums]]:
    def run(config: PipelineConfig, run_id: str | None = None, redo: bool = False) -> Sums | State[Sums]:
        if roots.deployed_itself():
            return _alone(stage, config, run_id, redo)
        assert run_id is not None, "only a deployment may leave it out"
        attempt = slices.context(config, run_id).run.attempt({"stage": stage.name, **pipeline.provenance(config)})
        with _at_most(stage), attempt as facts:
            sums = facts["sums"] = run_stage(config, run_id, stage)
        return sums

    run.__doc__ = f"""Do the missing part of stage {stage.name}, and no other stage.

    Args:
        config: The settings. If you change one that changes the output, a new run is made, which does only the stages that depend on it.
        run_id: The run: its id, or the beginning of its id. Its own settings then count, except devices, threads and limits. Empty: the newest run of `config`.
        redo: Do the stage again, although nothing of it is missing, in a new run. The old run keeps its tables.
    """
    run.__name__ = f"{stage.name}_flow"
    return run


HELD = "CompletedNotPublished"
"""Name of the state of a flow run whose run is finished but suspicious (for example, too many rejects), so that the published clustering stays."""


def completed(summary: Mapping[str, Any], data: T) -> State[T]:
    """Final state of a flow that has finished a run; ``summary`` is that of `finishing.finish`."""
    return Completed(name=HELD, message=" ".join(publishing.told(summary)), data=data) if summary["held"] else Completed(data=data)


def _alone(stage: Stage, config: PipelineConfig, run_id: str | None, redo: bool) -> Sums | State[Sums]:
    """The flow of a stage's own deployment: find the run, run the stage's flow as usual, and finish the run after the report."""
    roots.check(config)
    found, _ = pipeline.run_for_stage(stage.name, config, run_id, redo, asked_by=flow_run.id)
    config = with_runtime(found.config(), config)
    roots.check(config)  # again, because a run that is named by its id brings places of its own
    sums = run_flow(config, found.id, stage.name)
    if stage is not report.STAGE:
        return sums
    context = slices.context(config, found.id)
    summary = finishing.finish(context)
    artifacts.tell(summary, pipeline_of(context.config, context.corpus.name))
    return completed(summary, sums)


def _at_most(stage: Stage) -> AbstractContextManager[None]:
    return concurrency(DESCRIBERS, raise_on_lease_renewal_failure=False) if stage is describe.STAGE and roots.deployed() else nullcontext()


def _flows() -> dict[str, Flow[..., Any]]:
    """Prefect describes the parameters of a flow, which takes it 0.04 s for these. All stages have the same, so each flow is a copy of one."""
    functions = {stage.name: _function_of(stage) for stage in pipeline.ALL_STAGES}
    one = flow(flow_run_name=_name, persist_result=False)(next(iter(functions.values())))
    flows: dict[str, Flow[..., Any]] = {}
    for name, function in functions.items():
        flows[name] = own = copy(one)
        update_wrapper(own, function)
        own.name, own.description, own.fn = f"gsec-{name}", inspect.getdoc(function), function
    return flows


FLOWS: dict[str, Flow[..., Any]] = _flows()
"""Stage name -> its flow."""


def __getattr__(name: str) -> Flow[..., Any]:
    """Provide ``encode_flow`` and so on: a deployment finds its flow in this module by such a name."""
    stage = name.removesuffix("_flow")
    if stage == name or stage not in FLOWS:
        raise AttributeError(name)
    return FLOWS[stage]


def run_flow(config: PipelineConfig, run_id: str, name: str) -> Sums:
    """Run the flow of stage ``name``, with its slices on the engine of the settings. Returns the sums of `run_stage`."""
    with engine.opened(config) as where:
        try:
            here: Any = copy(FLOWS[name])  # `with_options` would describe the parameters again
            here.task_runner = where.runner(config)
            sums: Sums = here(config=config, run_id=run_id)
            return sums
        finally:
            watchdog.calm()  # a task that hung has ended
            progress.calm()
