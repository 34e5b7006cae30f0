"""hierarchy: builds a tree over the clusters, in which similar clusters are close.

Reads `assignments`, `members`, `cluster_centres` and the input of the namer; writes `hierarchy` (one row for each node).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.clustering import hierarchy
from gsec_core.config import PipelineConfig
from gsec_core.naming import namers
from gsec_core.stages import align, before, prepare, publish
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import part_names
from gsec_core.tables import ASSIGNMENTS_TABLE, CLUSTERS_TABLE, HIERARCHY, HIERARCHY_TABLE


def arrange(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Build the tree over the clusters. With a kept model it is the tree of that model, with the current numbers of images."""
    if not context.keeps:
        yield Finished("all", (_tree(context, context.config, progress),))
        return
    table = None if publish.renames(context) else _tree_before(context)
    if table is None:
        table = _tree(context.model, context.config, progress)
    sizes, merges = _sizes(context), list(zip(table["left"].to_pylist(), table["right"].to_pylist(), strict=True))
    images = pa.array([int(sizes[inside].sum()) for inside in hierarchy.leaves(merges, len(sizes))], pa.int64())
    yield Finished("all", (table.set_column(HIERARCHY.get_field_index("size"), HIERARCHY.field("size"), images),))


def _sizes(context: Context) -> NDArray[np.int64]:
    """Images of each cluster, (clusters,)."""
    sizes: NDArray[np.int64] = context.read(align.STAGE, CLUSTERS_TABLE, ["size"])["size"].to_numpy()
    return sizes


def _tree_before(context: Context) -> pa.Table | None:
    """The tree of the published run; None if that run has no stage hierarchy."""
    return before.previous(context).read_table(HIERARCHY_TABLE) if _had_tree(context) else None


def _had_tree(context: Context) -> bool:
    """Whether the published run has this stage; one of an older gsec has not."""
    return STAGE.name in before.previous(context).stage_names()


def _tree(context: Context, config: PipelineConfig, progress: Progress) -> pa.Table:
    """The tree of a run with a model of its own, with names by the namer of ``config``."""
    clusters = context.config.n_clusters
    if clusters > hierarchy.MOST_CLUSTERS:
        return HIERARCHY.empty_table()
    sizes = _sizes(context)
    merges = hierarchy.tree(align.load_centres(context).directions, _co_association(context), sizes)
    below = hierarchy.leaves([merge[:2] for merge in merges], clusters)
    if namers.namer_of(config) == namers.NOUNS:
        words, weights = publish.nouns_of_clusters(context)
        shares = [np.maximum(sizes[inside], 1) @ weights[inside] / np.maximum(sizes[inside], 1).sum() for inside in below]
        named = namers.by_nouns(words, np.asarray(shares, np.float32).reshape(-1, len(words)))
        progress(len(named))
    else:
        named = namers.load_namer(config).name_groups(publish.descriptions(context)[0], below, progress)
    rows = [
        {"node": clusters + number, **merge._asdict(), "clusters": len(inside), "size": int(sizes[inside].sum()), "name": found.name.name}
        for number, (merge, inside, found) in enumerate(zip(merges, below, named, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=HIERARCHY)


def _co_association(context: Context) -> NDArray[np.float32]:
    """See `hierarchy.co_association`. Uses the first part of the images: canonical order is that of content hashes, so that they are a random sample."""
    [first, *_] = part_names(context)
    labels = context.shards(align.STAGE, ASSIGNMENTS_TABLE).read(first, ["cluster"])["cluster"].to_numpy()
    said = align.load_ensemble(context).member_labels(prepare.load_features(context), prepare.plan_of(context.config).device, 0, len(labels))
    return hierarchy.co_association(labels, said, context.config.n_clusters)


def load_hierarchy(context: Context) -> pa.Table | None:
    """The tree of a run; None for runs of an older gsec without this stage."""
    return context.read(STAGE, HIERARCHY_TABLE) if context.has(STAGE) else None


def _inputs(context: Context) -> list[str]:
    theirs = [before.previous(context).fingerprint(STAGE.name)] if context.keeps and _had_tree(context) else []
    return [publish.STAGE.fingerprint(context), *theirs]


STAGE = Stage(
    name="hierarchy",
    version=1,
    settings=lambda config: {},
    inputs=_inputs,
    steps=(Step((HIERARCHY_TABLE,), arrange, units=lambda context, names: context.config.n_clusters - 1, whole=True, unit="names"),),
    on_device=True,
)
