"""Nearest neighbours by cosine, by faiss: exact for few rows, approximate and measured for many."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gsec_core.clustering.kmeans import BLOCK_ROWS, sample_rows, unit_rows
from gsec_core.devices import thread_count

N_NEIGHBORS = 3
"""Neighbours of an image in each half, as in Li et al. 2026, https://arxiv.org/abs/2605.12961."""

EXACT_ROWS = 50_000
"""From here on the index is approximate."""

_MOST_LISTS = 4096
_SAMPLE_ROWS_PER_LIST = 40
_PROBED_LISTS = 16
_RECALL_QUERIES = 500


class Neighbors(NamedTuple):
    """Row numbers of the neighbours of each row, (n, k), in each half."""

    image: NDArray[np.int32]
    text: NDArray[np.int32] | None

    @property
    def halves(self) -> list[NDArray[np.int32]]:
        """Those there are."""
        return [self.image] if self.text is None else [self.image, self.text]


def neighbor_count(n: int, k: int) -> int:
    """``k``, or as many neighbours as a row of ``n`` has."""
    return min(k, n - 1)


class Built(NamedTuple):
    """A `NeighborIndex` without its rows, to be kept."""

    data: NDArray[np.uint8]
    """As faiss writes an index."""
    recall: float | None


class NeighborIndex:
    """The nearest neighbours of ``n`` rows among themselves.

    Below 50,000 rows it is exact, a copy of the rows in float32. From there on it is an inverted file of about
    4 sqrt(n) lists, with a byte a value, and `recall` says how good it is.

    Parameters
    ----------
    rows : callable
        From a slice to these rows, (rows, d), floats of any precision and length; so they need not be in memory.
    n : int
    random_state : int
        Seed of the sample that the lists are fitted on, and of the queries by which recall is measured. Equal seeds,
        versions, processors and thread counts give equal neighbours.
    n_threads : int
        Threads; 0 = one a core.
    built : Built, optional
        One that was built of the same rows. Then none is built.

    Attributes
    ----------
    recall : float or None
        Share of the nearest `N_NEIGHBORS` of 500 random rows that are as near as the true ones; None if the index is exact.
    """

    def __init__(self, rows: Callable[[slice], NDArray[Any]], n: int, *, random_state: int = 0, n_threads: int = 0, built: Built | None = None) -> None:
        self._rows = rows
        self._n = n
        self._threads = thread_count(n_threads)
        self._random_state = random_state
        self._width = rows(slice(0, 1)).shape[1]
        if built is not None:
            self._index, self.recall = _faiss().deserialize_index(built.data), built.recall
            return
        with threadpool_limits(self._threads):
            self._index = self._approximate() if n >= EXACT_ROWS else self._exact()
            for block in self._blocks():
                self._index.add(self._unit(block))
        self.recall = self._measured_recall() if n >= EXACT_ROWS else None

    @property
    def built(self) -> Built:
        """What another process needs beside the rows to search as this one does."""
        return Built(_faiss().serialize_index(self._index), self.recall)

    def search(self, start: int, stop: int, k: int) -> NDArray[np.int32]:
        """The ``k`` nearest neighbours of the rows from ``start`` to ``stop``: row numbers (stop - start, k), the nearest first.

        A row is never its own neighbour; a duplicate of it may be. Raises ValueError if there are no ``k`` other rows.
        """
        _check_count(self._n, k)
        found = np.empty((stop - start, k), np.int32)
        with threadpool_limits(self._threads):
            for first in range(start, stop, BLOCK_ROWS):
                numbers = np.arange(first, min(first + BLOCK_ROWS, stop))
                found[numbers - start] = self._search(self._unit(slice(first, numbers[-1] + 1)), numbers, k)
        return found

    def _search(self, queries: NDArray[np.float32], numbers: NDArray[np.int64], k: int) -> NDArray[np.int64]:
        """Neighbours of the rows ``numbers``, of which ``queries`` are the values."""
        _, found = self._index.search(queries, k + 1)
        short = (found < 0).any(1)
        if short.any():  # the lists that were probed have fewer rows than that
            _, found[short] = self._index.search(queries[short], k + 1, params=_probing(self._index.nlist))
        return _without_itself(found, numbers)

    def _exact(self) -> Any:
        return _faiss().IndexFlatIP(self._width)

    def _approximate(self) -> Any:
        faiss = _faiss()
        lists = min(int(4 * self._n**0.5), _MOST_LISTS)
        index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(self._width), self._width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = self._random_state
        index.cp.spherical = True
        index.cp.min_points_per_centroid = 1
        index.nprobe = _PROBED_LISTS
        index.train(self._unit_at(self._drawn(_SAMPLE_ROWS_PER_LIST * lists)))
        return index

    def _measured_recall(self) -> float:
        k = neighbor_count(self._n, N_NEIGHBORS)
        numbers = self._drawn(_RECALL_QUERIES)
        queries = self._unit_at(numbers)
        with threadpool_limits(self._threads):
            found = self._search(queries, numbers, k)
            similar = np.full(found.shape, -np.inf, np.float32)
            nearest = np.full(found.shape, -np.inf, np.float32)
            for block in self._blocks():
                cosines = queries @ self._unit(block).T
                here = (block.start <= found) & (found < block.stop)
                similar[here] = np.take_along_axis(cosines, np.where(here, found - block.start, 0), 1)[here]
                own = np.flatnonzero((block.start <= numbers) & (numbers < block.stop))
                cosines[own, numbers[own] - block.start] = -np.inf
                nearest = np.partition(np.hstack([nearest, cosines]), -k, axis=1)[:, -k:]
        # Of equally near rows any will do, so it is not their numbers that are compared.
        return float((similar >= nearest.min(1, keepdims=True) - 1e-6).mean())

    def _drawn(self, most: int) -> NDArray[np.int64]:
        return sample_rows(self._n, most, self._random_state)

    def _unit_at(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of these numbers, which ascend."""
        picked = np.empty((len(numbers), self._width), np.float32)
        for block in self._blocks():
            here = slice(*np.searchsorted(numbers, [block.start, block.stop]))
            picked[here] = self._unit(block)[numbers[here] - block.start]
        return picked

    def _unit(self, block: slice) -> NDArray[np.float32]:
        return unit_rows(self._rows(block))

    def _blocks(self) -> list[slice]:
        return [slice(start, min(start + BLOCK_ROWS, self._n)) for start in range(0, self._n, BLOCK_ROWS)]


def neighbors_of(rows: Callable[[Any], NDArray[Any]], n: int, numbers: NDArray[np.int64], k: int, *, n_threads: int = 0) -> NDArray[np.int64]:
    """The ``k`` nearest neighbours of some of ``n`` rows among all of them, (len(numbers), k), the nearest first; exact, block by block.

    For few rows of many: an index would cost more than it saves. ``rows`` gives (rows, d) for a slice or an array of row
    numbers. A row is never its own neighbour; a duplicate of it may be. Raises ValueError as `NeighborIndex.search` does.
    """
    import faiss
    from faiss.contrib.exhaustive_search import knn_ground_truth

    _check_count(n, k)
    blocks = (unit_rows(rows(slice(start, min(start + BLOCK_ROWS, n)))) for start in range(0, n, BLOCK_ROWS))
    with threadpool_limits(thread_count(n_threads)):
        _, found = knn_ground_truth(unit_rows(rows(numbers)), blocks, k + 1, faiss.METRIC_INNER_PRODUCT, ngpu=0)  # type: ignore[no-untyped-call]
    return _without_itself(found, numbers)


def _check_count(n: int, k: int) -> None:
    if not 1 <= k < n:
        raise ValueError(f"k = {k}: each of {n} rows has {n - 1} neighbours, so it must be between 1 and {n - 1}.")


def _without_itself(found: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the rows ``numbers`` the neighbours that are ``found``, (len(numbers), k + 1), without the row itself."""
    # By its number, not by its place: a duplicate is as near. Where it is not found at all the last one is too many.
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
