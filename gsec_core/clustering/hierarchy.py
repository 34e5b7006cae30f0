"""A tree over clusters by average linkage, and its cuts."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.sparse import coo_array

from gsec_core.clustering.kmeans import unit_rows

MOST_CLUSTERS = 10_000
"""Of more there is no tree: the distances of all pairs would fill the memory."""


class Merge(NamedTuple):
    """An inner node: two clusters or nodes that become one."""

    left: int
    right: int
    """A cluster's number, or K and the place of an earlier merge."""
    height: float
    """Mean distance between the clusters of both sides."""


def co_association(labels: NDArray[np.int32], member_labels: NDArray[np.int32], n_clusters: int) -> NDArray[np.float32]:
    """How often members put images of two clusters together, (n_clusters, n_clusters), 1 on the diagonal.

    ``labels`` (n,), ``member_labels`` (n, members). Of clusters i and j it is the mean over pairs of their images of the share of members with both in one
    cluster (Fred and Jain 2005), over the geometric mean of the same within i and within j. A cluster without images goes with none.
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
    """The merges of clusters from the bottom up, one fewer than clusters; none above `MOST_CLUSTERS`. See `distances`."""
    return joined(distances(centres, together, sizes)) if 2 <= len(centres) <= MOST_CLUSTERS else []


def distances(centres: NDArray[np.float32], together: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Of clusters with clusters, (K, K): 1 less the mean of their co-association and the cosine of their centres from the mean of all images.

    ``centres`` (K, d) are unit vectors, ``together`` (K, K) is `co_association`, ``sizes`` (K,) are images.
    """
    around = around_mean(centres, sizes)
    return 1 - np.float32(0.5) * (together + around @ around.T)


def around_mean(centres: NDArray[np.float32], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Directions of centres from the mean of all images, (K, d): in some spaces all images lie in one direction from the origin."""
    return unit_rows(centres - np.average(centres, axis=0, weights=np.maximum(sizes, 1)))


def joined(distance: NDArray[np.float32]) -> list[Merge]:
    """Average linkage of (K, K) distances."""
    upper = np.maximum(distance[np.triu_indices(len(distance), 1)], 0)
    return [Merge(int(left), int(right), float(height)) for left, right, height, _ in linkage(upper, "average")]


def walk(merges: Sequence[tuple[int, int]], sizes: Sequence[int], deepest: int) -> Iterator[tuple[str, int, int]]:
    """The tree from the root on, the larger halves first: "open" and "close" with a node, "leaf" with a cluster, and the level.

    ``sizes`` are those of the clusters, then of the nodes. Nodes ``deepest`` levels down are passed over, and what is below them stands side by side.
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
    """The clusters in ``groups`` groups, 1 to ``n_clusters``, by the nodes that these are: as before the last ``groups`` - 1 merges.

    A cluster alone is its own node.
    """
    found = {cluster: [cluster] for cluster in range(n_clusters)}
    for number, (left, right) in enumerate(merges[: n_clusters - groups]):
        found[n_clusters + number] = found.pop(left) + found.pop(right)
    return found
