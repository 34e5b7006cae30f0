"""Micro-clusters and their representatives. Li et al. 2026, https://arxiv.org/abs/2605.12961."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_DERIVED = 4096
ROWS_PER_PROTOTYPE = 60

_DECIMALS = 5
"""Decimals to which distances are rounded before sorting: the two members of a pair are equally far from their centre except for rounding."""


def prototype_count(n: int, n_clusters: int, count: int | None = None) -> int:
    """Number of micro-clusters for ``n`` rows: ``count`` if given; else one for 60 rows, at most 4,096, but at least three per cluster. Never above ``n``.

    After TAC (Li et al. 2024, https://arxiv.org/abs/2310.11989), which makes one for 300 rows; more descriptions help most.
    """
    return min(n, count or max(3 * n_clusters, min(round(n / ROWS_PER_PROTOTYPE), MOST_DERIVED)))


class Representatives(NamedTuple):
    """Representatives of micro-clusters, sorted by micro-cluster and band; each array is (representatives,)."""

    prototype: NDArray[np.int32]
    band: NDArray[np.int32]
    """0 is the core."""
    row: NDArray[np.int64]
    """Row number of the representative."""


def representatives(distances: ArrayLike, labels: ArrayLike, n_prototypes: int, bands: int) -> Representatives:
    """Choose the middle member of each of ``bands`` equal bands from a micro-cluster's core to its rim; all members if they are not more than ``bands``.

    Members at the same distance are sorted by row. An empty micro-cluster has no representative.

    Parameters
    ----------
    distances : (n,) floats, distance of each row to the centre of its micro-cluster
    labels : (n,) integers below ``n_prototypes``
    """
    distances, labels = np.asarray(distances), np.asarray(labels)
    order = np.lexsort((distances.round(_DECIMALS), labels))  # stable, so that equal distances are sorted by row
    sizes = np.bincount(labels, minlength=n_prototypes)
    counts = np.minimum(sizes, bands)
    prototype = np.repeat(np.arange(n_prototypes), counts)
    band = np.arange(len(prototype)) - np.repeat(np.cumsum(counts) - counts, counts)
    size, count = sizes[prototype], counts[prototype]
    middle = (band * size // count + (band + 1) * size // count) // 2
    first = np.cumsum(sizes) - sizes
    return Representatives(prototype.astype(np.int32), band.astype(np.int32), order[first[prototype] + middle])
