"""align: maps the members' labels to common clusters, and computes the consensus for every image.

Reads `members` and their training data; writes `alignment` (one permutation for each member), `head` (a linear model that predicts the
consensus for other images) and `cluster_centres`, then `assignments` (one row for each image) and `clusters`. The permutations are committed before the
first assignment, so that all parts have the same labelling.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core import methods
from gsec_core.clustering.centres import Centres
from gsec_core.config import PipelineConfig
from gsec_core.devices import set_threads
from gsec_core.errors import GsecError
from gsec_core.stages import before, encode, text, train
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once, silent
from gsec_core.stages.canonical import all_images, assignment_table, cluster_table, load_embeddings, parts, read_parts, step_of_parts, usable
from gsec_core.stages.prepare import features_of, load_features, load_neighbors, pixels_of, plan_of, trains_further
from gsec_core.stages.scratch import scratch_array
from gsec_core.store.arrays import make_table, to_matrix
from gsec_core.tables import ALIGNMENT, ALIGNMENT_TABLE, ASSIGNMENTS_TABLE, CLUSTER_CENTRES_TABLE, CLUSTERS_TABLE, HEAD, HEAD_TABLE, cluster_centres_schema

if TYPE_CHECKING:
    from gsec_core.clustering.ensemble import Assigned, Consensus, Ensemble, Head
    from gsec_core.methods.plan import Start


def align(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Match the members' clusters, number those of the consensus by size or as before, and distil it into a head. For a kept model, copy its tables."""
    set_threads(context.config.threads)
    if context.keeps:
        alignment, *others = (context.model.shards(STAGE, table) for table in (ALIGNMENT_TABLE, HEAD_TABLE, CLUSTER_CENTRES_TABLE))
        facts = {name: alignment.facts("all")[name] for name in ("members_digest", "temperature")}
        yield Finished("all", (alignment.read("all"), *(shards.read("all") for shards in others)), facts)
        return
    features, plan = load_features(context), plan_of(context.config)
    members, digest = train.load_members(context)
    start = _start(context)
    ensemble, consensus, head = plan.align(features, load_neighbors(context), members, partial(scratch_array, context.config), start)
    clusters = context.config.n_clusters
    sizes, theirs, shared = np.zeros(clusters, np.int64), *np.zeros((2, len(members), clusters), np.int64)
    labels = []
    for found in ensemble.assigned(consensus, 0, len(features)):
        labels.append(found.labels)
        sizes += np.bincount(found.labels, minlength=clusters)
        for member, said in enumerate(found.member_labels.T):
            theirs[member] += np.bincount(said, minlength=clusters)
            shared[member] += np.bincount(said[said == found.labels], minlength=clusters)
        progress(len(found.labels))
    agreement = (shared.sum(1) / len(features)).astype(np.float32)
    overlaps = (shared / np.maximum(sizes + theirs - shared, 1)).astype(np.float32)
    columns = [np.arange(len(members)), list(ensemble.permutations), agreement, list(overlaps)]
    weights = [np.arange(len(head.bias)), list(head.weights), head.bias]
    X = load_embeddings(context)
    centres = make_table([np.arange(clusters), *Centres.of(X, np.concatenate(labels), clusters)], cluster_centres_schema(X.shape[1]))
    tables = pa.table(columns, schema=ALIGNMENT), pa.table(weights, schema=HEAD), centres
    yield Finished("all", tables, {"members_digest": digest, "temperature": ensemble.temperature})
    load_consensus.keep(consensus, context)  # loading from the committed tables would give the same bits


def _start(context: Context) -> "Start | None":
    """The labels, and members with their permutations, that the fit continues; None for a fit from scratch."""
    if not context.continues:
        return None
    from gsec_core.methods.plan import Start

    if not trains_further(context):
        return Start(before.labels_before(context))
    ensemble, (members, _) = load_ensemble(context.model), train.load_members(context.model)
    return Start(before.labels_before(context), members, ensemble.permutations)


