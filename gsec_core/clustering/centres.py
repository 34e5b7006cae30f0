"""Where clusters lie among the embeddings, and which images lie far out."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gsec_core.clustering.kmeans import BLOCK_ROWS, unit_rows


class Centres(NamedTuple):
    """Clusters among unit vectors."""

    directions: NDArray[np.float32]
    """(n_clusters, d): mean direction of the images, unit vectors; zeros of an empty cluster."""
    distance: NDArray[np.float32]
    """(n_clusters,): 1 - cosine of the images to it, mean."""
    deviation: NDArray[np.float32]
    """(n_clusters,): and standard deviation."""

    @classmethod
    def of(cls, X: NDArray[Any], labels: NDArray[np.integer[Any]], n_clusters: int) -> "Centres":
        """Of images ``X`` (n, d), which may be a memory map, with ``labels`` (n,)."""
        directions = unit_rows(cluster_sums(X, labels, n_clusters))
        sizes = np.maximum(np.bincount(labels, minlength=n_clusters), 1)
        found = distances(X, labels, directions).astype(np.float64)
        mean = np.bincount(labels, found, n_clusters) / sizes
        variance = np.bincount(labels, np.square(found - mean[labels]), n_clusters) / sizes
        return cls(directions, mean.astype(np.float32), np.sqrt(variance).astype(np.float32))

    def outliers(self, X: NDArray[Any], labels: NDArray[np.integer[Any]], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """By how many deviations each row of ``X`` (n, d) is farther from its cluster's centre than the cluster's images are: (n,).

        0 in a cluster whose images are all equally far. With the clusters' ``sizes`` (n_clusters,), for images that the centres are made of: a centre
        is then that of the other images, as it is for new ones, which are farther from it than those that are in it.
        """
        beyond = distances(X, labels, self.directions) - self.distance[labels]
        if sizes is not None:
            lengths = sizes * (1 - self.distance)  # of the sum of unit vectors, of which the mean cosine to it is the length of the mean
            beyond = _without_itself(beyond + self.distance[labels], lengths[labels]) - self.distance[labels]
        deviation = self.deviation[labels]
        return np.where(deviation > 1e-6, beyond / np.maximum(deviation, 1e-6), 0).astype(np.float32)


def distances(X: NDArray[Any], labels: NDArray[np.integer[Any]], directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine of each row of ``X`` (n, d) to the centre of its cluster, (n,)."""
    found = np.empty(len(X), np.float32)
    for start in range(0, len(X), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        found[block] = 1 - np.einsum("ij,ij->i", unit_rows(X[block]), directions[labels[block]])
    return found


def _without_itself(distance: NDArray[np.float32], length: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Distances (n,) of images to their clusters' centres, if these were without them; ``length`` (n,) of the sums that centres are directions of."""
    cosine = 1 - distance
    rest = np.sqrt(np.maximum(length**2 - 2 * length * cosine + 1, 1e-12))
    return np.where(length > 1.5, 1 - (length * cosine - 1) / rest, distance).astype(np.float32)


def cluster_sums(X: NDArray[Any], labels: NDArray[np.integer[Any]], n_clusters: int) -> NDArray[np.float64]:
    """Of each cluster the sum of its images' unit vectors, (n_clusters, d)."""
    sums = np.zeros((n_clusters, X.shape[1]), np.float64)
    for start in range(0, len(X), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        member = csr_array((np.ones(len(labels[block])), (labels[block], np.arange(len(labels[block])))), shape=(n_clusters, len(labels[block])))
        sums += member @ unit_rows(X[block])
    return sums
