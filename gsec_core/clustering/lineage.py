"""Matches the clusters of a new clustering with those of an older one.

A Hungarian matching (Kuhn 1955) by the images that both clusterings have passes on the keys by which users know the clusters.
"""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

SAME = 0.25
"""Least overlap (Jaccard) at which a cluster is the same as the older one that it is matched with, and keeps its key."""


class Lineage(NamedTuple):
    """Keys of the clusters of a new clustering, and their relation to the older one; (clusters,) each."""

    keys: NDArray[np.int32]
    previous: NDArray[np.int32]
    """The older cluster with the same key; -1 if the key is new."""
    overlap: NDArray[np.float32]
    """Jaccard overlap with that older cluster, over the images that both clusterings have; NaN without one, or without such images."""
    common: NDArray[np.int64]
    """Number of images that the older clustering has too."""
    moved: NDArray[np.int64]
    """Number of these that were under another key."""


def first(clusters: int) -> Lineage:
    """The lineage of a first clustering: keys are the numbers of the clusters."""
    nothing = np.zeros(clusters, np.int64)
    return Lineage(np.arange(clusters, dtype=np.int32), np.full(clusters, -1, np.int32), np.full(clusters, np.nan, np.float32), nothing, nothing)


def inherit(shared: pl.DataFrame, clusters: int, keys: NDArray[np.int32], next_key: int, *, same_numbers: bool = False) -> Lineage:
    """Find the keys of the clusters of a new clustering.

    ``shared`` has columns ``previous``, ``cluster`` and ``images``, the number of images in both, for pairs that share any. ``keys`` (older clusters,)
    are those of the older clusters. Clusters that inherit no key get new ones in order, starting at ``next_key``.

    ``same_numbers`` says that a model was trained further, so that a cluster is the older one of its number: it keeps the key even if all images of the
    older one are gone, and it has none of the images that both clusterings have.
    """
    older, newer, images = (shared[name].to_numpy() for name in ("previous", "cluster", "images"))
    of_older, of_newer = np.bincount(older, images, len(keys)), np.bincount(newer, images, clusters)
    overlaps = images / (of_older[older] + of_newer[newer] - images)
    alike = overlaps >= SAME  # pairs below SAME must not take part in the matching and separate pairs above it
    matched = match(coo_array((overlaps[alike], (newer[alike], older[alike])), shape=(clusters, len(keys))))
    same = matched[newer] == older
    found, overlap = np.full(clusters, -1, np.int32), np.full(clusters, np.nan, np.float32)
    found[newer[same]], overlap[newer[same]] = older[same], overlaps[same]
    if same_numbers:
        number = np.arange(min(clusters, len(keys)))
        kept = number[(of_newer[number] == 0) & (of_older[number] == 0)]
        found[kept] = kept
    new = found < 0
    given = np.empty(clusters, np.int32)
    given[~new] = keys[found[~new]]
    given[new] = next_key + np.arange(new.sum(), dtype=np.int32)
    stayed = np.zeros(clusters, np.int64)
    stayed[newer[same]] = images[same]
    common = of_newer.astype(np.int64)
    return Lineage(given, found, overlap, common, common - stayed)


def match(overlaps: coo_array) -> NDArray[np.int32]:
    """The column matched to each row of sparse positive weights, -1 for none, for the largest possible sum of weights."""
    rows, columns = overlaps.shape
    # An extra column for every row, of tiny weight, lets the row stay unmatched.
    alone = coo_array((np.full(rows, 1e-9), (np.arange(rows), np.arange(rows))), shape=(rows, rows))
    of, to = min_weight_full_bipartite_matching(hstack([overlaps, alone]).tocsr(), maximize=True)
    matched = np.full(rows, -1, np.int32)
    matched[of] = np.where(to < columns, to, -1)
    return matched
