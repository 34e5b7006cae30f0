"""publish: names the clusters, and chooses and lays out the images for the report.

Reads `assignments` and `representative_captions`; writes `cluster_names` (one row for each cluster) and `layout` (the images that
a report shows, and their places on its map).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.clustering.centres import distances
from gsec_core.clustering.kmeans import sample_rows, unit_rows
from gsec_core.devices import native_threads
from gsec_core.naming import namers
from gsec_core.naming.terms import Description
from gsec_core.report import layout
from gsec_core.stages import align, before, describe, nouns
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import load_embeddings, load_joint, read_parts, usable
from gsec_core.tables import ASSIGNMENTS_TABLE, CLUSTER_NAMES, CLUSTER_NAMES_TABLE, LAYOUT, LAYOUT_TABLE
from gsec_core.text import TAU
from gsec_core.text.nouns import cluster_weights

NAMING_ROWS = 65_536
"""Size of the sample of images for naming clusters by nouns."""

BORROWED = 3
"""Number of descriptions of other images by which a cluster without descriptions is named."""


def name(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Give every cluster a name, a sentence and terms, from the descriptions of its images or from nouns. With a kept model they stay; see `renames`."""
    if context.keeps and not renames(context):
        yield Finished("all", (before.previous(context).read_table(CLUSTER_NAMES_TABLE),))
        return
    model = context.model if context.keeps else context
    said, own = descriptions(model)
    if namers.namer_of(context.config) == namers.NOUNS:
        named = namers.by_nouns(*nouns_of_clusters(model))
        progress(len(named))
    else:
        named = namers.load_namer(context.config).name(said, progress)
    columns = [np.arange(len(said)), *zip(*(found.name for found in named), strict=True), own, [found.namer for found in named]]
    yield Finished("all", (pa.table([pa.array(column, field.type) for column, field in zip(columns, CLUSTER_NAMES, strict=True)], schema=CLUSTER_NAMES),))


def renames(context: Context) -> bool:
    """Whether a run that keeps the published model names its clusters again: it has another namer, or ``--redo publish`` asks for that."""
    published = before.previous(context)
    ours, theirs = (namers.namer_identity(config) for config in (context.config, published.config()))
    return ours != theirs or context.redo.get(STAGE.name, 0) > before.answered(context).get(STAGE.name, 0)


def nouns_of_clusters(context: Context) -> tuple[Sequence[str], NDArray[np.float32]]:
    """The selected words, and how much more each represents a cluster's images than all images, (clusters, words)."""
    (words, kept), selection = nouns.load_nouns(context), nouns.selection_of(context.config)
    labels = read_parts(context, align.STAGE, ASSIGNMENTS_TABLE, ["cluster"])["cluster"].to_numpy()
    rows = sample_rows(len(labels), NAMING_ROWS, 0)
    with native_threads(context.config.threads):
        weights = cluster_weights(load_joint(context)[rows], labels[rows], context.config.n_clusters, kept, selection.tau or TAU)
    if selection.per_centre is None:  # each noun belongs to one cluster, and must outweigh all other words there
        weights[align.load_ensemble(context).permutations[0], np.arange(len(words))] += 2
    return words, weights


def descriptions(context: Context) -> tuple[list[list[Description]], list[int]]:
    """The descriptions of each cluster, and how many of them are of its own images.

    A cluster without described images gets the descriptions of the images nearest to its centre.
    """
    captions = describe.counted_captions(context).select(["image_id", "text", "object", "attributes"])
    cluster_of = pl.DataFrame(read_parts(context, align.STAGE, ASSIGNMENTS_TABLE, ["image_id", "cluster"]))
    numbered = pl.DataFrame(captions).with_row_index("caption")
    own = numbered.join(cluster_of, on="image_id", maintain_order="left").select("cluster", "caption")
    counts = np.bincount(own["cluster"].to_numpy(), minlength=context.config.n_clusters)
    borrowed = _nearest_descriptions(context, np.flatnonzero(counts == 0))
    said: list[list[Description]] = [[] for _ in range(context.config.n_clusters)]
    texts = [Description(row["text"], row["object"], tuple(row["attributes"])) for row in captions.to_pylist()]
    for cluster, caption in [*own.iter_rows(), *borrowed]:
        said[cluster].append(texts[caption])
    return said, counts.tolist()


