"""baseline: plain spherical k-means on the image embeddings, in every run, so that the consensus always stands beside it.

Reads `embeddings`; writes `baseline` (a row an image) and `baseline_clusters`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from gsec_core.clustering.kmeans import SphericalKMeans
from gsec_core.config import PipelineConfig, output_settings
from gsec_core.stages import encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import cluster_table, in_parts, is_duplicate, load_embeddings, usable
from gsec_core.tables import ASSIGNMENTS, BASELINE_CLUSTERS_TABLE, BASELINE_TABLE


def assign(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Fit on all usable images and yield their rows; k-means has no members, so agreement is null."""
    rows = usable(context).rows
    X = load_embeddings(context, rows)
    config = context.config.baseline
    estimator = SphericalKMeans(
        context.config.clusters, n_init=config.n_init, max_iter=config.max_iter, random_state=config.random_state, n_threads=context.config.threads
    ).fit(X)
    best_two = np.concatenate([-np.partition(-cosines, 1)[:, :2] for cosines in estimator.similarities(X)])
    table = pa.table(
        [
            rows["image_id"],
            rows["uri"],
            rows["content_hash"],
            estimator.labels_,
            best_two[:, 0],
            best_two[:, 0] - best_two[:, 1],
            pa.nulls(len(X), pa.float32()),
            is_duplicate(rows),
        ],
        schema=ASSIGNMENTS,
    )
    progress(len(X))
    for name, part in in_parts(table):
        yield Finished(name, (part,), {})


def summarise(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """One row a cluster, from the assignments."""
    rows = usable(context).rows
    assignments = pa.concat_tables(context.shards(STAGE, BASELINE_TABLE).read_all(usable(context).part_names))
    table = cluster_table(load_embeddings(context, rows), assignments, context.config.clusters)
    yield Finished("all", (table,), {})


def _settings(config: PipelineConfig) -> dict[str, object]:
    return {"clusters": config.clusters, **output_settings(config.baseline)}


STAGE = Stage(
    name="baseline",
    version=1,
    settings=_settings,
    inputs=lambda context: [encode.STAGE.fingerprint(context), usable(context).digest],
    steps=(
        Step((BASELINE_TABLE,), lambda context: usable(context).part_names, assign, lambda context, names: usable(context).rows.num_rows, whole=True),
        Step((BASELINE_CLUSTERS_TABLE,), lambda context: ["all"], summarise, lambda context, names: 0, whole=True),
    ),
)
