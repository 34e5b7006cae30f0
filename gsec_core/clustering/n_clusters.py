"""Suggests the number of clusters: the largest number whose clusters are still separated, if the images show one.

A cluster is separated if the neighbours of its images are in it. One Ward tree (Ward 1963) of a sample gives a clustering for every number,
without dependence on a random start. The purity of a clustering is the share of neighbours in the same cluster, corrected for
chance. With separated clusters it stays near 1 up to their number and drops at once beyond, where clusters are cut in
two. If it falls gradually, the images have no definite number of clusters, or the features do not show it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cut_tree, linkage

from gsec_core.clustering.features import principal, project
from gsec_core.clustering.kmeans import sample_rows
from gsec_core.clustering.metrics import purity
from gsec_core.clustering.neighbors import NeighborIndex

MOST = 200
"""Largest number of clusters that is tried."""

PURE, MOSTLY_PURE, IMPURE = 0.95, 0.9, 0.75
"""A number is accepted if mean purity is at least `PURE`, if all but a tenth of its clusters have at least `MOSTLY_PURE`, and if with more clusters (see
`BEYOND`) a tenth have at most `IMPURE`."""

BEYOND = 1.25
"""Purity must have fallen at this multiple of the accepted number."""

_SAMPLE_ROWS = 5000
_ROWS_PER_CLUSTER = 20
_N_NEIGHBORS = 10
_COMPONENTS = 128
_GROWTH = 1.1


class NumberOfClusters(NamedTuple):
    """The suggested number, and purity for all numbers that were tried."""

    n_clusters: int | None
    """None if no number is suggested."""
    counts: NDArray[np.int64]
    """(m,): numbers of clusters that were tried, ascending."""
    purity: NDArray[np.float64]
    """(m,): mean over images, see `metrics.purity`."""
    low: NDArray[np.float64]
    """(m,): purity that all but a tenth of the clusters reach (0.1 quantile)."""


def suggest_n_clusters(X: NDArray[Any]) -> NumberOfClusters:
    """Suggest the number of clusters of images ``X`` (n, d), floats of any precision; may be a memory map.

    Above 5,000 images a random sample is used. Up to 200 clusters are tried, with at least 20 images each on average.
    The limits were chosen on synthetic clusters of known number and on the development sets, whose purity falls gradually.
    Raises ValueError if there are fewer than 40 images.
    """
    sample = np.asarray(X[sample_rows(len(X), _SAMPLE_ROWS, 0)])
    counts = _counts(min(MOST, len(sample) // _ROWS_PER_CLUSTER))
    if not len(counts):
        raise ValueError(f"X has {len(X)} rows: too few to tell the number of clusters; there must be at least {2 * _ROWS_PER_CLUSTER}.")
    half = principal(sample, _COMPONENTS)
    rows = np.concatenate(list(project(sample, half)))
    neighbors = NeighborIndex(lambda wanted: rows[wanted], len(rows)).search(0, len(rows), _N_NEIGHBORS)
    cuts = cut_tree(linkage(rows, "ward"), counts).T
    found = [purity(labels, neighbors) for labels in cuts]
    means, low = np.array([mean for _, mean in found]), np.array([np.quantile(pure, 0.1) for pure, _ in found])
    return NumberOfClusters(_largest_pure(counts, means, low), counts, means, low)


def _counts(most: int) -> NDArray[np.int64]:
    """Numbers from 2 to ``most``, each larger than the one before by a tenth, or at least by one."""
    found = [2]
    while found[-1] < most:
        found.append(max(found[-1] + 1, round(_GROWTH * found[-1])))
    return np.array([count for count in found if count <= most], np.int64)


def _largest_pure(counts: NDArray[np.int64], means: NDArray[np.float64], low: NDArray[np.float64]) -> int | None:
    pure = np.flatnonzero((means >= PURE) & (low >= MOSTLY_PURE))
    if not len(pure):
        return None
    found = counts[pure[-1]]
    beyond = np.flatnonzero((counts > found) & (counts >= BEYOND * found))
    return int(found) if len(beyond) and low[beyond[0]] <= IMPURE else None
