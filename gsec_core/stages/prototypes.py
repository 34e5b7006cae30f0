"""prototypes: makes micro-clusters of the images, and chooses the few images of each that are described.

Reads `embeddings`; writes `prototypes` and `representatives`. The prototypes are committed before their representatives
are chosen, so that both belong to the same clustering. The number of clusters matters only through the number of
prototypes that may follow from it: if that is the same, so are the tables.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from gsec_core.clustering.kmeans import cosines
from gsec_core.clustering.prototypes import prototype_count, representatives
from gsec_core.devices import native_threads
from gsec_core.section import output_settings
from gsec_core.stages import encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import all_images, check_enough, load_embeddings, usable
from gsec_core.store.arrays import make_table, to_matrix
from gsec_core.tables import PROTOTYPES_TABLE, REPRESENTATIVES, REPRESENTATIVES_TABLE, prototypes_schema

SAMPLE_PER_PROTOTYPE = 64
"""Images per micro-cluster that the centres are fitted on: enough to place a centre, and the sample for 4,096 micro-clusters still fits into memory."""


def fit(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Fit the micro-clusters on the usable images."""
    from sklearn import config_context

    from gsec_core.clustering.spherical_kmeans import SphericalKMeans

    config = context.config.prototypes
    X = load_embeddings(context)
    estimator = SphericalKMeans(
        count(context),
        n_init=1,
        max_iter=config.max_iter,
        random_state=config.random_state,
        n_threads=context.config.threads,
        sample_per_cluster=SAMPLE_PER_PROTOTYPE,
    )
    with config_context(assume_finite=True):  # the embeddings are finite; the check would allocate a flag for each value
        estimator.fit(X)
    centres = estimator.cluster_centers_
    progress(len(X))
    columns = [np.arange(len(centres)), centres, np.bincount(estimator.labels_, minlength=len(centres))]
    yield Finished("all", (make_table(columns, prototypes_schema(X.shape[1])),))


def choose(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Choose the images to be described."""
    centres = to_matrix(context.read(STAGE, PROTOTYPES_TABLE), "centre")
    labels, distances = [], []
    with native_threads(context.config.threads):
        for block in cosines(load_embeddings(context), centres):
            labels.append(block.argmax(1))
            distances.append(1 - block.max(1))
            progress(len(block))
    distance = np.concatenate(distances)
    found = representatives(distance, np.concatenate(labels), len(centres), context.config.prototypes.representatives or len(distance))
    images = usable(context).rows.take(found.row)
    columns = [found.prototype, found.band, images["image_id"], images["uri"], images["content_hash"], distance[found.row]]
    yield Finished("all", (pa.table(columns, schema=REPRESENTATIVES),))


def count(context: Context) -> int:
    """Number of micro-clusters of the run."""
    return prototype_count(len(usable(context)), context.config.n_clusters, context.config.prototypes.count)


def _inputs(context: Context) -> list[str]:
    check_enough(context)
    return [encode.STAGE.fingerprint(context), usable(context).digest, str(count(context))]


STAGE = Stage(
    name="prototypes",
    version=4,
    settings=lambda config: output_settings(config.prototypes),
    inputs=_inputs,
    steps=(
        Step((PROTOTYPES_TABLE,), fit, units=all_images, whole=True),
        Step((REPRESENTATIVES_TABLE,), choose, units=all_images, whole=True),
    ),
)
