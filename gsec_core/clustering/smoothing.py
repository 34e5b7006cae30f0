"""Posteriors of all rows, of which the largest are kept, and their smoothing over neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from gsec_core.clustering.kmeans import row_blocks
from gsec_core.devices import in_threads

MOST_KEPT = 32
"""Largest number of posteriors that are kept per row; with fewer clusters all are kept."""

MIX = 0.5
"""Weight of the neighbours in a round of smoothing."""

_GATHERED = 2**20
"""Number of neighbours' posteriors in a block, so small that a block fits into the processor's cache."""

STAY = 0.3
"""Weight of a row's previous cluster in its posteriors, where a clustering is continued."""

Allocate = Callable[[tuple[int, ...], DTypeLike], NDArray[Any]]
"""Function that allocates an array of a shape and a type, as `numpy.empty` does; in memory or in a file."""


@dataclass(frozen=True)
class Posteriors:
    """The largest posteriors of each row; the others count as 0."""

    clusters: NDArray[np.int32]
    """(n, kept): clusters of the values, ascending in each row."""
    values: NDArray[np.float32]
    """(n, kept): posteriors, of sum 1 in each row."""
    n_clusters: int

    @classmethod
    def empty(cls, n: int, n_clusters: int, allocate: Allocate) -> "Posteriors":
        """Allocate uninitialised posteriors of ``n`` rows."""
        shape = (n, min(n_clusters, MOST_KEPT))
        return cls(allocate(shape, np.int32), allocate(shape, np.float32), n_clusters)

    def put(self, rows: slice, block: Tensor) -> None:
        """Store the largest posteriors of ``block`` (rows, n_clusters), on any device, scaled to sum 1, as the given rows."""
        kept = self.values.shape[1]
        if kept == self.n_clusters:
            clusters, values = torch.arange(kept), block
        else:
            clusters = block.topk(kept, sorted=False).indices.sort(1).values
            values = block.gather(1, clusters)
        self.clusters[rows] = clusters.cpu().numpy()
        self.values[rows] = (values / values.sum(1, keepdim=True)).cpu().numpy()

    def block(self, rows: slice) -> NDArray[np.float32]:
        """The given rows as a dense array, (rows, n_clusters)."""
        dense = np.zeros((len(self.values[rows]), self.n_clusters), np.float32)
        np.put_along_axis(dense, self.clusters[rows], self.values[rows], 1)
        return dense

    def best(self, rows: slice) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
        """The cluster with the largest posterior of each row (the lowest among equals), this posterior, and its margin over the second largest."""
        values = np.array(self.values[rows])
        place = values.argmax(1)[:, None]
        best = np.take_along_axis(values, place, 1)
        labels = np.take_along_axis(self.clusters[rows], place, 1)
        np.put_along_axis(values, place, 0, 1)  # what is left, if anything, is the second best
        return labels[:, 0], best[:, 0], best[:, 0] - values.max(1)

    def labels_of(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """The cluster with the largest posterior of the rows with the given numbers."""
        return np.take_along_axis(self.clusters[rows], self.values[rows].argmax(1)[:, None], 1)[:, 0]

    def leaning(self, before: NDArray[np.int32]) -> "Posteriors":
        """In place, favour the cluster that each row had ``before`` (n,), -1 for none: the row keeps it unless another one is larger by a margin.

        P becomes (1 - `STAY`) P, plus `STAY` on the previous cluster, so that another posterior must be larger by STAY / (1 - STAY).
        """
        for rows in row_blocks(len(self.values), columns=self.n_clusters):
            had = np.flatnonzero(before[rows] >= 0)
            values = self.block(rows)
            values[had] *= np.float32(1 - STAY)
            values[had, before[rows][had]] += np.float32(STAY)
            self.put(rows, torch.from_numpy(values))
        return self

    def sharpened(self, temperature: float) -> "Posteriors":
        """In place, replace P by P^(1 / ``temperature``), scaled to sum 1 in each row."""
        if temperature == 1:
            return self
        for rows in row_blocks(len(self.values)):
            values = np.array(self.values[rows])
            values = (values / values.max(1, keepdims=True)) ** np.float32(1 / temperature)
            self.values[rows] = values / values.sum(1, keepdims=True)
        return self

    def renamed(self, names: NDArray[np.int32]) -> "Posteriors":
        """In place, renumber cluster c as ``names[c]``."""
        for rows in row_blocks(len(self.values)):
            self._rename(rows, names)
        return self

    def moved(self, parts: Sequence[tuple[NDArray[np.int64], int, int]]) -> "Posteriors":
        """In place, for each of ``parts`` (row numbers, one cluster, another), make the posteriors of the one those of the other in these rows.

        In all other rows the other cluster has posterior 0. No row and no cluster may be in two parts.
        """
        others = np.zeros(self.n_clusters, np.bool_)
        others[[other for _, _, other in parts]] = True
        for block in row_blocks(len(self.values)):  # once for all parts: the posteriors of many images are in a file
            values = np.where(others[self.clusters[block]], np.float32(0), self.values[block])
            self.values[block] = values / values.sum(1, keepdims=True)
        for rows, one, other in parts:
            names = np.arange(self.n_clusters, dtype=np.int32)
            names[[one, other]] = other, one
            self._rename(rows, names)
        return self

    def _rename(self, rows: slice | NDArray[np.int64], names: NDArray[np.int32]) -> None:
        clusters = names[self.clusters[rows]]
        order = np.argsort(clusters, axis=1)
        self.clusters[rows] = np.take_along_axis(clusters, order, 1)
        self.values[rows] = np.take_along_axis(self.values[rows], order, 1)


def smooth(posteriors: Posteriors, neighbors: Sequence[NDArray[np.int32]], weights: Sequence[float], rounds: int, allocate: Allocate) -> Posteriors:
    """Smooth over neighbours: ``rounds`` times P <- (1 - `MIX`) P + `MIX` (weighted mean of P over the neighbours in each half).

    After each round only the largest posteriors of each row are kept. A row that is a neighbour twice counts twice.

    Parameters
    ----------
    neighbors : (n, k) row numbers for each half
    weights : weight of each half, of sum 1
    """
    n, kept = posteriors.values.shape
    shares = [np.full(found.shape[1], MIX * weight / found.shape[1]) for found, weight in zip(neighbors, weights, strict=True)]
    share = torch.from_numpy(np.concatenate([[1 - MIX], *shares]).astype(np.float32))[:, None]
    step = max(1, _GATHERED // (len(share) * kept))
    for _ in range(rounds):
        clusters, values = torch.from_numpy(posteriors.clusters), torch.from_numpy(posteriors.values)
        smoother = Posteriors.empty(n, posteriors.n_clusters, allocate)

        def average(start: int, clusters: Tensor = clusters, values: Tensor = values, smoother: Posteriors = smoother) -> None:
            rows = slice(start, min(start + step, n))
            own = np.arange(rows.start, rows.stop, dtype=np.int32)[:, None]
            near = torch.from_numpy(np.concatenate([own, *(found[rows] for found in neighbors)], axis=1))
            of = clusters.index_select(0, near.ravel()).view(len(near), -1).long()
            terms = values.index_select(0, near.ravel()).view(*near.shape, kept) * share
            smoother.put(rows, torch.zeros(len(near), smoother.n_clusters).scatter_add_(1, of, terms.view(len(near), -1)))

        for _ in in_threads(average, range(0, n, step)):
            pass
        posteriors = smoother
    return posteriors
