"""Nearest neighbours by cosine, with faiss: exact for few rows, approximate with measured recall for many."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import row_blocks, sample_rows, unit_rows
from gsec_core.devices import native_threads

N_NEIGHBORS = 3
"""Neighbours of an image in each half, as in Li et al. 2026, https://arxiv.org/abs/2605.12961."""

EXACT_ROWS = 50_000
"""Number of rows from which the index is approximate."""

_MOST_LISTS = 2048
_SAMPLE_ROWS_PER_LIST = 40
_PROBED_LISTS = (2, 4, 8, 16)
"""Numbers of lists that a query may probe. Probing half as many takes little more than half the time."""
_RECALL_LOSS = 0.005
"""Recall that may be lost by probing fewer lists."""
_RECALL_QUERIES = 500


class Neighbors(NamedTuple):
    """Row numbers of the neighbours of each row, (n, k), in each half."""

    image: NDArray[np.int32]
    text: NDArray[np.int32] | None = None

    @property
    def halves(self) -> list[NDArray[np.int32]]:
        """The neighbours of each half that exists."""
        return [self.image] if self.text is None else [self.image, self.text]


def neighbor_count(n: int, k: int) -> int:
    """``k``, or n - 1 if each of ``n`` rows has fewer neighbours."""
    return min(k, n - 1)


class Built(NamedTuple):
    """A `NeighborIndex` in a form that can be stored, without its rows."""

    data: NDArray[np.uint8]
    """The index as faiss serialises it."""
    recall: float | None


