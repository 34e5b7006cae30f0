"""Fits that continue an earlier fit, or keep its numbers of clusters."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gsec_core import GSEC, TACKMeans
from gsec_core.clustering.smoothing import STAY, Posteriors
from gsec_core.methods.gsec.bilevel import FURTHER_STEPS

from ..clustering.test_drift import blobs

K = 4


def gsec(**more: object) -> GSEC:
    parameters: dict[str, object] = {"n_members": 5, "ensemble_size": 4, "max_steps": 30, **more}
    return GSEC(K, **parameters)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def night() -> tuple[NDArray[np.float32], NDArray[np.int32], GSEC]:
    """All images, the earlier clusters of those that were fitted (-1 for the others), and that fit."""
    X, _ = blobs([60] * K, seed=0)
    order = np.random.default_rng(0).permutation(len(X))
    before = np.full(len(X), -1, np.int32)
    there = np.sort(order[:200])
    fitted: GSEC = gsec().fit(X[there])
    before[there] = fitted.labels_
    return X, before, fitted


def test_a_continued_fit_keeps_cluster_numbers_and_trains_its_members_a_little_further(night: tuple[NDArray[np.float32], NDArray[np.int32], GSEC]) -> None:
    X, before, fitted = night
    continued = gsec().fit(X, start=fitted, before=before)
    had = before >= 0
    assert np.array_equal(continued.labels_[had], before[had])
    assert np.array_equal(continued.ensemble_.permutations, fitted.ensemble_.permutations)
    assert [member.steps for member in continued.members_] == [FURTHER_STEPS] * 5
    moved = [np.abs(now.parameters["weights"] - was.parameters["weights"]).max() for now, was in zip(continued.members_, fitted.members_, strict=True)]
    assert all(0 < value < 0.1 for value in moved), "the weights must change, but only a little"
    assert all(half is was for half, was in zip(continued.halves_, fitted.halves_, strict=True))


def test_a_continued_fit_is_deterministic(night: tuple[NDArray[np.float32], NDArray[np.int32], GSEC]) -> None:
    X, before, fitted = night
    one, other = (gsec().fit(X, start=fitted, before=before) for _ in range(2))
    assert np.array_equal(one.labels_, other.labels_)
    assert np.array_equal(one.confidence_, other.confidence_)


@pytest.mark.parametrize("estimator", [lambda: gsec(random_state=5), lambda: TACKMeans(K, n_members=3, random_state=5)])
def test_new_members_with_earlier_labels_keep_the_earlier_cluster_numbers(
    night: tuple[NDArray[np.float32], NDArray[np.int32], GSEC], estimator: Callable[[], GSEC]
) -> None:
    X, before, _ = night
    names = np.array([2, 0, 3, 1], np.int32)
    renamed = np.where(before >= 0, names[before], -1)
    found = estimator().fit(X, text=X, before=renamed)
    had = before >= 0
    assert np.array_equal(found.labels_[had], renamed[had])


def test_with_more_clusters_than_before_the_new_ones_get_the_free_numbers(night: tuple[NDArray[np.float32], NDArray[np.int32], GSEC]) -> None:
    X, labels = blobs([60] * (K + 1), seed=0)
    before = np.where(labels == K, -1, labels).astype(np.int32)
    found = GSEC(K + 1, n_members=5, ensemble_size=4, max_steps=30).fit(X, before=before)
    assert np.array_equal(found.labels_[labels < K], before[labels < K])
    assert set(found.labels_[labels == K]) == {K}


def test_a_row_keeps_its_earlier_cluster_unless_another_is_more_probable_by_a_margin() -> None:
    margin = STAY / (1 - STAY)
    values = np.array([[0.5 - margin / 2 + 0.01, 0.5 + margin / 2 - 0.01], [0.5 - margin / 2 - 0.01, 0.5 + margin / 2 + 0.01], [0.6, 0.4]], np.float32)
    posteriors = Posteriors.empty(3, 2, np.empty)
    posteriors.put(slice(None), torch.from_numpy(values))
    assert posteriors.leaning(np.array([0, 0, -1], np.int32)).best(slice(None))[0].tolist() == [0, 1, 0]
    assert posteriors.block(slice(None))[2] == pytest.approx(values[2]), "the posteriors of a new row must not change"
    assert posteriors.block(slice(None)).sum(1) == pytest.approx(np.ones(3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": True}, "start: give the earlier cluster of each sample as before"),
        ({"before": np.zeros(3)}, "before: give 240 numbers of clusters below n_clusters = 4, or -1"),
        ({"before": np.full(240, 4)}, "before: give 240 numbers"),
        ({"before": np.full(240, -2)}, "before: give 240 numbers"),
        ({"before": np.full(240, 0.5)}, "before: give 240 numbers"),
        ({"before": np.full(240, np.nan)}, "Input before contains NaN"),
    ],
)
def test_wrong_arguments_of_a_continued_fit_are_errors(
    night: tuple[NDArray[np.float32], NDArray[np.int32], GSEC], given: dict[str, object], message: str
) -> None:
    X, _, fitted = night
    if "start" in given:
        given = {"start": fitted}
    with pytest.raises(ValueError, match=message):
        gsec().fit(X, **given)  # type: ignore[arg-type]


def test_a_fit_cannot_continue_one_of_another_class_or_number_of_members(night: tuple[NDArray[np.float32], NDArray[np.int32], GSEC]) -> None:
    X, before, fitted = night
    with pytest.raises(ValueError, match="start: it has another class, or another number"):
        gsec(n_members=3).fit(X, start=fitted, before=before)
    with pytest.raises(ValueError, match="start: it has another class"):
        gsec().fit(X, start=_other(X), before=before)
    for given in ({"X": X[:, :3]}, {"X": X, "text": X}):
        with pytest.raises(ValueError, match="start: it was fitted on another number of features"):
            gsec().fit(**given, start=fitted, before=before)


def _other(X: NDArray[np.float32]) -> TACKMeans:
    found: TACKMeans = TACKMeans(K, n_members=5).fit(X, text=X)
    return found


def test_members_of_a_method_that_cannot_train_them_further_say_so() -> None:
    X, _ = blobs([20] * K, seed=0)
    plan = TACKMeans(K, n_members=1, device="cpu").plan()
    features = plan.features([X, X], plan.halves([X, X]), 0.5)
    with pytest.raises(NotImplementedError, match="TACKMeansPlan: goes_on is False"):
        plan.further(features, plan.neighbors(features), 0, [], lambda steps: None)
