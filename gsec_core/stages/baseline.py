"""baseline: plain spherical k-means on the image embeddings, so that the consensus can always be compared with it.

Reads `embeddings`; writes `baseline_centres`, `baseline` (one row for each image) and `baseline_clusters`. The centres are
committed before the first assignment, so that all parts of `baseline` have the same labelling, on whichever machine they are made.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import cosines
from gsec_core.config import PipelineConfig
from gsec_core.devices import native_threads
from gsec_core.section import output_settings
from gsec_core.stages import encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import all_images, assignment_table, check_enough, cluster_table, load_embeddings, parts, read_parts, step_of_parts, usable
from gsec_core.store.arrays import make_table, to_matrix
from gsec_core.tables import BASELINE_CENTRES_TABLE, BASELINE_CLUSTERS_TABLE, BASELINE_TABLE, centres_schema


def fit(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Fit the centres on all usable images."""
    from sklearn import config_context

    from gsec_core.clustering.spherical_kmeans import SphericalKMeans

    config = context.config.baseline
    X = load_embeddings(context)
    estimator = SphericalKMeans(
        context.config.n_clusters, n_init=config.n_init, max_iter=config.max_iter, random_state=config.random_state, n_threads=context.config.threads
    )
    with config_context(assume_finite=True):  # the embeddings are finite; the check would allocate a flag for each value
        shares = iter(np.diff(np.linspace(0, len(X), config.n_init + 1).astype(int)).tolist())
        centres = estimator.fit(X, progress=lambda: progress(next(shares))).cluster_centers_
    yield Finished("all", (make_table([np.arange(len(centres)), centres], centres_schema(X.shape[1])),))


def assign(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Assign every image of the named parts to its nearest centre; agreement is null, as k-means has no members."""
    centres = to_matrix(context.read(STAGE, BASELINE_CENTRES_TABLE), "centre")
    embeddings = load_embeddings(context)
    for part in parts(context, names):
        with native_threads(context.config.threads):
            found = [_nearest_two(block) for block in cosines(embeddings[part.start : part.stop], centres)]
        labels, best, second = (np.concatenate(column) for column in zip(*found, strict=True))
        progress(len(labels))
        yield Finished(part.name, (assignment_table(part, labels, best, best - second),))


def _nearest_two(block: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """The best cluster of each row of cosines (rows, clusters), its cosine, and the second best cosine."""
    second, best = np.partition(block, -2)[:, -2:].T
    return block.argmax(1), best, second


def summarise(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Make the table of clusters from the assignments, one row for each."""
    assignments = read_parts(context, STAGE, BASELINE_TABLE)
    table = cluster_table(load_embeddings(context), assignments, context.config.n_clusters)
    yield Finished("all", (table,))


def _settings(config: PipelineConfig) -> dict[str, object]:
    return {"clusters": config.n_clusters, **output_settings(config.baseline)}


def _inputs(context: Context) -> list[str]:
    check_enough(context)
    return [encode.STAGE.fingerprint(context), usable(context).digest]


STAGE = Stage(
    name="baseline",
    version=2,
    settings=_settings,
    inputs=_inputs,
    steps=(
        Step((BASELINE_CENTRES_TABLE,), fit, units=all_images, whole=True),
        step_of_parts(BASELINE_TABLE, assign, whole=True),
        Step((BASELINE_CLUSTERS_TABLE,), summarise, whole=True),
    ),
)
