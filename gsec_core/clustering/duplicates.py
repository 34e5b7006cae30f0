"""Near-duplicates: which images show one picture, and which of them stands for the others."""

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
"""Pixels a side of the small pictures that are compared."""

SAME_PICTURE = 0.95
"""Correlation from which on two small pictures are the same: a copy that is smaller, or compressed harder, has .97 or more in 99 of 100 cases."""

FARTHER = 3
"""How many times as far from 1 as the threshold the cosine may be where the small pictures are the same. An encoder tells a blurred copy from its
original more sharply than the eye does."""

_BLOCK = 2048
"""Pairs of which a thread has copies in memory at once."""

Pairs = NDArray[np.int64]
"""(pairs, 2): row numbers."""


@dataclass(frozen=True)
class Likeness:
    """When two images count as one picture: by the cosine of their embeddings, or by a lower one if small pictures of them are the same, too.

    Parameters
    ----------
    X : floats (n, d)
        Embeddings, of unit length; may be a memory map.
    pixels : uint8 (n, side, side, 3)
        Small pictures; may be a memory map. Of an image without one, and of one of a single colour, the cosine alone counts.
    threshold : float
        Cosine from which on embeddings are those of one picture.
    n_threads : int
        Threads; 0 = one a core.
    """

    X: NDArray[Any]
    pixels: NDArray[np.uint8]
    threshold: float
    n_threads: int = 0

    @property
    def least(self) -> float:
        """Cosine below which images are never one picture."""
        return 1 - FARTHER * (1 - self.threshold)

    def cosines(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float32]:
        """Of the rows ``a`` with the rows ``b``, (len(a),), block by block."""
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
        with ThreadPoolExecutor(thread_count(self.n_threads), thread_name_prefix="pairs") as pool:
            return np.concatenate([np.empty(0, np.float32), *pool.map(of, blocks)])


def grouped(
    like: Likeness,
    candidates: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
    search: Callable[[NDArray[np.int64]], NDArray[Any]],
    rank: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each row the first of its group and its cosine to that, (n,) each; see `groups`.

    Parameters
    ----------
    like : Likeness
        Of n rows.
    candidates : of rows (m,), each row once in all, and their nearest others, (m, k): row numbers, -1 for none
    search : callable
        From rows, two or more, to the nearest others among them, (m, k).
    rank : (n,)
        The smallest of a group is its first.
    """
    similar, full = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    for rows, near in candidates:
        similar.append(pairs(like, rows, near))
        others, same = ((near >= 0) & (near != rows[:, None])).sum(1), np.bincount(similar[-1][:, 0], minlength=len(rank))[rows]
        full.append(rows[(others > 0) & (same == others)])
    first, cosine = groups(like, np.concatenate(similar), rank)
    # A row all of whose neighbours are copies may have more, and so may be of a group that was found in pieces.
    pieces = np.unique(first[np.concatenate(full)])
    if len(pieces) > 1 and len(more := pairs(like, pieces, search(pieces))):
        return groups(like, np.concatenate([*similar, more]), rank)
    return first, cosine


def pairs(like: Likeness, rows: NDArray[np.int64], near: NDArray[Any]) -> Pairs:
    """Those of ``rows`` (m,) and their candidates ``near`` (m, k), row numbers and -1 for none, that are one picture."""
    found = [np.empty((0, 2), np.int64)]
    for column in near.T:
        there = (column >= 0) & (column != rows)
        a, b = rows[there], column[there].astype(np.int64)
        same = like.same(a, b, like.cosines(a, b))
        found.append(np.stack([a[same], b[same]], axis=1))
    return np.concatenate(found)


def groups(like: Likeness, similar: Pairs, rank: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Of each row the first of its group, and its cosine to that, (n,) each; a row without a group is its own first.

    Every row of a group is one picture with its first, the row of the smallest ``rank`` (n,). So a chain of rows each of which is like the next one is not
    one group: of each connected component those that are like its best row are a group, and the others are taken again, each time around one of them
    that is as good as drawn at random (the first row; rows are to be in an order that has nothing to do with what is alike). A chain falls
    into pieces of random lengths by that, so that it takes about log(n) rounds, each of which looks at what is left.
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
    """Of each component the nodes that are one picture with its node of the smallest ``order``, and their cosines to that."""
    centre = _best(nodes, component, order)
    cosines = like.cosines(nodes, centre)
    stays = like.same(nodes, centre, cosines) | (nodes == centre)
    return nodes[stays], component[stays], np.where(nodes == centre, 1, cosines)[stays]


def _best(nodes: NDArray[np.int64], component: NDArray[Any], order: NDArray[Any]) -> NDArray[np.int64]:
    """Of each node the one of its component with the smallest ``order``."""
    sorted_ = np.lexsort((order[nodes], component))
    _, start, inverse = np.unique(component[sorted_], return_index=True, return_inverse=True)
    best = np.empty_like(nodes)
    best[sorted_] = nodes[sorted_][start][inverse]
    return best


def _products(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float32]:
    """Of rows with rows, (len(a),), no more than 1."""
    products: NDArray[np.float32] = np.einsum("ij,ij->i", a.astype(np.float32), b.astype(np.float32))
    return np.minimum(products, 1)


def _standardised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Small pictures as unit vectors of mean 0, (rows, values); of a single colour as zeros."""
    values = pixels.reshape(len(pixels), -1).astype(np.float32)
    return unit_rows(values - values.mean(1, keepdims=True))
