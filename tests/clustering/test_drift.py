"""Drift, the decision whether new images are like the old ones, on planted data."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gsec_core.clustering import drift
from gsec_core.clustering.centres import Centres
from gsec_core.clustering.drift import Said
from gsec_core.clustering.kmeans import unit_rows
from gsec_core.tables import CONTINUED, KEPT, RENEWED

D = 64


def blobs(counts: list[int], seed: int, spread: float = 0.5) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit rows around directions that are the same for every seed, and the number of each row's direction."""
    directions = unit_rows(np.random.default_rng(7).normal(size=(len(counts), D)))
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.default_rng(seed).normal(scale=spread / np.sqrt(D) * 2, size=(len(labels), D))
    return unit_rows(directions[labels] + noise), labels


def said(X: NDArray[np.float32], labels: NDArray[np.int64], centres: Centres, sizes: NDArray[np.int64] | None = None) -> Said:
    return Said.of(X, np.eye(len(centres.distance), dtype=np.float32)[labels] * 0.8 + 0.05, centres, sizes)


def test_if_centres_leave_out_the_image_itself_fitted_images_are_as_far_from_them_as_new_ones() -> None:
    """In a cluster of six images with many dimensions, each image is a large part of its own centre."""
    X, labels = blobs([6] * 30, seed=0)
    new, theirs = blobs([6] * 30, seed=1)
    centres = Centres.of(X, labels, 30)
    naive, honest, fresh = (
        values.mean() for values in (centres.outliers(X, labels), centres.outliers(X, labels, np.bincount(labels)), centres.outliers(new, theirs))
    )
    assert naive == pytest.approx(0, abs=1e-5)
    assert fresh > 2, "new images of the same kind are this much farther away"
    assert honest == pytest.approx(fresh, rel=0.15)


def test_a_distance_without_the_image_itself_is_that_to_the_centre_of_the_others() -> None:
    X, labels = blobs([4, 7], seed=3)
    centres = Centres.of(X, labels, 2)
    found = centres.outliers(X, labels, np.bincount(labels))
    for row in range(len(X)):
        others = (labels == labels[row]) & (np.arange(len(X)) != row)
        distance = 1 - X[row] @ unit_rows(X[others].sum(0, keepdims=True))[0]
        assert found[row] == pytest.approx((distance - centres.distance[labels[row]]) / centres.deviation[labels[row]], abs=2e-3)


def test_new_images_of_the_same_kind_fit_and_others_are_outliers() -> None:
    X, labels = blobs([80] * 4, seed=0)
    centres, sizes = Centres.of(X, labels, 4), np.bincount(labels)
    old = said(X, labels, centres, sizes)
    for seed in range(1, 6):
        assert not any(measure.worse for measure in drift.compare(old, said(*blobs([10] * 4, seed), centres)))
    far, theirs = blobs([10] * 4, 9, spread=1.5)
    assert [measure.name for measure in drift.compare(old, said(far, theirs, centres)) if measure.worse] == ["outliers"]


def test_a_single_outlier_among_the_new_images_is_not_worse() -> None:
    X, labels = blobs([80] * 4, seed=0)
    centres = Centres.of(X, labels, 4)
    strange = said(unit_rows(np.random.default_rng(5).normal(size=(1, D))), np.zeros(1, np.int64), centres)
    assert strange.outlier[0] > drift.FAR_OUT
    assert not any(measure.worse for measure in drift.compare(said(X, labels, centres, np.bincount(labels)), strange))


def test_few_new_images_are_rarely_worse_by_chance() -> None:
    random = np.random.default_rng(0)
    old = Said(random.random(4096) + 1.04, np.full(4096, 0.9), np.full(4096, 0.8))
    assert (old.outlier > drift.FAR_OUT).mean() == pytest.approx(0.04, abs=0.01)
    for count in (1, 2, 3, 5, 10):
        new = (Said(random.random(count) + 1.04, np.full(count, 0.9), np.full(count, 0.8)) for _ in range(1000))
        assert not any(measure.worse for of_night in new for measure in drift.compare(old, of_night)), f"{count} images a night"
    many = Said(np.full(5, 9.0), np.full(5, 0.9), np.full(5, 0.8))
    assert drift.compare(old, many)[0].worse, "five outliers among five are no chance"


@pytest.mark.parametrize(
    ("growth", "group", "worse", "decision"),
    [
        (1.0, 0.0, False, KEPT),
        (1.5, 0.0, False, KEPT),
        (1.51, 0.0, False, RENEWED),
        (0.49, 0.0, False, RENEWED),
        (1.0, 0.25, False, RENEWED),
        (1.0, 0.24, False, KEPT),
        (1.0, 0.0, True, CONTINUED),
        (1.6, 0.0, True, RENEWED),
    ],
)
def test_the_model_is_kept_continued_or_renewed_by_growth_groups_and_fit(growth: float, group: float, worse: bool, decision: str) -> None:
    old = Said(*(np.full(200, value, np.float32) for value in (0.0, 0.9, 0.8)))
    new = Said(*(np.full(50, value, np.float32) for value in (9.0 if worse else 0.0, 0.9, 0.8)))
    found = drift.decide(old, new, 50, growth, group)
    assert found.decision == decision
    assert [(measure.name, measure.worse) for measure in found.measures] == [("outliers", worse), ("confidence", False), ("margin", False)]
    if decision == CONTINUED:
        assert found.why == "of 50 new images 100% are outliers (0% of the old ones)"


def test_a_group_of_new_images_unlike_the_old_is_found() -> None:
    X, labels = blobs([60, 60, 60, 25], seed=0)
    is_new = labels == 3
    is_new[::20] = True  # and some images of the old kinds
    groups = drift.together(lambda rows: X[rows], is_new)
    assert len(groups) == 1
    assert set(groups[0]) <= set(np.flatnonzero(labels == 3))
    assert len(groups[0]) >= 20


@pytest.mark.parametrize("looked_at", [60, 150])
def test_a_group_keeps_its_size_if_only_some_of_the_new_images_are_looked_at(looked_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, labels = blobs([900, 200], seed=0)
    [whole] = drift.together(lambda rows: X[rows], labels == 1)
    monkeypatch.setattr(drift, "MOST_LOOKED_AT", looked_at)
    [group] = drift.together(lambda rows: X[rows], labels == 1)
    assert len(whole) == 200
    assert len(group) >= 170
    assert set(group) <= set(whole)


def test_two_new_kinds_are_two_groups_with_the_larger_first() -> None:
    X, labels = blobs([60, 60, 15, 30], seed=0)
    groups = drift.together(lambda rows: X[rows], labels >= 2)
    assert [int(np.unique(labels[group])[0]) for group in groups] == [3, 2]


@pytest.mark.parametrize("share", [0.02, 0.2, 0.3, 0.5])
def test_new_images_of_the_old_kinds_are_no_group(share: float) -> None:
    for seed in range(5):
        X, _ = blobs([100] * 4, seed)
        assert drift.together(lambda rows, X=X: X[rows], np.random.default_rng(seed).random(400) < share) == []  # type: ignore[misc]


def test_too_few_new_images_or_only_new_images_are_no_group() -> None:
    X, _ = blobs([30, 30], seed=0)
    few = np.arange(60) >= 60 - drift.LEAST_TOGETHER + 1
    assert drift.together(lambda rows: X[rows], few) == []
    assert drift.together(lambda rows: X[rows], np.ones(60, bool)) == []
