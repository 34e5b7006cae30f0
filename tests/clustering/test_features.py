"""The two scalings of features compared with scikit-learn's, and the reading of scaled features."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from gsec_core.clustering.features import CLIP, RADIUS, Features, principal, project, standardising


def rows(n: int = 500, d: int = 12) -> NDArray[np.float16]:
    random = np.random.default_rng(0)
    return (random.normal(size=(n, d)) @ random.normal(size=(d, d)) + 3).astype(np.float16)


def projected(X: NDArray[np.floating], half: object) -> NDArray[np.float32]:
    return np.concatenate(list(project(X, half)))  # type: ignore[arg-type]


def test_standardised_values_equal_scikit_learns_and_are_clipped() -> None:
    X = np.hstack([rows(), np.full((500, 1), 7, np.float16)])
    expected = StandardScaler().fit_transform(X.astype(np.float64))
    np.testing.assert_allclose(projected(X, standardising(X)), expected, atol=1e-3)
    far = X.copy()
    far[0] = 1000
    assert projected(far, standardising(X))[0, :-1] == pytest.approx(np.full(12, CLIP))


@pytest.mark.parametrize(("n", "d"), [(500, 12), (20, 40)])
def test_principal_axes_equal_scikit_learns_up_to_one_scale(n: int, d: int) -> None:
    """For few rows they are computed in another way."""
    X = rows(n, d)
    expected = PCA(5).fit_transform(X.astype(np.float64))
    found = projected(X, principal(X, 5))
    assert np.square(found).sum(1).mean() == pytest.approx(RADIUS**2, rel=1e-4)
    scaled = expected * RADIUS / np.sqrt(np.square(expected).sum(1).mean())
    np.testing.assert_allclose(np.abs(found), np.abs(scaled), atol=0.02)


@pytest.mark.parametrize(("n", "d", "axes"), [(500, 3, 3), (4, 12, 4)])
def test_there_are_no_more_axes_than_dimensions_or_rows(n: int, d: int, axes: int) -> None:
    X = rows(n, d)
    assert projected(X, principal(X, 8)).shape == (n, axes)


def test_rows_that_are_all_the_same_stay_finite() -> None:
    X = np.ones((5, 3), np.float32)
    for half in (principal(X, 2), standardising(X)):
        assert not projected(X, half).any()


def test_reading_features_scales_a_copy_of_the_matrices() -> None:
    X, S = rows(20, 3).astype(np.float32), rows(20, 2).astype(np.float32)
    before = X.copy()
    features = Features([X, S], [0.75, 0.25], [0.5, 2.0])
    joined = features.rows(np.array([3, 1])).numpy()
    np.testing.assert_allclose(joined, np.hstack([0.5 * X[[3, 1]], 2 * S[[3, 1]]]))
    assert np.array_equal(X, before)
