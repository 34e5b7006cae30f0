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
        found = distances(X, labels, self.directions)
        return self._scaled(found if sizes is None else _without_itself(found, self._lengths(sizes)[labels]), labels)

    def outliers_if_joined(self, X: NDArray[Any], labels: NDArray[np.integer[Any]], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
        """As `outliers`, for images that the centres were not computed from: each is compared with the centre that its cluster would have with it.

        Only so are scores of new images comparable with those of the clusters' own images: in many dimensions an image is always nearer to a mean that it is
        part of, much nearer if the cluster is small.
        """
        return self._scaled(_with_itself(distances(X, labels, self.directions), self._lengths(sizes)[labels]), labels)

    def _lengths(self, sizes: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """Lengths of the clusters' sums of unit vectors, (n_clusters,): their mean has the length of their mean cosine to it."""
        lengths: NDArray[np.floating[Any]] = sizes * (1 - self.distance)
        return lengths

    def _scaled(self, found: NDArray[np.float32], labels: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        deviation = self.deviation[labels]
        return np.where(deviation > 1e-6, (found - self.distance[labels]) / np.maximum(deviation, 1e-6), 0).astype(np.float32)


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


def _with_itself(distance: NDArray[np.float32], length: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Distances (n,) of images to the centres that their clusters would have with them; ``length`` as in `_without_itself`, 0 for an empty cluster."""
    cosine = 1 - distance
    whole = np.sqrt(np.maximum(length**2 + 2 * length * cosine + 1, 1e-12))
    joined: NDArray[np.float32] = (1 - (length * cosine + 1) / whole).astype(np.float32)
    return joined


def cluster_sums(X: NDArray[Any], labels: NDArray[np.integer[Any]], n_clusters: int) -> NDArray[np.float64]:
    """The sum of the unit vectors of each cluster's images, (n_clusters, d)."""
    sums = np.zeros((n_clusters, X.shape[1]), np.float64)
    for rows in row_blocks(len(X)):
        cluster = labels[rows]
        member = csr_array((np.ones(len(cluster)), (cluster, np.arange(len(cluster)))), shape=(n_clusters, len(cluster)))
        sums += member @ unit_rows(X[rows])
    return sums
