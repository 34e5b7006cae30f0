"""baseline: plain spherical k-means on the image embeddings, in every run, so that the consensus always stands beside it.

Reads `embeddings`; writes `baseline_centres`, `baseline` (a row an image) and `baseline_clusters`. The centres are
committed before the first assignment, so that all parts of `baseline` are of one labelling, wherever they are made.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gsec_core.clustering.kmeans import SphericalKMeans, cosines
from gsec_core.config import PipelineConfig, output_settings
from gsec_core.stages import encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import cluster_table, in_parts, is_duplicate, load_embeddings, usable
from gsec_core.tables import ASSIGNMENTS, BASELINE_CENTRES_TABLE, BASELINE_CLUSTERS_TABLE, BASELINE_TABLE, centres_schema


def fit(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """The centres, from all usable images."""
    config = context.config.baseline
    X = load_embeddings(context, usable(context).rows)
    estimator = SphericalKMeans(
        context.config.clusters, n_init=config.n_init, max_iter=config.max_iter, random_state=config.random_state, n_threads=context.config.threads
    ).fit(X)
    centres = estimator.cluster_centers_
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(centres.reshape(-1)), type=centres_schema(X.shape[1]).field("centre").type)
    progress(len(X))
    yield Finished("all", (pa.table([np.arange(len(centres)), vectors], schema=centres_schema(X.shape[1])),), {})


def assign(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Every image of the named parts to its nearest centre; k-means has no members, so agreement is null."""
    vectors = context.shards(STAGE, BASELINE_CENTRES_TABLE).read("all")["centre"].combine_chunks()
    centres = vectors.values.to_numpy().reshape(len(vectors), -1)
    rows = usable(context).rows
    rows = rows.append_column("is_duplicate", pa.array(is_duplicate(rows)))
    parts = [(name, part) for name, part in in_parts(rows) if name in names]
    # A part's images are in every shard of `embeddings`: these are read once for all parts.
    embeddings = load_embeddings(context, pa.concat_tables([part for _, part in parts]))
    for name, part in parts:
        X, embeddings = embeddings[: part.num_rows], embeddings[part.num_rows :]
        with threadpool_limits(context.config.threads or None):
            found = [_nearest_two(block) for block in cosines(X, centres)]
        labels, best, second = (np.concatenate(column) for column in zip(*found, strict=True))
        progress(len(X))
        columns = [part["image_id"], part["uri"], part["content_hash"], labels, best, best - second, pa.nulls(len(X), pa.float32()), part["is_duplicate"]]
        yield Finished(name, (pa.table(columns, schema=ASSIGNMENTS),), {})


def _nearest_two(block: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Of cosines (rows, clusters): the best cluster, its cosine, and the second best cosine."""
    second, best = np.partition(block, -2)[:, -2:].T
    return block.argmax(1), best, second


def summarise(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """One row a cluster, from the assignments."""
    rows = usable(context).rows
    assignments = pa.concat_tables(context.shards(STAGE, BASELINE_TABLE).read_all(usable(context).part_names))
    table = cluster_table(load_embeddings(context, rows), assignments, context.config.clusters)
    yield Finished("all", (table,), {})


def _settings(config: PipelineConfig) -> dict[str, object]:
    return {"clusters": config.clusters, **output_settings(config.baseline)}


def _rows_of_parts(context: Context, names: Sequence[str]) -> int:
    return sum(part.num_rows for name, part in in_parts(usable(context).rows) if name in names)


STAGE = Stage(
    name="baseline",
    version=1,
    settings=_settings,
    inputs=lambda context: [encode.STAGE.fingerprint(context), usable(context).digest],
    steps=(
        Step((BASELINE_CENTRES_TABLE,), lambda context: ["all"], fit, lambda context, names: usable(context).rows.num_rows, whole=True),
        Step((BASELINE_TABLE,), lambda context: usable(context).part_names, assign, _rows_of_parts, whole=True),
        Step((BASELINE_CLUSTERS_TABLE,), lambda context: ["all"], summarise, lambda context, names: 0, whole=True),
    ),
)