def assign(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Assign every image of the named parts to a cluster by the consensus."""
    from gsec_core.clustering.ensemble import joined

    set_threads(context.config.threads)
    if context.keeps:
        yield from _labelled(context, names, progress)
        return
    ensemble, consensus = load_ensemble(context), load_consensus(context)
    for part in parts(context, names):
        found = []
        for block in ensemble.assigned(consensus, part.start, part.stop):
            found.append(block)
            progress(len(block.labels))
        whole = joined(found)
        outliers = load_centres(context).outliers(load_embeddings(context)[part.start : part.stop], whole.labels)
        yield Finished(part.name, (assignment_table(part, whole.labels, whole.confidence, whole.margin, whole.agreement, outliers),))


def _labelled(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Assign by the kept model: old images keep their assignments, those of new images are predicted.

    Raises GsecError if the model was damaged since the run decided to keep it.
    """
    try:
        load_ensemble(context.model)
    except FileNotFoundError as error:
        why = f"the model of run {context.model.run.id}, which it keeps, is no longer complete ({error})"
        raise GsecError(f"run {context.run.id}: {why}. Decide again: the same gsec run with --redo refit.") from None
    had = before.assigned_before(context, ["cluster", "confidence", "margin", "agreement", "outlier"])
    for part in parts(context, names):
        there = had[part.start : part.stop]
        new = part.start + there["cluster"].is_null().arg_true().to_numpy().astype(np.int64)
        columns = {name: there[name].fill_null(0).to_numpy().copy() for name in there.columns}
        for name, values in zip(there.columns, predicted(context.model, context, new), strict=True):
            columns[name][new - part.start] = values
        progress(len(there))
        yield Finished(part.name, (assignment_table(part, *columns.values()),), {"new": len(new)})


def predicted(model: Context, images: Context, rows: NDArray[np.int64], progress: Progress = silent) -> tuple[NDArray[Any], ...]:
    """Predict images that a run's model was not fitted on, block by block. Returns cluster, confidence, margin, agreement and outlier, (rows,) each."""
    from gsec_core.clustering.ensemble import joined

    ensemble, head, device = load_ensemble(model), load_head(model), plan_of(model.config).device
    found: list[Assigned] = []
    for block in ensemble.blocks(0, len(rows)):
        features = features_of(model, text.halves_of(model, images, rows[block]))
        features.pixels = pixels_of(model, images, rows[block])
        found += ensemble.predicted(features, head, device)
        progress(block.stop - block.start)
    if not found:
        return tuple(np.empty(0) for _ in range(5))
    whole = joined(found)
    sizes = model.read(STAGE, CLUSTERS_TABLE, ["size"])["size"].to_numpy()
    outliers = load_centres(model).outliers_if_joined(load_embeddings(images)[rows], whole.labels, sizes)
    return whole.labels, whole.confidence, whole.margin, whole.agreement, outliers


@once
def load_consensus(context: Context) -> "Consensus":
    """The smoothed posteriors of all images in canonical order, and the members' labels; memory maps as in `canonical.load_embeddings`."""
    set_threads(context.config.threads)
    return plan_of(context.config).consensus(
        load_features(context),
        load_neighbors(context),
        load_ensemble(context),
        partial(scratch_array, context.config),
        from_scratch=not context.continues,
        before=before.labels_before(context) if context.continues else None,
    )


def load_head(context: Context) -> "Head":
    """The head, which predicts the consensus for images outside the run."""
    from gsec_core.clustering.ensemble import Head

    table = context.read(STAGE, HEAD_TABLE)
    weights: NDArray[np.float32] = to_matrix(table, "weights")
    return Head(weights.copy(), table["bias"].to_numpy().copy())  # torch does not accept read-only arrays


@once
def load_centres(context: Context) -> Centres:
    """The centres of the consensus's clusters in the space of the embeddings."""
    table = context.read(STAGE, CLUSTER_CENTRES_TABLE)
    return Centres(to_matrix(table, "centre"), table["distance"].to_numpy(), table["deviation"].to_numpy())


def load_ensemble(context: Context) -> "Ensemble":
    """The members of the run, aligned. Raises GsecError if they are not those that were aligned."""
    from gsec_core.clustering.ensemble import Ensemble

    alignment = context.shards(STAGE, ALIGNMENT_TABLE)
    facts = alignment.facts("all")
    members, digest = train.load_members(context)
    if facts["members_digest"] != digest:
        # Members that were trained again after damage, on another machine, may differ and number their clusters differently.
        raise GsecError(f"run {context.run.id}: its members were made again and differ from those that were aligned. Align again: gsec run with --redo align.")
    permutations = np.array(alignment.read("all")["permutation"].to_pylist(), np.int32)
    return Ensemble(plan_of(context.config).models(members), permutations, facts["temperature"])


def summarise(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Make the table of clusters from the assignments, one row for each."""
    assignments = read_parts(context, STAGE, ASSIGNMENTS_TABLE)
    overlaps = to_matrix(context.read(STAGE, ALIGNMENT_TABLE), "overlap")
    yield Finished("all", (cluster_table(load_embeddings(context), assignments, context.config.n_clusters, overlaps.mean(0)),))


def _inputs(context: Context) -> list[str]:
    if not context.keeps:
        return [train.STAGE.fingerprint(context)]
    theirs = [run.fingerprint(STAGE.name) for run in (context.model.run, before.previous(context))]
    return [*theirs, *(stage.fingerprint(context) for stage in encode.stages_of(context.run)), usable(context).digest]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    n_members = methods.find(config.method).member_count(config.of_method, config.n_clusters, config.train.n_members)
    return {"n_members": n_members, **({"head": "member"} if n_members == 1 and plan_of(config).is_own_head else {})}  # a plan imports torch


STAGE = Stage(
    name="align",
    version=3,
    settings=_settings,
    inputs=_inputs,
    steps=(
        Step((ALIGNMENT_TABLE, HEAD_TABLE, CLUSTER_CENTRES_TABLE), align, units=all_images, whole=True),
        step_of_parts(ASSIGNMENTS_TABLE, assign, whole=True),
        Step((CLUSTERS_TABLE,), summarise, whole=True),
    ),
    on_device=True,
)
