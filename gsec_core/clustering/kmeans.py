"""Lloyd's algorithm by faiss, and how it takes rows: in blocks, in samples, as unit vectors. The estimator is `spherical_kmeans`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gsec_core.devices import thread_count

Rows = slice | NDArray[np.int64]

BLOCK_ROWS = 16_384
"""Most rows whose copies are in memory at once."""

BLOCK_VALUES = 2**26
"""Most values, such as the similarities of these rows to all centres, that are in memory at once."""


def row_blocks(stop: int, start: int = 0, *, columns: int = 1) -> Iterator[slice]:
    """The rows from ``start`` to ``stop`` in blocks of `BLOCK_ROWS`, or of fewer, so that ``columns`` for each are at most `BLOCK_VALUES`."""
    step = max(1, min(BLOCK_ROWS, BLOCK_VALUES // columns))
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


MANY_CLUSTERS = 512
"""With more clusters, members that start from k-means take fewer of its iterations and fewer steps; training and alignment are in `devices.product_dtype`."""

_SAMPLE_ROWS = 65_536

_NEXT_START = 15_486_557

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def sample_size_of_many(n_clusters: int) -> int:
    """Number of rows by which members of more than `MANY_CLUSTERS` are started, and aligned: more rows would change little and cost much."""
    return max(32_768, 32 * n_clusters)


def cosines(X: NDArray[Any], centres: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Cosines of the rows of ``X`` (n, d) to unit ``centres`` (k, d), (rows, k) for each of `row_blocks` with k columns."""
    for rows in row_blocks(len(X), columns=len(centres)):
        yield unit_rows(X[rows]) @ centres.T


def nearest(similarities: Iterable[NDArray[np.float32]]) -> NDArray[np.int32]:
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
