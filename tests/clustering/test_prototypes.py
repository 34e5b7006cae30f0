from itertools import pairwise

import numpy as np
import pytest

from gsec_core.clustering.prototypes import prototype_count, representatives


@pytest.mark.parametrize(
    ("n", "clusters", "count", "expected"),
    [
        pytest.param(60_000, 10, None, 1000, id="one for 60 images"),
        pytest.param(1_500, 10, None, 30, id="three a cluster, where that is more"),
        pytest.param(9_000_000, 10, None, 4096, id="no more than 4,096"),
        pytest.param(9_000_000, 5_000, None, 15_000, id="unless the clusters are so many"),
        pytest.param(20, 10, None, 20, id="no more than images"),
        pytest.param(5_000, 10, 7, 7, id="as many as were asked for"),
        pytest.param(5, 2, 7, 5, id="of those no more than images"),
    ],
)
def test_the_number_of_prototypes_follows_from_images_clusters_and_setting(n: int, clusters: int, count: int | None, expected: int) -> None:
    assert prototype_count(n, clusters, count) == expected


def test_the_middle_image_of_each_band_represents_it() -> None:
    found = representatives(np.arange(15)[::-1], np.zeros(15, int), 1, bands=5)
    assert found.row.tolist() == [13, 10, 7, 4, 1]
    assert found.band.tolist() == [0, 1, 2, 3, 4]


def test_a_small_micro_cluster_is_represented_by_all_its_members() -> None:
    found = representatives([0.3, 0.1, 0.2, 0.5], [1, 1, 1, 0], 2, bands=5)
    assert found.prototype.tolist() == [0, 1, 1, 1]
    assert found.row.tolist() == [3, 1, 2, 0]


def test_an_empty_micro_cluster_has_no_representative() -> None:
    found = representatives([0.1, 0.1], [0, 2], 4, bands=5)
    assert found.prototype.tolist() == [0, 2]


def test_images_at_equal_distance_are_taken_in_the_order_of_their_rows() -> None:
    assert representatives(np.zeros(9), np.zeros(9, int), 1, bands=3).row.tolist() == [1, 4, 7]
    assert representatives([0.3001, 0.3 + 1e-7, 0.3], np.zeros(3, int), 1, bands=3).row.tolist() == [1, 2, 0], "differences by rounding must decide nothing"


@pytest.mark.parametrize("bands", [1, 3, 5, 50])
def test_representatives_of_many_micro_clusters_equal_those_of_a_loop(bands: int) -> None:
    random = np.random.default_rng(0)
    labels, distances = random.integers(0, 40, 500), random.random(500).round(2)
    found = representatives(distances, labels, 40, bands)
    for prototype in range(40):
        members = sorted(np.flatnonzero(labels == prototype).tolist(), key=lambda row: (distances[row], row))
        cuts = [len(members) * band // min(bands, len(members)) for band in range(min(bands, len(members)) + 1)]
        middles = [members[start:stop][(stop - start) // 2] for start, stop in pairwise(cuts)]
        assert found.row[found.prototype == prototype].tolist() == middles
        assert found.band[found.prototype == prototype].tolist() == list(range(len(middles)))
