"""A tree over clusters by average linkage, and its cuts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array

from gsec_core.clustering.kmeans import unit_rows

MOST_CLUSTERS = 10_000
"""No tree is made of more clusters, since the distances of all pairs would fill the memory."""


class Merge(NamedTuple):
    """An inner node of the tree, which merges two clusters or nodes."""

    left: int
    right: int
    """Like ``left``: the number of a cluster, below K, or K plus the index of an earlier merge."""
    height: float
    """Mean distance between the clusters of the two sides."""


def co_association(labels: NDArray[np.int32], member_labels: NDArray[np.int32], n_clusters: int) -> NDArray[np.float32]:
    """How often members put images of two clusters together, (n_clusters, n_clusters), 1 on the diagonal.

    Takes ``labels`` (n,) and ``member_labels`` (n, members). For clusters i and j: the share of members that put both images into one cluster, averaged over
    all pairs of their images (Fred and Jain 2005), divided by the geometric mean of the same within i and within j. 0 for a cluster without images.
    """
    together = np.zeros((n_clusters, n_clusters), np.float32)
    sizes = np.maximum(np.bincount(labels, minlength=n_clusters), 1).astype(np.float32)
    for said in member_labels.T:
        counts = coo_array((np.ones(len(labels), np.float32), (labels, said)), shape=(n_clusters, n_clusters)).tocsr()
        shares = counts.multiply(1 / sizes[:, None]).tocsr()
        together += (shares @ shares.T).toarray()
    within = np.sqrt(np.diag(together))
    together /= np.maximum(np.outer(within, within), np.finfo(np.float32).tiny)
    np.fill_diagonal(together, 1)
    return together


def tree(centres: NDArray[np.float32], together: NDArray[np.float32], sizes: NDArray[np.int64]) -> list[Merge]:
    """The K - 1 merges of K clusters from the bottom up, by `distances`; empty for more than `MOST_CLUSTERS` clusters."""
    return joined(distances(centres, together, sizes)) if 2 <= len(centres) <= MOST_CLUSTERS else []


def distances(centres: NDArray[np.float32], together: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Distances of all pairs of clusters, (K, K): 1 minus the mean of their co-association and the cosine of their centred directions, see `around_mean`.

    ``centres`` (K, d) are unit vectors, ``together`` (K, K) comes from `co_association`, ``sizes`` (K,) are numbers of images.
    """
    around = around_mean(centres, sizes)
    return 1 - np.float32(0.5) * (together + around @ around.T)


def around_mean(centres: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Directions of the centres as seen from the mean of all images, (K, d), since in some spaces all images lie in one direction from the origin."""
    return unit_rows(centres - np.average(centres, axis=0, weights=np.maximum(sizes, 1)))


def joined(distance: NDArray[np.float32]) -> list[Merge]:
    """Merges by average linkage of ``distance`` (K, K)."""
    upper = np.maximum(distance[np.triu_indices(len(distance), 1)], 0)
    return [Merge(int(left), int(right), float(height)) for left, right, height, _ in linkage(upper, "average")]


def walk(merges: Sequence[tuple[int, int]], sizes: Sequence[int], deepest: int) -> Iterator[tuple[str, int, int]]:
    """Walk the tree from the root, larger halves first. Yields "open" and "close" with a node, or "leaf" with a cluster, and the level.

    ``sizes`` are those of the clusters, followed by those of the nodes. Nodes from level ``deepest`` on are skipped, and the clusters below them are listed
    side by side.
    """
    clusters = len(merges) + 1
    waiting = [("visit", 2 * len(merges), 0)] if len(sizes) else []
    while waiting:
        step, number, level = waiting.pop()
        if step == "close":
            yield step, number, level
        elif number < clusters:
            yield "leaf", number, level
        else:
            folds = level < deepest
            if folds:
                yield "open", number, level
                waiting.append(("close", number, level))
            waiting += [("visit", child, level + folds) for child in sorted(merges[number - clusters], key=lambda child: sizes[child])]


def leaves(merges: Sequence[tuple[int, int]], n_clusters: int) -> list[list[int]]:
    """The clusters below each merge."""
    below = [[cluster] for cluster in range(n_clusters)]
    for left, right in merges:
        below.append(below[left] + below[right])
    return below[n_clusters:]


def cut(merges: Sequence[tuple[int, int]], n_clusters: int, groups: int) -> dict[int, list[int]]:
    """Cut the tree into ``groups`` groups of clusters, 1 to ``n_clusters``, by undoing the last ``groups`` - 1 merges.

    Returns the clusters of each group by its node; the node of a single cluster is the cluster's number.
    """
    found = {cluster: [cluster] for cluster in range(n_clusters)}
    for number, (left, right) in enumerate(merges[: n_clusters - groups]):
        found[n_clusters + number] = found.pop(left) + found.pop(right)
    return found
