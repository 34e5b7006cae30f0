"""Spherical k-means: Lloyd's algorithm on the unit sphere (Dhillon and Modha 2001), as an estimator."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from gsec_core.clustering.kmeans import cosines, lloyd, nearest, sample_rows, sample_size, unit_rows
from gsec_core.devices import native_threads


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
        labels = nearest(cosines(X, self.cluster_centers_))
        order = np.argsort(-np.bincount(labels, minlength=self.n_clusters), kind="stable")
        self.cluster_centers_ = self.cluster_centers_[order]
        self.labels_ = np.argsort(order)[labels].astype(np.int32)

    def predict(self, X: ArrayLike) -> NDArray[np.int32]:
        """The nearest centre of each row of ``X`` (n_samples, n_features)."""
        return nearest(self.similarities(X))

    def similarities(self, X: ArrayLike) -> Iterator[NDArray[np.float32]]:
        """Cosines to all centres, (rows, n_clusters), block by block."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        return cosines(X, self.cluster_centers_)

    def _validated(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        valid: NDArray[Any] = validate_data(self, X, dtype=[np.float16, np.float32, np.float64], reset=reset)
        return valid
