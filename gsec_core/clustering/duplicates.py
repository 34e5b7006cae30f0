"""Near-duplicates: groups of images that show the same picture, and the first image of each group."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gsec_core.clustering.kmeans import unit_rows
from gsec_core.devices import thread_count

SIDE = 16
"""Side in pixels of the small pictures that are compared."""

SAME_PICTURE = 0.95
"""Least correlation of two small pictures that are the same: a copy that is smaller, or compressed harder, has .97 or more in 99 of 100 cases."""

FARTHER = 3
"""If the small pictures are the same, the cosine may be this many times as far from 1 as the threshold. An encoder tells a blurred copy from its
original more sharply than the eye does."""

_BLOCK = 2048
"""Number of pairs whose rows one thread copies into memory at once."""

Pairs = NDArray[np.int64]
"""(pairs, 2): row numbers."""


@dataclass(frozen=True)
class Likeness:
    """Decides whether two images are the same picture: by the cosine of their embeddings, or by a lower one if their small pictures are the same, too.

    Parameters
    ----------
    X : floats (n, d)
        Embeddings, of unit length; may be a memory map.
    pixels : uint8 (n, side, side, 3)
        Small pictures; may be a memory map. The cosine alone counts for an image without one, and for one of a single colour.
    threshold : float
        Least cosine at which two images are the same picture.
    n_threads : int
        Threads; 0 = one a core.
    """

    X: NDArray[Any]
    pixels: NDArray[np.uint8]
    threshold: float
    n_threads: int = 0

    @property
    def least(self) -> float:
        """Cosine below which images are never the same picture."""
        return 1 - FARTHER * (1 - self.threshold)

    def cosines(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines of the rows ``a`` with the rows ``b``, pair by pair, (len(a),); computed block by block."""
        return self._by_blocks(lambda block: _products(self.X[a[block]], self.X[b[block]]), len(a))

    def same(self, a: NDArray[np.int64], b: NDArray[np.int64], cosines: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the rows ``a`` are the same picture as the rows ``b``, (len(a),), given their cosines."""
        found: NDArray[np.bool_] = cosines >= self.threshold
        unsure = np.flatnonzero(~found & (cosines >= self.least))
        of, to = a[unsure], b[unsure]
        correlations = self._by_blocks(lambda block: _products(_standardised(self.pixels[of[block]]), _standardised(self.pixels[to[block]])), len(unsure))
        found[unsure] = correlations >= SAME_PICTURE
        return found

    def _by_blocks(self, of: Callable[[slice], NDArray[np.float32]], n: int) -> NDArray[np.float32]:
        blocks = [slice(start, start + _BLOCK) for start in range(0, n, _BLOCK)]
        if len(blocks) <= 1:
            return of(blocks[0]) if blocks else np.empty(0, np.float32)
        with ThreadPoolExecutor(thread_count(self.n_threads), thread_name_prefix="pairs") as pool:
            return np.concatenate(list(pool.map(of, blocks)))


def grouped(
    like: Likeness,
    candidates: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
    search: Callable[[NDArray[np.int64]], NDArray[Any]],
    rank: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first row of each row's group, and the cosine to it, (n,) each; see `groups`.

    Parameters
    ----------
    like : Likeness
        Over n rows.
    candidates : pairs of rows (m,) and their nearest other rows (m, k): row numbers, -1 for none; each row comes once in all
    search : callable
        Returns, for two or more rows, the nearest others among them, (m, k).
    rank : (n,)
        The row of the smallest rank is the first of its group.
    """
    similar, full = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for rows, near in candidates:
        similar.append(pairs(like, rows, near))
        others, same = ((near >= 0) & (near != rows[:, None])).sum(1), np.bincount(similar[-1][:, 0], minlength=len(rank))[rows]
        full.append(rows[(others > 0) & (same == others)])
    first, cosine = groups(like, np.concatenate(similar), rank)
    # If all neighbours of a row are copies, it may have further copies: its group may have been found in pieces.
    pieces = np.unique(first[np.concatenate(full)])
    if len(pieces) > 1 and len(more := pairs(like, pieces, search(pieces))):
        return groups(like, np.concatenate([*similar, more]), rank)
    return first, cosine


def pairs(like: Likeness, rows: NDArray[np.int64], near: NDArray[Any]) -> Pairs:
    """Pairs of ``rows`` (m,) and their candidates ``near`` (m, k), row numbers or -1 for none, that are the same picture."""
    found = [np.empty((0, 2), np.int64)]
    for column in near.T:
        there = (column >= 0) & (column != rows)
        a, b = rows[there], column[there].astype(np.int64)
        same = like.same(a, b, like.cosines(a, b))
        found.append(np.stack([a[same], b[same]], axis=1))
    return np.concatenate(found)


def groups(like: Likeness, similar: Pairs, rank: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first row of each row's group, and the cosine to it, (n,) each; a row without a group is its own first.

    Every row of a group is the same picture as the group's first, the row of the smallest ``rank`` (n,). So a chain in which only consecutive rows are alike
    is not one group. In the first round, the rows of each connected component of ``similar`` that are like its row of smallest rank form a group. Later
    rounds do the same with the remaining rows, but consider only those like the lowest row of each component: a choice as good as random, if the order
    of the rows has nothing to do with their likeness. It cuts a chain into pieces of random lengths, so that about log(n) rounds are enough.
    """
    n = len(rank)
    first, cosine, taken = np.arange(n), np.ones(n, np.float32), np.zeros(n, np.bool_)
    by_row, order = np.arange(n), rank
    while len(similar := similar[~taken[similar].any(1)]):
        nodes, ends = np.unique(similar, return_inverse=True)
        of, to = ends.reshape(-1, 2).T
        _, component = connected_components(coo_array((np.ones(len(of), np.bool_), (of, to)), shape=(len(nodes), len(nodes))), directed=False)
        nodes, component, _ = _around(like, nodes, component, order)
        nodes, component, found = _around(like, nodes, component, rank)
        centre = _best(nodes, component, rank)
        first[nodes], cosine[nodes], taken[nodes] = centre, found, True
        order = by_row
    return first, cosine


def _around(
    like: Likeness, nodes: NDArray[np.int64], component: NDArray[Any], order: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
    """The nodes that are the same picture as the node of smallest ``order`` in their component; with their components and their cosines to that node."""
    centre = _best(nodes, component, order)
    cosines = like.cosines(nodes, centre)
    stays = like.same(nodes, centre, cosines) | (nodes == centre)
    return nodes[stays], component[stays], np.where(nodes == centre, 1, cosines)[stays]


def _best(nodes: NDArray[np.int64], component: NDArray[Any], order: NDArray[Any]) -> NDArray[np.int64]:
    """For each node, the node of its component with the smallest ``order``."""
    sorted_ = np.lexsort((order[nodes], component))
    _, start, inverse = np.unique(component[sorted_], return_index=True, return_inverse=True)
    best = np.empty_like(nodes)
    best[sorted_] = nodes[sorted_][start][inverse]
    return best


def _products(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Inner products of the rows of ``a`` and ``b``, pair by pair, (len(a),); cut at 1."""
    products: NDArray[np.float32] = np.einsum("ij,ij->i", a.astype(np.float32), b.astype(np.float32))
    return np.minimum(products, 1)


def _standardised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small pictures as unit vectors of mean 0, (rows, values); zeros for a picture of a single colour."""
    values = pixels.reshape(len(pixels), -1).astype(np.float32)
    return unit_rows(values - values.mean(1, keepdims=True))
