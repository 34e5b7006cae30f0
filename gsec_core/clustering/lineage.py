"""Which cluster of a new clustering is which of an older one.

A Hungarian matching (Kuhn 1955) of the two, by the images that both have, passes the keys on by which users know the clusters.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

SAME = 0.25
"""Overlap (Jaccard) from which a cluster that is matched to an older one is the same thing, and has its key."""


class Lineage(NamedTuple):
    """Of each cluster of a new clustering, (clusters,)."""

    keys: NDArray[np.int32]
    previous: NDArray[np.int32]
    """The older cluster whose key it has; -1 if its key is new."""
    overlap: NDArray[np.float32]
    """With that one: images in both over images in either, of those that both clusterings have; NaN without."""
    common: NDArray[np.int64]
    """Images that the older clustering has too."""
    moved: NDArray[np.int64]
    """Those of them that were under another key."""


def first(clusters: int) -> Lineage:
    """The lineage of a clustering that nothing comes before: its clusters' numbers are their keys."""
    nothing = np.zeros(clusters, np.int64)
    return Lineage(np.arange(clusters, dtype=np.int32), np.full(clusters, -1, np.int32), np.full(clusters, np.nan, np.float32), nothing, nothing)


def inherit(shared: pl.DataFrame, clusters: int, keys: NDArray[np.int32], next_key: int) -> Lineage:
    """Keys for the clusters of a new clustering.

    ``shared``: rows ``previous``, ``cluster``, ``images``: how many images are in both, where any is. ``keys``: of the older
    clusters, (older clusters,). Clusters that inherit none get new ones from ``next_key`` on, in order.
    """
    older, newer, images = (shared[name].to_numpy() for name in ("previous", "cluster", "images"))
    of_older, of_newer = np.bincount(older, images, len(keys)), np.bincount(newer, images, clusters)
    overlaps = images / (of_older[older] + of_newer[newer] - images)
    alike = overlaps >= SAME  # only these count: two that are nothing to each other must not part two that are
    matched = match(coo_array((overlaps[alike], (newer[alike], older[alike])), shape=(clusters, len(keys))))
    same = matched[newer] == older
    found, overlap = np.full(clusters, -1, np.int32), np.full(clusters, np.nan, np.float32)
    found[newer[same]], overlap[newer[same]] = older[same], overlaps[same]
    new = found < 0
    given = np.empty(clusters, np.int32)
    given[~new] = keys[found[~new]]
    given[new] = next_key + np.arange(new.sum(), dtype=np.int32)
    stayed = np.zeros(clusters, np.int64)
    stayed[newer[same]] = images[same]
    common = of_newer.astype(np.int64)
    return Lineage(given, found, overlap, common, common - stayed)


def match(overlaps: coo_array) -> NDArray[np.int32]:
    """For each row of sparse positive weights the column matched to it, -1 for none, so that the sum of the weights is as large as can be."""
    rows, columns = overlaps.shape
    # A column of its own for every row, of next to no weight, lets each go without a match.
    alone = coo_array((np.full(rows, 1e-9), (np.arange(rows), np.arange(rows))), shape=(rows, rows))
    of, to = min_weight_full_bipartite_matching(hstack([overlaps, alone]).tocsr(), maximize=True)
    matched = np.full(rows, -1, np.int32)
    matched[of] = np.where(to < columns, to, -1)
    return matched
