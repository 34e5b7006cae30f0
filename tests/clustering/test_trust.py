"""Measures of images and clusters besides labels: confidence, agreement, outliers and purity."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core import GSEC
from gsec_core.clustering.centres import Centres
from gsec_core.clustering.kmeans import unit_rows
from gsec_core.clustering.metrics import purity


def overlapping() -> NDArray[np.float32]:
    """Images of six overlapping clusters."""
    random = np.random.default_rng(0)
    return (0.3 * random.standard_normal((6, 20))[np.arange(900) % 6] + 0.5 * random.standard_normal((900, 20))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> GSEC:
    return GSEC(6, n_members=10, device="cpu").fit(overlapping())


def error(confidence: NDArray[np.float32], agreement: NDArray[np.float32]) -> float:
    """Calibration error: the mean difference of confidence and agreement in ten equal parts of the images, ordered by confidence."""
    parts = np.array_split(np.argsort(confidence), 10)
    return float(np.mean([abs(confidence[part].mean() - agreement[part].mean()) for part in parts]))


def test_confidence_is_calibrated_to_the_agreement_of_members(fitted: GSEC) -> None:
    assert np.ptp(fitted.agreement_) > 0.3, "agreement must differ between images, or this test would prove nothing"
    assert error(fitted.confidence_, fitted.agreement_) < 0.04


def test_without_a_temperature_confidence_is_not_calibrated(fitted: GSEC) -> None:
    plan = fitted.plan()
    features = plan.features([overlapping()], fitted.halves_, 0.5)
    raw = plan.consensus(features, plan.neighbors(features), replace(fitted.ensemble_, temperature=1.0))
    labels, confidence, _ = raw.posteriors.best(slice(None))
    np.testing.assert_array_equal(labels, fitted.labels_, "a temperature changes no label")
    assert error(confidence, fitted.agreement_) > 0.1


def test_the_head_for_new_images_is_calibrated_too(fitted: GSEC) -> None:
    assert fitted.predict_proba(overlapping()).max(1).mean() == pytest.approx(fitted.agreement_.mean(), abs=0.08)


def test_a_single_member_gets_no_temperature() -> None:
    assert GSEC(6, n_members=1, max_steps=20, device="cpu").fit(overlapping()).ensemble_.temperature == 1


def test_an_image_far_from_its_centre_has_a_high_outlier_score() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(200) % 2
    X = unit_rows(np.eye(30)[labels] + 0.05 * random.standard_normal((200, 30)))
    centres = Centres.of(X, labels, 3)
    scores = centres.outliers(X, labels)
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=1e-2)
    far = unit_rows(np.eye(30)[[0, 5]] + 0.05 * random.standard_normal((2, 30)))
    ordinary, strange = centres.outliers(far, np.array([0, 0]))
    assert strange > 20 > 5 > ordinary
    assert (centres.directions[2] == 0).all(), "an empty cluster must have no direction"


def test_new_images_of_small_clusters_have_scores_like_the_clusters_own() -> None:
    random = np.random.default_rng(0)
    kinds = np.eye(60)[np.arange(480) % 40]
    X, labels = unit_rows(kinds + 0.15 * random.standard_normal((480, 60))), np.arange(480) % 40
    centres, sizes = Centres.of(X[:240], labels[:240], 40), np.bincount(labels[:240])
    own, apart, joined = (
        centres.outliers(X[:240], labels[:240]),
        *(scores(X[240:], labels[240:], *more) for scores, more in ((centres.outliers, ()), (centres.outliers_if_joined, (sizes,)))),
    )
    assert (own > 3).mean() < 0.01
    assert (apart > 3).mean() > 0.2, "measured from centres without them, ordinary new images must seem far away, or this test would prove nothing"
    assert (joined > 3).mean() < 0.1
    assert (centres.outliers_if_joined(-X[240:], labels[240:], sizes) > 10).all(), "images that are like no cluster must still be outliers"


def test_a_distance_with_the_image_itself_is_that_to_the_centre_of_all() -> None:
    random = np.random.default_rng(3)
    X, labels = unit_rows(random.standard_normal((12, 8)) + 1), np.repeat([0, 1], [4, 8])
    new = unit_rows(random.standard_normal((6, 8)) + 0.5)
    centres, theirs = Centres.of(X, labels, 2), np.array([0, 0, 0, 1, 1, 1])
    found = centres.outliers_if_joined(new, theirs, np.bincount(labels))
    for row, label in enumerate(theirs):
        distance = 1 - new[row] @ unit_rows(X[labels == label].sum(0, keepdims=True) + new[row])[0]
        assert found[row] == pytest.approx((distance - centres.distance[label]) / centres.deviation[label], abs=2e-3)


def test_a_cluster_with_one_image_has_no_outlier() -> None:
    X = unit_rows(np.eye(3))
    labels = np.arange(3)
    assert Centres.of(X, labels, 3).outliers(X, labels).tolist() == [0, 0, 0]


def test_purity_is_one_for_neighbours_within_clusters_and_zero_for_random_neighbours() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], 100)
    within = np.stack([random.permutation(np.flatnonzero(labels == label))[:5] for label in labels])
    pure, mean = purity(labels, within)
    assert (pure.tolist(), mean) == ([1, 1, 0, 1], 1)
    assert purity(labels, random.integers(300, size=(300, 50)))[1] == pytest.approx(0, abs=0.02)
    some = np.array([0, 5, 299])
    assert purity(labels, within[some], some)[1] == 1
    assert purity(np.zeros(9, int), np.zeros((9, 2), int))[1] == 0, "a single cluster of all images is no better than chance"
