"""A flow for each stage: what is missing of it in one run, as slices."""

from prefect import Flow, flow
from prefect.task_runners import ThreadPoolTaskRunner

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.stages import base
from gsec_core.stages.base import Stage
from tasks import progress, slices

Sums = dict[str, float]


def run_stage(config: PipelineConfig, run_id: str, stage: Stage) -> Sums:
    """Do what is missing of ``stage``, a slice a task. To be called in a flow.

    Returns the sums of the facts of what was made; ``shards`` and ``there`` count the shards made now and found done.
    """
    context = slices.context(config, run_id)
    base.begin(context, stage)
    sums: Sums = {"shards": 0, "there": 0}
    for number, step in enumerate(stage.steps):
        names = base.missing(context, stage, step)
        there = len(step.plan(context)) - len(names)
        sums["there"] += there
        if not names:
            continue
        if units := step.units(context, names):
            progress.begin(stage.name, units, step.unit, there)
        cut = base.slices(names, 1 if step.whole else slices.MOST_SLICES)
        futures = [slices.run_slice.submit(config, run_id, stage.name, number, index + 1, part) for index, part in enumerate(cut)]
        for future in futures:
            base.add(sums, future.result())
    return sums


def _flow_of(stage: Stage) -> Flow[..., Sums]:
    @flow(name=f"gsec-{stage.name}", flow_run_name=f"{stage.name}-{{run_id}}", persist_result=False)
    def run(config: PipelineConfig, run_id: str) -> Sums:
        attempt = slices.context(config, run_id).run.attempt({"stage": stage.name, **pipeline.provenance(config)})
        with attempt as facts:
            sums = facts["sums"] = run_stage(config, run_id, stage)
        return sums

    run.__doc__ = f"Do what is missing of stage {stage.name} in a run."
    return run


FLOWS: dict[str, Flow[..., Sums]] = {stage.name: _flow_of(stage) for stage in pipeline.ALL_STAGES}
"""Stage name -> its flow."""


def run_flow(config: PipelineConfig, run_id: str, name: str) -> Sums:
    """The flow of stage ``name``, with as many slices at once as the settings say."""
    runner: ThreadPoolTaskRunner[Sums] = ThreadPoolTaskRunner(max_workers=config.max_workers)
    return FLOWS[name].with_options(task_runner=runner)(config=config, run_id=run_id)  # type: ignore[arg-type]
