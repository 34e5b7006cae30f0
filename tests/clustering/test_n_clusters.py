import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core.clustering.n_clusters import MOST, NumberOfClusters, suggest_n_clusters


def blobs(count: int, apart: float, *, n: int = 1500, d: int = 20, even: bool = True) -> NDArray[np.float16]:
    """Images in ``count`` Gaussian clusters; the means of any two are about ``apart`` deviations apart in each dimension."""
    random = np.random.default_rng(0)
    shares = np.full(count, 1 / count) if even else 0.7 * random.dirichlet(np.ones(count)) + 0.3 / count
    labels = random.choice(count, n, p=shares)
    centres = apart / np.sqrt(2) * random.standard_normal((count, d))
    return (centres[labels] + random.standard_normal((n, d))).astype(np.float16)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("count", [2, 3, 8, 25, 60])
def test_well_separated_clusters_are_counted(count: int, even: bool) -> None:
    found = suggest_n_clusters(blobs(count, 3, n=max(1500, 40 * count), even=even))
    assert found.n_clusters is not None
    assert abs(found.n_clusters - count) <= 0.2 * count


@pytest.mark.parametrize("apart", [0.0, 0.7])
def test_for_images_without_clusters_or_with_overlapping_ones_no_number_is_suggested(apart: float) -> None:
    found = suggest_n_clusters(blobs(10, apart))
    assert found.n_clusters is None
    assert found.purity.max() < 0.95


def test_for_more_clusters_than_are_looked_for_no_number_is_suggested() -> None:
    found = suggest_n_clusters(blobs(300, 4, n=5000))
    assert found.n_clusters is None
    assert found.purity.min() > 0.9, "the clusters do lie apart"
    assert found.counts[-1] <= MOST


def test_for_groups_that_are_elongated_no_number_is_suggested() -> None:
    """There are five groups of images, each spread along a line, so that purity falls only gradually with more clusters."""
    random = np.random.default_rng(0)
    group, place = random.integers(5, size=1500), random.random(1500)
    X = 8 * random.standard_normal((5, 30))[group] + 30 * place[:, None] * random.standard_normal((5, 30))[group] + random.standard_normal((1500, 30))
    found = suggest_n_clusters(X.astype(np.float32))
    assert found.n_clusters is None


def test_the_purity_curve_is_nearly_the_same_in_another_precision_and_its_counts_increase() -> None:
    X = blobs(8, 3)
    found, again = suggest_n_clusters(X), suggest_n_clusters(X.astype(np.float32))
    assert isinstance(found, NumberOfClusters)
    np.testing.assert_allclose(found.purity, again.purity, atol=0.02)
    assert (np.diff(found.counts) > 0).all()
    assert found.counts[0] == 2
    assert (found.low <= found.purity + 0.1).all()


def test_fewer_than_40_images_are_an_error() -> None:
    assert suggest_n_clusters(blobs(3, 3, n=60)).counts.tolist() == [2, 3]
    with pytest.raises(ValueError, match="X has 30 rows: too few to tell the number of clusters; there must be at least 40"):
        suggest_n_clusters(blobs(3, 3, n=30))
