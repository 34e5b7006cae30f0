"""assign: assigns new images to the clusters of another run, which is not changed.

Reads this corpus's `embeddings` (by the encoders of the other run) and, where members use pixels, `thumbnails`; and from the other run `counterpart_model`,
`caption_embeddings`, `features`, `members`, `alignment`, `head`, `cluster_centres` and `clusters`; writes `assigned`, with the schema of `assignments`.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from gsec_core.devices import set_threads
from gsec_core.errors import Refused
from gsec_core.stages import align, encode, lineage
from gsec_core.stages.base import Context, Finished, Progress, Stage
from gsec_core.stages.canonical import assignment_table, parts, step_of_parts, usable
from gsec_core.tables import ASSIGNED_TABLE


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Predict the clusters of all images of the named parts; they are encoded already."""
    set_threads(context.config.threads)
    model = model_of(context)
    for part in parts(context, names):
        found = align.predicted(model, context, np.arange(part.start, part.stop), progress)
        yield Finished(part.name, (assignment_table(part, *found),))


def model_of(context: Context) -> Context:
    """The run to whose clusters the images are assigned. Raises what `check_model` raises."""
    assert context.of_run is not None, "only a run of another has this stage"
    check_model(context.of_run)
    return context.of_run


def check_model(model: Context) -> None:
    """Raises Refused if a run cannot assign images: it has no clusters of its own, is not complete, or its encoder has changed."""
    if model.of_run is not None:
        raise Refused(f"--run {model.run.id}: it has no clusters of its own, but assigns to those of run {model.of_run.run.id}. Name that one.")
    model.run.check_stage(lineage.STAGE.name)
    stages = model.run.stage_names()
    for name in stages[: stages.index(lineage.STAGE.name) + 1]:
        if not model.run.is_complete(name):
            raise Refused(f"--run {model.run.id}: its stage {name} is not complete. Finish it first: gsec run, or gsec stage {name} --run {model.run.id}.")
    for stage in encode.stages_of(model.run):
        if model.run.fingerprint(stage.name) != stage.fingerprint(model):
            raise Refused(
                f"--run {model.run.id}: its encoder or checkpoint has changed since the run was encoded. Restore the old one, or repeat the gsec run."
            )


def _inputs(context: Context) -> list[str]:
    aligned = model_of(context).run.fingerprint(align.STAGE.name)
    if not len(usable(context)):
        raise Refused(f"gsec assign: none of {usable(context).live} images is usable ({encode.most_frequent_reasons(context)}).")
    return [*(stage.fingerprint(context) for stage in encode.stages_of(context.run)), usable(context).digest, aligned]


STAGE = Stage(
    name="assign",
    version=3,
    settings=lambda config: {},
    inputs=_inputs,
    steps=(step_of_parts(ASSIGNED_TABLE, work, busy=True),),
    on_device=True,
)
