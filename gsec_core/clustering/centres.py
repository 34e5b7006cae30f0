"""Centres of clusters in the space of the embeddings, and outliers."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gsec_core.clustering.kmeans import row_blocks, unit_rows


class Centres(NamedTuple):
    """Mean directions of clusters of unit vectors, and the spread of their images."""

    directions: NDArray[np.float32]
    """(n_clusters, d): centres, the mean directions of the images as unit vectors; zeros for an empty cluster."""
    distance: NDArray[np.float32]
    """(n_clusters,): mean of 1 - cosine of the images to their centre."""
    deviation: NDArray[np.float32]
    """(n_clusters,): standard deviation of 1 - cosine."""

    @classmethod
    def of(cls, X: NDArray[Any], labels: NDArray[np.integer[Any]], n_clusters: int) -> "Centres":
        """Compute the centres of images ``X`` (n, d), which may be a memory map, with ``labels`` (n,)."""
        directions = unit_rows(cluster_sums(X, labels, n_clusters))
        sizes = np.maximum(np.bincount(labels, minlength=n_clusters), 1)
        found = distances(X, labels, directions).astype(np.float64)
        mean = np.bincount(labels, found, n_clusters) / sizes
        variance = np.bincount(labels, np.square(found - mean[labels]), n_clusters) / sizes
        return cls(directions, mean.astype(np.float32), np.sqrt(variance).astype(np.float32))

    def outliers(self, X: NDArray[Any], labels: NDArray[np.integer[Any]], sizes: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Distance of each row of ``X`` (n, d) to its centre above the mean of the cluster, in standard deviations: (n,).

        0 in a cluster whose images are all equally far from the centre. Give the clusters' ``sizes`` (n_clusters,) for images that the centres were
        computed from: each image is then compared with the centre of the other images, as new images are; otherwise it would seem closer than they do.
        """
        beyond = distances(X, labels, self.directions) - self.distance[labels]
        if sizes is not None:
            lengths = sizes * (1 - self.distance)  # length of the sum of unit vectors: their mean has the length of their mean cosine to it
            beyond = _without_itself(beyond + self.distance[labels], lengths[labels]) - self.distance[labels]
        deviation = self.deviation[labels]
        return np.where(deviation > 1e-6, beyond / np.maximum(deviation, 1e-6), 0).astype(np.float32)


def distances(X: NDArray[Any], labels: NDArray[np.integer[Any]], directions: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 - cosine of each row of ``X`` (n, d) to the centre of its cluster, (n,)."""
    found = np.empty(len(X), np.float32)
    for rows in row_blocks(len(X)):
        found[rows] = 1 - np.einsum("ij,ij->i", unit_rows(X[rows]), directions[labels[rows]])
    return found


def _without_itself(distance: NDArray[np.float32], length: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Distances (n,) of images to their centres when computed without them; ``length`` (n,) is that of the cluster's sum of unit vectors."""
    cosine = 1 - distance
    rest = np.sqrt(np.maximum(length**2 - 2 * length * cosine + 1, 1e-12))
    return np.where(length > 1.5, 1 - (length * cosine - 1) / rest, distance).astype(np.float32)


def cluster_sums(X: NDArray[Any], labels: NDArray[np.integer[Any]], n_clusters: int) -> NDArray[np.float64]:
    """The sum of the unit vectors of each cluster's images, (n_clusters, d)."""
    sums = np.zeros((n_clusters, X.shape[1]), np.float64)
    for rows in row_blocks(len(X)):
        cluster = labels[rows]
        member = csr_array((np.ones(len(cluster)), (cluster, np.arange(len(cluster)))), shape=(n_clusters, len(cluster)))
        sums += member @ unit_rows(X[rows])
    return sums
