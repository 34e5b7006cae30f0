"""Images for clusters that the consensus leaves empty.

In a skewed collection most members divide the largest cluster, each along another line, and put two small ones together. Their mean gives nearly all
images of the divided cluster to one of its parts, so that the other part may have none. The small clusters stay together, although some members
separate them. So an empty cluster gets the best separated part of another cluster, out of the parts that single members see.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import row_blocks
from gsec_core.clustering.smoothing import Posteriors

LEAST_PURITY = 0.5
"""Purity that both sides of a division must have. A cluster without gaps, divided anywhere, has less; then the empty cluster stays empty."""

_DECIMALS = 2
"""Purities that are equal after rounding to this number of decimals count as equal."""


class Division(NamedTuple):
    """Rows of a cluster that was divided, by their numbers, (rows,) each."""

    part: NDArray[np.int64]
    """The rows that a cluster got which had none."""
    rest: NDArray[np.int64]
    """The rows that the divided cluster kept."""


class _Part(NamedTuple):
    """The images of a cluster to which a member gives the same label. Parts are ordered by purity, then by size."""

    purity: float
    """The lower purity of the part and the rest of the cluster: how much more often than by chance the neighbours that are in the cluster are on this side."""
    size: int
    """Size of the smaller side."""
    cluster: int
    member: int
    label: int
    """In the member's own numbers."""


def refill(posteriors: Posteriors, labels: NDArray[np.int32], neighbors: Sequence[NDArray[np.int32]], weights: Sequence[float]) -> list[Division]:
    """In place, give images to the clusters that have none in ``posteriors``, as far as there are separated parts of other clusters.

    In the rows of a part, the posteriors of its cluster become those of the empty cluster, which gets 0 elsewhere. Each cluster loses one part at most.
    Returns the divided clusters.

    Parameters
    ----------
    labels : (n, members), each member's label of each row, in its own numbers
    neighbors : (n, k) row numbers for each half
    weights : weight of each half, of sum 1
    """
    clusters = np.concatenate([posteriors.best(rows)[0] for rows in row_blocks(len(labels))])
    empty = np.setdiff1d(np.arange(posteriors.n_clusters), clusters)
    if not len(empty):
        return []
    best: dict[int, _Part] = {}
    for member in range(labels.shape[1]):
        for part in _parts(clusters, labels[:, member], member, neighbors, weights):
            best[part.cluster] = max(part, best.get(part.cluster, part))
    parts = sorted(best.values(), reverse=True)[: len(empty)]
    if not parts:
        return []
    order = np.argsort(clusters, kind="stable")
    starts = np.searchsorted(clusters[order], np.arange(posteriors.n_clusters + 1))
    divided = []
    for part in parts:
        own = order[starts[part.cluster] : starts[part.cluster + 1]]
        taken = labels[own, part.member] == part.label
        divided.append(Division(own[taken], own[~taken]))
    posteriors.moved([(division.part, part.cluster, int(cluster)) for division, part, cluster in zip(divided, parts, empty, strict=False)])
    return divided


def _parts(
    clusters: NDArray[np.int32], labels: NDArray[np.int32], member: int, neighbors: Sequence[NDArray[np.int32]], weights: Sequence[float]
) -> Iterator[_Part]:
    """The parts of all clusters by the ``labels`` (n,) of one member that are separated from the rest of their cluster."""
    _, first, part = np.unique(np.stack([clusters, labels]), axis=1, return_index=True, return_inverse=True)
    count, of = len(first), clusters[first]
    edges, inner, entering = np.zeros((3, count))  # weights of neighbours in the same cluster: of rows of the part, those of them in the part, all in the part
    for rows in row_blocks(len(labels)):
        for half, weight in zip(neighbors, weights, strict=True):
            near = half[rows]
            here, there = np.repeat(part[rows], near.shape[1]), part[near].ravel()
            within = of[here] == of[there]
            here, there = here[within], there[within]
            edges += weight * np.bincount(here, minlength=count)
            inner += weight * np.bincount(here[here == there], minlength=count)
            entering += weight * np.bincount(there, minlength=count)
    sizes = np.bincount(part)
    of_cluster = np.bincount(of, edges)[of]
    rest, share = of_cluster - edges, sizes / np.bincount(of, sizes)[of]
    for index in np.flatnonzero((share < 1) & (edges > 0) & (rest > 0)):
        own, others = inner[index] / edges[index], 1 - (entering[index] - inner[index]) / rest[index]
        purity = round(min((own - share[index]) / (1 - share[index]), (others - 1 + share[index]) / share[index]), _DECIMALS)
        if purity >= LEAST_PURITY:
            size = min(sizes[index], round(sizes[index] / share[index]) - sizes[index])
            yield _Part(purity, int(size), int(of[index]), member, int(labels[first[index]]))
