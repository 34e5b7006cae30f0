"""align: the members' label spaces brought in line, and the consensus of every image.

Reads `members` and what they were trained on; writes `alignment` (a permutation a member) and `head` (what stands for the
consensus for other images), `assignments` (a row an image) and `clusters`. The permutations are committed before the
first assignment, so that all parts are of one labelling.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.arrays import to_matrix
from gsec_core.clustering.ensemble import Ensemble, Head, joined
from gsec_core.clustering.smoothing import Posteriors
from gsec_core.devices import set_threads
from gsec_core.errors import GsecError
from gsec_core.stages import train
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.canonical import assignment_table, cluster_table, load_embeddings, parts, rows_of_parts, scratch_array, usable
from gsec_core.stages.prepare import load_features, load_neighbors, plan_of
from gsec_core.tables import ALIGNMENT, ALIGNMENT_TABLE, ASSIGNMENTS_TABLE, CLUSTERS_TABLE, HEAD, HEAD_TABLE


def align(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Match the members' clusters, number the consensus's by size, and distill it."""
    set_threads(context.config.threads)
    features, plan = load_features(context), plan_of(context.config)
    members, digest = train.load_members(context)
    ensemble, consensus, head = plan.align(features, load_neighbors(context), members, lambda shape, kind: scratch_array(context.config, shape, kind))
    agreeing = np.zeros(len(members), np.int64)
    for found in ensemble.assigned(features, consensus, plan.device, 0, len(features)):
        agreeing += (found.member_labels == found.labels[:, None]).sum(0)
        progress(len(found.labels))
    alignment = [np.arange(len(members)), list(ensemble.permutations), (agreeing / len(features)).astype(np.float32)]
    weights = [np.arange(len(head.bias)), list(head.weights), head.bias]
    yield Finished("all", (pa.table(alignment, schema=ALIGNMENT), pa.table(weights, schema=HEAD)), {"members_digest": digest})


def assign(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The consensus of every image of the named parts."""
    set_threads(context.config.threads)
    features, ensemble, consensus = load_features(context), load_ensemble(context), load_consensus(context)
    for part in parts(context, names):
        found = []
        for block in ensemble.assigned(features, consensus, plan_of(context.config).device, part.start, part.stop):
            found.append(block)
            progress(len(block.labels))
        whole = joined(found)
        yield Finished(part.name, (assignment_table(part, whole.labels, whole.confidence, whole.margin, whole.agreement),), {})


@once
def load_consensus(context: Context) -> Posteriors:
    """The smoothed posteriors of all images in canonical order; a memory map as `canonical.load_embeddings` is.

    Made of the committed permutations even where they were just found: the order of the clusters decides how sums are
    rounded, and a run that was cut must round as one that was not.
    """
    set_threads(context.config.threads)
    return plan_of(context.config).consensus(
        load_features(context), load_neighbors(context), load_ensemble(context), lambda shape, kind: scratch_array(context.config, shape, kind)
    )


def load_head(context: Context) -> Head:
    """What stands for the consensus for images that are not of the run."""
    table = context.shards(STAGE, HEAD_TABLE).read("all")
    weights: NDArray[np.float32] = to_matrix(table, "weights")
    return Head(np.array(weights), np.array(table["bias"]))  # copies: torch takes no array that is read-only


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
    version=2,
    settings=lambda config: {"n_members": plan_of(config).preset.n_members},
    inputs=lambda context: [train.STAGE.fingerprint(context)],
    steps=(
        Step((ALIGNMENT_TABLE, HEAD_TABLE), lambda context: ["all"], align, lambda context, names: usable(context).rows.num_rows, whole=True),
        Step((ASSIGNMENTS_TABLE,), lambda context: usable(context).part_names, assign, rows_of_parts, whole=True),
        Step((CLUSTERS_TABLE,), lambda context: ["all"], summarise, lambda context, names: 0, whole=True),
    ),
)
