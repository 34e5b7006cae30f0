"""Clusters without images get separated parts of others, and only those."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gsec_core import GSEC
from gsec_core.clustering import smoothing
from gsec_core.clustering.kmeans import row_blocks
from gsec_core.clustering.refill import refill
from gsec_core.clustering.smoothing import Posteriors

GROUPS = np.repeat([0, 1, 2], [60, 30, 10])
"""Three separated groups of rows; a small one beside two large ones."""

CONSENSUS = np.minimum(GROUPS, 1)
"""The small group is in the cluster of another one, and cluster 2 is empty."""


def posteriors(labels: NDArray[np.int64], clusters: int = 3) -> Posteriors:
    dense = np.full((len(labels), clusters), 0.2, np.float32)
    dense[np.arange(len(labels)), labels] = 0.6
    found = Posteriors.empty(*dense.shape, np.empty)
    found.put(slice(None), torch.from_numpy(dense))
    return found


def ring(groups: NDArray[np.int64]) -> NDArray[np.int32]:
    """Four neighbours of each row: random ones of its own group."""
    random = np.random.default_rng(0)
    return np.stack([random.choice(np.flatnonzero(groups == group), 4) for group in groups]).astype(np.int32)


def members(*labellings: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.stack(labellings, axis=1).astype(np.int32)


def test_an_empty_cluster_gets_the_part_that_neighbours_separate_even_if_one_member_alone_sees_it() -> None:
    halves = np.where(GROUPS == 0, 2 * (np.arange(100) % 2), CONSENSUS)  # divides the large group anywhere
    found = posteriors(CONSENSUS)
    [division] = refill(found, members(halves, halves, GROUPS), [ring(GROUPS)], [1.0])
    assert np.array_equal(division.part, np.flatnonzero(GROUPS == 2))
    assert np.array_equal(division.rest, np.flatnonzero(GROUPS == 1))
    assert np.array_equal(found.best(slice(None))[0], GROUPS)
    dense = found.block(slice(None))
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-6)
    assert np.all(dense[GROUPS != 2, 2] == 0), "what members said of the empty cluster is not about the images that it has now"


@pytest.mark.parametrize(
    ("labels", "neighbors"),
    [
        (members(np.where(GROUPS == 0, 2 * (np.arange(100) % 2), CONSENSUS)), ring(GROUPS)),  # a group that is divided anywhere
        (members(CONSENSUS, CONSENSUS), ring(GROUPS)),  # no member sees the small group
        (members(np.where(np.arange(100) == 95, 2, CONSENSUS)), ring(GROUPS)),  # a single row
    ],
)
def test_without_a_separated_part_the_cluster_stays_empty(labels: NDArray[np.int32], neighbors: NDArray[np.int32]) -> None:
    found = posteriors(CONSENSUS)
    assert refill(found, labels, [neighbors], [1.0]) == []
    np.testing.assert_array_equal(found.block(slice(None)), posteriors(CONSENSUS).block(slice(None)))


def test_without_an_empty_cluster_nothing_changes() -> None:
    found = posteriors(CONSENSUS, 2)
    assert refill(found, members(np.arange(100) % 2, CONSENSUS), [ring(GROUPS)], [1.0]) == []
    np.testing.assert_array_equal(found.block(slice(None)), posteriors(CONSENSUS, 2).block(slice(None)))


def test_several_empty_clusters_are_refilled_in_one_pass_over_the_posteriors(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.repeat(np.arange(4), [60, 30, 20, 10])
    found, passes = posteriors(groups // 2, 4), Mock(side_effect=row_blocks)
    monkeypatch.setattr(smoothing, "row_blocks", passes)
    divided = refill(found, members(groups), [ring(groups)], [1.0])
    assert passes.call_count == 1, "the posteriors of many images are in a file, which a pass writes again"
    labels = found.best(slice(None))[0]
    assert len(set(zip(labels, groups, strict=True))) == len(set(labels)) == 4, "each group has a cluster of its own"
    dense = found.block(slice(None))
    np.testing.assert_allclose(dense.sum(1), 1, atol=1e-6)
    for division, cluster in zip(divided, (2, 3), strict=True):
        assert np.all(dense[np.setdiff1d(np.arange(len(groups)), division.part), cluster] == 0)


def test_each_half_counts_by_its_weight() -> None:
    anywhere = np.random.default_rng(1).integers(100, size=(100, 4)).astype(np.int32)
    for weights, refilled in (([0.9, 0.1], 1), ([0.1, 0.9], 0)):
        assert len(refill(posteriors(CONSENSUS), members(GROUPS), [ring(GROUPS), anywhere], weights)) == refilled


def skewed() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Well separated clusters of very unequal sizes, (853, 64), and the cluster of each row."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((5, 64))
    truth = random.permutation(np.repeat(np.arange(5), [500, 250, 75, 25, 3]))
    return (16 * centres[truth] / np.linalg.norm(centres, axis=1)[truth, None] + random.standard_normal((853, 64))).astype(np.float32), truth


@pytest.fixture(scope="module")
def fitted() -> GSEC:
    found: GSEC = GSEC(5, n_members=10, device="cpu").fit(skewed()[0])
    return found


def test_no_cluster_of_a_skewed_collection_is_empty_and_a_small_one_is_found(fitted: GSEC) -> None:
    _, truth = skewed()
    assert np.bincount(fitted.labels_, minlength=5).all()
    [of] = np.unique(fitted.labels_[truth == 3])
    assert np.array_equal(fitted.labels_ == of, truth == 3), "most members put these 25 images together with 250 others"


def test_new_images_get_the_refilled_cluster_too(fitted: GSEC) -> None:
    assert (fitted.predict(skewed()[0]) == fitted.labels_).mean() > 0.95


def test_votes_for_the_number_of_a_refilled_cluster_do_not_make_the_others_uncertain(fitted: GSEC) -> None:
    _, truth = skewed()
    assert fitted.confidence_[truth == 1].mean() > 0.9, "members agree on these 250 images, except that many put 25 others to them"


def test_a_refilled_consensus_is_computed_again_to_the_last_bit(fitted: GSEC) -> None:
    X, _ = skewed()
    plan = fitted.plan()
    features = plan.features([X], fitted.halves_, 0.5)
    labels, confidence, _ = plan.consensus(features, plan.neighbors(features), fitted.ensemble_).posteriors.best(slice(None))
    assert np.array_equal(labels, fitted.labels_)
    assert np.array_equal(confidence, fitted.confidence_)


def test_a_fit_that_continues_another_one_does_not_divide_its_clusters(fitted: GSEC) -> None:
    X, truth = skewed()
    before = np.array([0, 1, 2, 1, 2], np.int32)[truth]
    with pytest.warns(UserWarning, match="n_clusters = 5: 2 of the clusters got no samples"):
        continued = GSEC(5, n_members=10, device="cpu").fit(X, before=before)
    assert np.array_equal(continued.labels_, before)


def test_clusters_that_stay_empty_are_a_warning() -> None:
    X = np.random.default_rng(0).standard_normal((2, 8)).repeat(20, axis=0)
    with pytest.warns(UserWarning, match="n_clusters = 4: 2 of the clusters got no samples"):
        GSEC(4, n_members=2, max_steps=5, device="cpu").fit(X)