def _nearest_descriptions(context: Context, clusters: NDArray[np.int64]) -> list[tuple[int, int]]:
    """For each of ``clusters``, the descriptions of the images nearest to its centre: pairs of cluster and number of the description."""
    if not len(clusters):
        return []
    centres = align.load_centres(context).directions[clusters]
    nearest = np.argsort(-(centres @ unit_rows(load_embeddings(context)[describe.described_rows(context)]).T), axis=1, kind="stable")[:, :BORROWED]
    return [(int(cluster), int(caption)) for cluster, found in zip(clusters, nearest, strict=True) for caption in found]


def lay_out(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Choose the images to show, and place them by their embeddings alone, independently of the clusters."""
    rows = usable(context).rows
    assignments = read_parts(context, align.STAGE, ASSIGNMENTS_TABLE, ["cluster", "confidence"])
    labels, confidence = assignments["cluster"].to_numpy(), assignments["confidence"].to_numpy()
    X = load_embeddings(context)
    if context.keeps and (table := _laid_out_as_before(context, X, labels)):
        progress(table.num_rows)
        yield Finished("all", (table,), {"shown": table.num_rows})
        return
    distinct = pl.Series(rows["content_hash"]).is_first_distinct().to_numpy()
    described = pc.is_in(rows["content_hash"], describe.counted_captions(context)["content_hash"]).to_numpy()
    centrality = 1 - distances(X, labels, align.load_centres(context).directions)
    shown = layout.choose(labels, confidence, centrality, described, distinct, context.config.n_clusters)
    taken = shown["row"].to_numpy()
    points = layout.place(X[np.sort(taken)], context.config.threads)[np.argsort(np.argsort(taken))]
    progress(len(shown))
    images = rows.take(taken)
    columns = [images["image_id"], images["uri"], shown["cluster"], shown["role"], points[:, 0], points[:, 1]]
    yield Finished("all", (pa.table([pa.array(column) for column in columns], schema=LAYOUT),), {"shown": len(shown)})


def _laid_out_as_before(context: Context, X: NDArray[np.float16], labels: NDArray[np.int32]) -> pa.Table | None:
    """The layout of the published run: its images that still exist keep their places, new images go beside the most similar ones. None if most are gone.

    Takes as many new images as there is room for, or at least a tenth of `layout.MOST`, those with the smallest content hashes first; if necessary, images of
    roles SAMPLE and NEW are removed to make room.
    """
    rows = usable(context).rows
    known = before.assigned_before(context, ["cluster"])["cluster"].is_not_null()
    columns = {"cluster": pl.Series(labels), "known": known}
    here = pl.DataFrame(rows.select(["image_id", "uri", "content_hash"])).with_columns(**columns).with_row_index("row")
    was = pl.DataFrame(before.previous(context).read_table(LAYOUT_TABLE))
    stayed = was.drop("cluster", "uri").join(here.filter("known"), on="image_id", maintain_order="left")
    if not len(was) or len(stayed) < len(was) / 2:
        return None
    new = here.filter(~pl.col("known")).unique("content_hash", keep="first", maintain_order=True)
    new = new.head(max(layout.MOST - len(stayed), layout.MOST // 10))
    spare = stayed.filter(pl.col("role").is_in([layout.SAMPLE, layout.NEW]))
    gone = spare.sample(min(len(spare), max(0, len(stayed) + len(new) - layout.MOST)), seed=0)
    stayed = stayed.join(gone, on="row", how="anti", maintain_order="left")
    new = new.head(layout.MOST - len(stayed))
    landmarks = unit_rows(X[stayed["row"].to_numpy()])
    with native_threads(context.config.threads):
        points = layout.beside(X[new["row"].to_numpy()], landmarks, stayed.select("x", "y").to_numpy(), layout.noise_of(new["image_id"].to_list()))
    beside = new.with_columns(role=pl.lit(layout.NEW), x=pl.Series(points[:, 0]), y=pl.Series(points[:, 1]))
    shown = pl.concat([beside.select(LAYOUT.names), stayed.select(LAYOUT.names)]).sort("cluster", maintain_order=True)
    return pa.table([shown[name].to_arrow().cast(LAYOUT.field(name).type) for name in LAYOUT.names], schema=LAYOUT)


def _inputs(context: Context) -> list[str]:
    theirs = [before.previous(context).fingerprint(STAGE.name)] if context.keeps else []
    return [align.STAGE.fingerprint(context), *theirs]


STAGE = Stage(
    name="publish",
    version=2,
    settings=lambda config: {"namer": namers.namer_identity(config)},
    inputs=_inputs,
    steps=(
        Step((CLUSTER_NAMES_TABLE,), name, units=lambda context, names: context.config.n_clusters, whole=True, unit="names"),
        Step((LAYOUT_TABLE,), lay_out, whole=True),
    ),
)