class NeighborIndex:
    """The nearest neighbours of ``n`` rows among themselves.

    Below 50,000 rows the index is exact, a copy of the rows in float32. From 50,000 rows it is an inverted file of about
    2 sqrt(n) lists (at most 2,048), with one byte per value. A query probes as few lists as have nearly the best recall,
    and `recall` tells that.

    Parameters
    ----------
    rows : callable
        Returns the rows of a slice, (rows, d), floats of any precision and length; so they need not be in memory.
    n : int
    random_state : int
        Seed of the sample that the lists are fitted on, and of the queries by which recall is measured. Equal seeds,
        versions, processors and thread counts give equal neighbours.
    k : int
        Number of neighbours that `search` will be asked for: as many count in recall.
    n_threads : int
        Threads; 0 = one a core.
    built : Built, optional
        An index that was built from the same rows, to be used instead of building one.

    Attributes
    ----------
    recall : float or None
        Share of the ``k`` nearest of 500 random rows that are as near as the true ones; None if the index is exact.
    """

    def __init__(
        self, rows: Callable[[slice], NDArray[Any]], n: int, *, random_state: int = 0, k: int = N_NEIGHBORS, n_threads: int = 0, built: Built | None = None
    ) -> None:
        self._rows = rows
        self._n = n
        self._k = neighbor_count(n, k)
        self._threads = n_threads
        self._random_state = random_state
        self._width = rows(slice(0, 1)).shape[1]
        if built is not None:
            self._index, self.recall = _faiss().deserialize_index(built.data), built.recall
            return
        with native_threads(self._threads):
            self._index = self._approximate() if n >= EXACT_ROWS else self._exact()
            for block in row_blocks(self._n):
                self._index.add(self._unit(block))
        self.recall = self._tune_probes() if n >= EXACT_ROWS else None

    @property
    def built(self) -> Built:
        """The index in a form with which another process that has the rows can search, see parameter ``built``."""
        return Built(_faiss().serialize_index(self._index), self.recall)

    def search(self, start: int, stop: int, k: int) -> NDArray[np.int32]:
        """The ``k`` nearest neighbours of the rows from ``start`` to ``stop``: row numbers (stop - start, k), the nearest first.

        A row is never its own neighbour, but a duplicate of it may be. Raises ValueError if there are fewer than ``k`` other rows.
        """
        _check_count(self._n, k)
        found = np.empty((stop - start, k), np.int32)
        with native_threads(self._threads):
            for block in row_blocks(stop, start):
                found[block.start - start : block.stop - start] = self._search(self._unit(block), np.arange(block.start, block.stop), k)
        return found

    def _search(self, queries: NDArray[np.float32], numbers: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Neighbours of the rows ``numbers``, whose unit vectors are ``queries``."""
        _, found = self._index.search(queries, k + 1)
        short = (found < 0).any(1)
        if short.any():  # the probed lists had too few rows: probe all lists
            _, found[short] = self._index.search(queries[short], k + 1, params=_probing(self._index.nlist))
        return _without_itself(found, numbers)

    def _exact(self) -> Any:
        return _faiss().IndexFlatIP(self._width)

    def _approximate(self) -> Any:
        faiss = _faiss()
        lists = min(int(2 * self._n**0.5), _MOST_LISTS)
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(self._width), self._width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = self._random_state
        index.cp.spherical = True
        index.cp.min_points_per_centroid = 1
        index.train(self._unit_at(self._drawn(_SAMPLE_ROWS_PER_LIST * lists)))
        return index

    def _tune_probes(self) -> float:
        """Set the number of probed lists to the smallest that has nearly the best recall. Returns its recall."""
        k, numbers = self._k, self._drawn(_RECALL_QUERIES)
        queries = self._unit_at(numbers)
        with native_threads(self._threads):
            found = np.hstack([self._probed(lists, queries, numbers, k) for lists in _PROBED_LISTS])
            similar = np.full(found.shape, -np.inf, np.float32)
            nearest = np.full((len(numbers), k), -np.inf, np.float32)
            for block in row_blocks(self._n):
                cosines = queries @ self._unit(block).T
                here = (block.start <= found) & (found < block.stop)
                similar[here] = np.take_along_axis(cosines, np.where(here, found - block.start, 0), 1)[here]
                own = np.flatnonzero((block.start <= numbers) & (numbers < block.stop))
                cosines[own, numbers[own] - block.start] = -np.inf
                nearest = np.partition(np.hstack([nearest, cosines]), -k, axis=1)[:, -k:]
        # Compares cosines and not row numbers, since any of equally near rows will do.
        recalls = (similar >= nearest.min(1, keepdims=True) - 1e-6).reshape(len(numbers), -1, k).mean((0, 2))
        chosen = int(np.argmax(recalls >= recalls[-1] - _RECALL_LOSS))
        self._index.nprobe = _PROBED_LISTS[chosen]
        return float(recalls[chosen])

    def _probed(self, lists: int, queries: NDArray[np.float32], numbers: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        self._index.nprobe = lists
        return self._search(queries, numbers, k)

    def _drawn(self, most: int) -> NDArray[np.int64]:
        return sample_rows(self._n, most, self._random_state)

    def _unit_at(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors of the rows ``numbers``, which must ascend."""
        picked = np.empty((len(numbers), self._width), np.float32)
        for block in row_blocks(self._n):
            here = slice(*np.searchsorted(numbers, [block.start, block.stop]))
            picked[here] = self._unit(block)[numbers[here] - block.start]
        return picked

    def _unit(self, block: slice) -> NDArray[np.float32]:
        return unit_rows(self._rows(block))


def neighbors_of(rows: Callable[[Any], NDArray[Any]], n: int, numbers: NDArray[np.int64], k: int, *, n_threads: int = 0) -> NDArray[np.int64]:
    """The ``k`` nearest neighbours of some of ``n`` rows among all of them, (len(numbers), k), the nearest first; exact, block by block.

    Meant for few rows out of many, for which building an index would not pay. ``rows`` returns (rows, d) for a slice or an array of row
    numbers. A row is never its own neighbour, but a duplicate of it may be. Raises ValueError as `NeighborIndex.search` does.
    """
    import faiss
    from faiss.contrib.exhaustive_search import knn_ground_truth

    _check_count(n, k)
    blocks = (unit_rows(rows(block)) for block in row_blocks(n))
    with native_threads(n_threads):
        _, found = knn_ground_truth(unit_rows(rows(numbers)), blocks, k + 1, faiss.METRIC_INNER_PRODUCT, ngpu=0)  # type: ignore[no-untyped-call]
    return _without_itself(found, numbers)


def _check_count(n: int, k: int) -> None:
    if not 1 <= k < n:
        raise ValueError(f"k = {k}: each of {n} rows has {n - 1} neighbours, so it must be between 1 and {n - 1}.")


def _without_itself(found: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The neighbours ``found`` (len(numbers), k + 1) of the rows ``numbers`` without the rows themselves: (len(numbers), k)."""
    # Remove it by number, not by place, since a duplicate is equally near. If it was not found, remove the last neighbour.
    itself = found == numbers[:, None]
    itself[:, -1] |= ~itself.any(1)
    others: NDArray[np.int64] = found[~itself].reshape(len(found), -1)
    return others


def _faiss() -> Any:
    import faiss

    return faiss


def _probing(lists: int) -> Any:
    parameters = _faiss().SearchParametersIVF()
    parameters.nprobe = lists
    return parameters
