"""align: the members' label spaces brought in line, and the consensus of every image.

Reads `members` and what they were trained on; writes `alignment` (a permutation a member), `assignments` (a row an image)
and `clusters`. The permutations are committed before the first assignment, so that all parts are of one labelling.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from gsec_core.clustering.ensemble import Ensemble, joined
from gsec_core.devices import set_threads
from gsec_core.errors import GsecError
from gsec_core.stages import train
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import assignment_table, cluster_table, load_embeddings, parts, rows_of_parts, usable
from gsec_core.tables import ALIGNMENT, ALIGNMENT_TABLE, ASSIGNMENTS_TABLE, CLUSTERS_TABLE


def align(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Match the members' clusters, and number the consensus's by size."""
    set_threads(context.config.threads)
    features = train.load_features(context)
    members, digest = train.load_members(context)
    ensemble, agreement = train.plan_of(context.config).align(features, members)
    progress(len(features))
    columns = [np.arange(len(agreement)), list(ensemble.permutations), agreement]
    yield Finished("all", (pa.table(columns, schema=ALIGNMENT),), {"members_digest": digest})


def assign(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The consensus of every image of the named parts."""
    set_threads(context.config.threads)
    device = train.plan_of(context.config).device
    features, ensemble = train.load_features(context), load_ensemble(context)
    for part in parts(context, names):
        found = []
        for block in ensemble.assign_all(features, device, part.start, part.stop):
            found.append(block)
            progress(len(block.labels))
        whole = joined(found)
        yield Finished(part.name, (assignment_table(part, whole.labels, whole.confidence, whole.margin, whole.agreement),), {})


def load_ensemble(context: Context) -> Ensemble:
    """The members of the run, aligned. Raises GsecError if they are not those that were aligned."""
    alignment = context.shards(STAGE, ALIGNMENT_TABLE)
    members, digest = train.load_members(context)
    if alignment.facts("all")["members_digest"] != digest:
        # Damaged members that were made anew on another machine may differ, and their clusters be called otherwise.
        raise GsecError(f"run {context.run.id}: its members were made anew and differ from those that were aligned. Align anew: gsec run with --redo align.")
    return Ensemble.of(members, np.array(alignment.read("all")["permutation"].to_pylist(), np.int32))


def summarise(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """One row a cluster, from the assignments."""
    assignments = pa.concat_tables(context.shards(STAGE, ASSIGNMENTS_TABLE).read_all(usable(context).part_names))
    yield Finished("all", (cluster_table(load_embeddings(context), assignments, context.config.clusters),), {})


STAGE = Stage(
    name="align",
    version=1,
    settings=lambda config: {"n_members": train.plan_of(config).n_members},
    inputs=lambda context: [train.STAGE.fingerprint(context)],
    steps=(
        Step((ALIGNMENT_TABLE,), lambda context: ["all"], align, lambda context, names: usable(context).rows.num_rows, whole=True),
        Step((ASSIGNMENTS_TABLE,), lambda context: usable(context).part_names, assign, rows_of_parts, whole=True),
        Step((CLUSTERS_TABLE,), lambda context: ["all"], summarise, lambda context, names: 0, whole=True),
    ),
)
