"""Spherical k-means: Lloyd's algorithm on the unit sphere (Dhillon and Modha 2001), by faiss."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from gsec_core.devices import native_threads, thread_count

BLOCK_ROWS = 16_384
"""Number of rows whose copies, or similarities to all centres, are in memory at once."""


def row_blocks(stop: int, start: int = 0) -> Iterator[slice]:
    """The rows from ``start`` to ``stop`` in blocks of `BLOCK_ROWS`."""
    return (slice(first, min(first + BLOCK_ROWS, stop)) for first in range(start, stop, BLOCK_ROWS))


_SAMPLE_ROWS = 65_536

_NEXT_START = 15_486_557

Item = TypeVar("Item")
Result = TypeVar("Result")


class SphericalKMeans(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """k-means on directions: rows are scaled to unit length and compared by cosine.

    Above 65,536 rows, and above ``sample_per_cluster`` rows per cluster, centres are fitted on a random sample; every row is assigned.

    Parameters
    ----------
    n_clusters : int
    n_init : int
        Number of starts; the one with the highest sum of cosines is kept.
    max_iter : int
        Number of iterations of each start.
    random_state : int
        Seed of sample and starts. Equal seeds, versions, processors and thread counts give equal labels.
    n_threads : int
        Threads; 0 = one a core.
    sample_per_cluster : int
        Rows of the sample per cluster. The sample is held in memory twice, as float32.

    Attributes
    ----------
    cluster_centers_ : float32 (n_clusters, n_features), unit length, the largest cluster first
    labels_ : int32 (n_samples,)
    n_iter_ : int
        Iterations of the start that was kept.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_init: int = 10,
        max_iter: int = 50,
        random_state: int = 0,
        n_threads: int = 0,
        sample_per_cluster: int = 256,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.max_iter = max_iter
        self.random_state = random_state
        self.n_threads = n_threads
        self.sample_per_cluster = sample_per_cluster

    def fit(self, X: ArrayLike, y: object = None, *, progress: Callable[[], None] = lambda: None) -> "SphericalKMeans":
        """Fit on ``X`` (n_samples, n_features), floats of any precision; ``progress`` is called after every start.

        Raises ValueError if there are fewer rows than clusters.
        """
        X = self._validated(X, reset=True)
        if not 1 <= self.n_clusters <= len(X):
            raise ValueError(f"n_clusters = {self.n_clusters}: there are {len(X)} samples, so it must be between 1 and {len(X)}.")
        with native_threads(self.n_threads):
            self._fit(X, progress)
        return self

    def _fit(self, X: NDArray[Any], progress: Callable[[], None]) -> None:
        sample = unit_rows(X[sample_rows(len(X), sample_size(self.n_clusters, self.sample_per_cluster), self.random_state)])
        centres, self.n_iter_ = lloyd(
            sample,
            self.n_clusters,
            n_init=self.n_init,
            max_iter=self.max_iter,
            random_state=self.random_state,
            spherical=True,
            n_threads=self.n_threads,
            progress=progress,
        )
        self.cluster_centers_ = unit_rows(centres)
        labels = _nearest(cosines(X, self.cluster_centers_))
        order = np.argsort(-np.bincount(labels, minlength=self.n_clusters), kind="stable")
        self.cluster_centers_ = self.cluster_centers_[order]
        self.labels_ = np.argsort(order)[labels].astype(np.int32)

    def predict(self, X: ArrayLike) -> NDArray[np.int32]:
        """The nearest centre of each row of ``X`` (n_samples, n_features)."""
        return _nearest(self.similarities(X))

    def similarities(self, X: ArrayLike) -> Iterator[NDArray[np.float32]]:
        """Cosines to all centres, (rows, n_clusters), block by block."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        return cosines(X, self.cluster_centers_)

    def _validated(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        valid: NDArray[Any] = validate_data(self, X, dtype=[np.float16, np.float32, np.float64], reset=reset)
        return valid


def lloyd(
    X: NDArray[np.float32],
    n_clusters: int,
    *,
    n_init: int,
    max_iter: int,
    random_state: int,
    spherical: bool = False,
    n_threads: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.float32], int]:
    """Lloyd's algorithm on all rows of ``X`` (n, d): centres (n_clusters, d) of the best start, and the number of its iterations.

    ``progress`` is called after every start.
    """

    def run(start: int) -> tuple[NDArray[np.float32], list[float]]:
        # The same seeds as if faiss made all starts in one call, which could not report progress. Faiss replaces a negative seed by the time.
        return one_start(X, n_clusters, max_iter=max_iter, seed=(random_state + start * _NEXT_START) % 2**31, spherical=spherical)

    best, iterations, least = np.empty(0, np.float32), 0, np.inf
    for centres, objectives in side_by_side(run, range(n_init), n_threads):
        loss = -objectives[-1] if spherical else objectives[-1]  # the objective is a sum of cosines, or of squared distances
        if loss < least or not iterations:
            best, iterations, least = centres, len(objectives), loss
        progress()
    return best, iterations


def one_start(X: NDArray[np.float32], n_clusters: int, *, max_iter: int, seed: int, spherical: bool = False) -> tuple[NDArray[np.float32], list[float]]:
    """Lloyd's algorithm from one start: centres (n_clusters, d), and the objective after each iteration."""
    import faiss

    kmeans: Any = faiss.Kmeans(X.shape[1], n_clusters, niter=max_iter, spherical=spherical, seed=seed, min_points_per_centroid=1)
    kmeans.cp.max_points_per_centroid = len(X)  # samples are taken before, not by faiss
    kmeans.train(X)
    return kmeans.centroids, list(kmeans.obj)


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], n_threads: int) -> Iterator[Result]:
    """Results of ``work``, which uses faiss, for each of ``items`` in order; up to ``n_threads`` (0 = one a core) run at a time and share the threads.

    The threads of one small k-means wait for each other at every step, so that another process on one core stops them all. Independent threads
    lose only the time of that core.
    """
    import faiss

    threads = thread_count(n_threads)
    share = max(1, threads // len(items))
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="k-means", initializer=faiss.omp_set_num_threads, initargs=(share,)) as pool:
        yield from pool.map(work, items)


def sample_size(n_clusters: int, rows_per_cluster: int = 256) -> int:
    """Number of rows that centres are fitted on; more rows would move them little."""
    return max(_SAMPLE_ROWS, rows_per_cluster * n_clusters)


def cosines(X: NDArray[Any], centres: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Cosines of the rows of ``X`` (n, d) to unit ``centres`` (k, d), (rows, k) for each of `row_blocks`."""
    for rows in row_blocks(len(X)):
        yield unit_rows(X[rows]) @ centres.T


def _nearest(similarities: Iterable[NDArray[np.float32]]) -> NDArray[np.int32]:
    """The column of the largest value of each row of the blocks."""
    return np.concatenate([block.argmax(1) for block in similarities]).astype(np.int32)


def unit_rows(X: NDArray[Any]) -> NDArray[np.float32]:
    """Rows scaled to unit length, as float32; rows of zeros stay zero."""
    rows = np.ascontiguousarray(X, np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    norms[norms == 0] = 1
    unit: NDArray[np.float32] = rows / norms
    return unit


def sample_rows(n: int, most: int, random_state: int) -> NDArray[np.int64]:
    """Sorted numbers of ``most`` random rows out of ``n``; all rows if ``n`` is not larger."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(random_state).choice(n, most, replace=False))
