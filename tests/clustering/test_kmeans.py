import threading
import warnings

import faiss
import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from gsec_core.clustering import kmeans
from gsec_core.clustering.kmeans import cosines, lloyd, unit_rows
from gsec_core.clustering.spherical_kmeans import SphericalKMeans


def planted(count: int = 600, clusters: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of random lengths around ``clusters`` orthogonal directions; the first cluster is the largest."""
    random = np.random.default_rng(seed)
    truth = np.sort(random.integers(0, clusters, count) * random.integers(0, 2, count))
    centres = np.eye(clusters, 16)
    rows = centres[truth] + 0.1 * random.standard_normal((count, 16))
    return rows * random.uniform(0.1, 10, (count, 1)), truth


def test_planted_clusters_are_found_regardless_of_the_lengths_of_rows() -> None:
    X, truth = planted()
    assert adjusted_rand_score(truth, SphericalKMeans(5).fit(X).labels_) == 1


def test_the_largest_cluster_is_number_0() -> None:
    X, _ = planted()
    sizes = np.bincount(SphericalKMeans(5).fit(X).labels_)
    assert list(sizes) == sorted(sizes, reverse=True)


def test_equal_seeds_give_equal_labels_and_predict_agrees_with_fit() -> None:
    X = np.random.default_rng(0).standard_normal((500, 8))
    first, second = SphericalKMeans(7, random_state=3).fit(X), SphericalKMeans(7, random_state=3).fit(X)
    np.testing.assert_array_equal(first.labels_, second.labels_)
    np.testing.assert_array_equal(first.predict(X), first.labels_)


def test_more_starts_never_end_with_a_worse_objective() -> None:
    X = np.random.default_rng(0).standard_normal((500, 8))

    def objective(n_init: int) -> float:
        return float(np.concatenate([block.max(1) for block in SphericalKMeans(20, n_init=n_init, max_iter=100).fit(X).similarities(X)]).sum())

    assert objective(10) >= objective(1) - 1e-3


def test_the_progress_counts_every_start_and_the_centres_equal_those_of_faiss() -> None:
    X = unit_rows(np.random.default_rng(0).normal(size=(600, 16)))
    told: list[None] = []
    for seed in (0, 7, 2**31 - 1):
        told.clear()
        estimator = SphericalKMeans(9, n_init=6, max_iter=12, random_state=seed).fit(X, progress=lambda: told.append(None))
        assert len(told) == 6
        assert estimator.n_iter_ == 12, "the iterations of the start that was kept, not of all starts"
    theirs = faiss.Kmeans(16, 9, niter=12, nredo=6, spherical=True, seed=7, min_points_per_centroid=1)
    theirs.train(X)
    ours, _ = lloyd(X, 9, n_init=6, max_iter=12, random_state=7, spherical=True)
    np.testing.assert_array_equal(ours, theirs.centroids)


def test_centres_fitted_on_a_sample_give_every_row_the_right_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gsec_core.clustering.kmeans._SAMPLE_ROWS", 100)
    X, truth = planted(5000)
    assert adjusted_rand_score(truth, SphericalKMeans(5, sample_per_cluster=20).fit(X).labels_) == 1


def test_with_many_centres_the_cosines_of_fewer_rows_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    X, centres = (unit_rows(random.normal(size=(rows, 4))) for rows in (500, 300))
    monkeypatch.setattr(kmeans, "BLOCK_VALUES", 3000)
    blocks = list(cosines(X, centres))
    assert max(block.size for block in blocks) == 3000
    np.testing.assert_allclose(np.concatenate(blocks), X @ centres.T, atol=1e-6)


@pytest.mark.parametrize("clusters", [0, 4])
def test_an_impossible_number_of_clusters_is_an_error(clusters: int) -> None:
    with pytest.raises(ValueError, match=f"n_clusters = {clusters}: there are 3 samples"):
        SphericalKMeans(clusters).fit(np.eye(3))


def test_clone_keeps_the_parameters() -> None:
    assert clone(SphericalKMeans(3, n_init=2)).get_params() == SphericalKMeans(3, n_init=2).get_params()


@parametrize_with_checks([SphericalKMeans(n_clusters=3, n_init=1, max_iter=5)])
def test_the_estimator_passes_scikit_learns_checks(estimator: SphericalKMeans, check: object) -> None:
    assert callable(check)
    check(estimator)


def test_a_frame_with_names_of_columns_is_fitted_without_a_warning() -> None:
    X, _ = planted(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # the garbage collector may find what another test has left open
        fitted = SphericalKMeans(3, n_init=1).fit(pl.from_numpy(X))
    assert np.array_equal(fitted.labels_, SphericalKMeans(3, n_init=1).fit(X).labels_)


def test_labels_do_not_depend_on_the_number_of_threads() -> None:
    X = np.random.default_rng(0).standard_normal((2000, 16), np.float32)
    alone, together = (SphericalKMeans(7, n_threads=threads).fit(X) for threads in (1, 4))
    np.testing.assert_array_equal(alone.labels_, together.labels_)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("k-means")]
