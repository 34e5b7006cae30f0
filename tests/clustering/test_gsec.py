"""The estimator: scikit-learn's own checks, and what it promises beyond them."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from gsec_core import GSEC
from gsec_core.clustering.ensemble import Ensemble
from gsec_core.clustering.features import Features, Half
from gsec_core.clustering.gsec import PRESETS

SMALL = {"ensemble_size": 4, "max_steps": 60, "device": "cpu"}


@parametrize_with_checks([GSEC(n_clusters=3, **SMALL)])
def test_scikit_learn_checks(estimator: GSEC, check: object) -> None:
    check(estimator)  # type: ignore[operator]


def blobs(sizes: tuple[int, ...] = (120, 80, 60, 40)) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    random = np.random.default_rng(0)
    truth = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X, S = (4 * random.normal(size=(len(sizes), d))[truth] + random.normal(size=(len(truth), d)) for d in (16, 12))
    return X.astype(np.float32), S.astype(np.float32), truth


@pytest.fixture(scope="module")
def fitted() -> GSEC:
    X, S, _ = blobs()
    return GSEC(4, **SMALL).fit(X, text=S)


def test_the_consensus_finds_blobs_of_unequal_size_and_numbers_them_by_size(fitted: GSEC) -> None:
    truth = blobs()[2]
    assert adjusted_rand_score(truth, fitted.labels_) > 0.8
    sizes = np.bincount(fitted.labels_, minlength=4)
    assert list(sizes) == sorted(sizes, reverse=True)


def test_what_fit_says_of_its_rows_is_what_the_posteriors_say(fitted: GSEC) -> None:
    X, S, _ = blobs()
    posteriors = fitted.predict_proba(X, S)
    assert posteriors.sum(1) == pytest.approx(np.ones(len(X)), abs=1e-5)
    assert np.array_equal(fitted.predict(X, S), fitted.labels_)
    assert fitted.confidence_ == pytest.approx(posteriors.max(1), abs=1e-6)


def test_agreement_is_the_share_of_members_with_the_label(fitted: GSEC) -> None:
    assert fitted.member_labels_.shape == (4, 300)
    same = fitted.member_labels_ == fitted.labels_
    assert fitted.agreement_ == pytest.approx(same.mean(0))
    assert fitted.member_agreement_ == pytest.approx(same.mean(1))


def test_more_members_change_none_of_those_there_were() -> None:
    X, S, _ = blobs()
    two, six = (GSEC(4, n_members=count, **{**SMALL, "max_steps": 5}).fit(X, text=S) for count in (2, 6))
    assert (len(two.members_), len(six.members_)) == (2, 6)
    for few, many in zip(two.members_, six.members_, strict=False):
        assert np.array_equal(few.weights, many.weights)


def test_equal_seeds_give_equal_labels_and_other_seeds_other_members() -> None:
    X, S, _ = blobs()
    one, again, other = (GSEC(4, random_state=seed, **{**SMALL, "max_steps": 5}).fit(X, text=S) for seed in (1, 1, 2))
    assert np.array_equal(one.labels_, again.labels_)
    assert not np.array_equal(one.members_[0].weights, other.members_[0].weights)


def test_float16_and_memory_maps_are_read_as_they_are(tmp_path: object) -> None:
    X, S, _ = blobs()
    np.save(f"{tmp_path}/X.npy", X.astype(np.float16))
    mapped = np.load(f"{tmp_path}/X.npy", mmap_mode="r")
    from_disk, whole = (GSEC(4, **{**SMALL, "max_steps": 5}).fit(data, text=S) for data in (mapped, X.astype(np.float16).astype(np.float32)))
    assert np.array_equal(from_disk.labels_, whole.labels_)


def test_the_text_half_counts_by_its_weight_and_not_by_the_published_preset() -> None:
    X, S, truth = blobs()
    noise = np.random.default_rng(1).normal(size=S.shape).astype(np.float32)
    settings = {**SMALL, "max_steps": 40}
    assert adjusted_rand_score(truth, GSEC(4, text_weight=0.02, **settings).fit(X, text=noise).labels_) > 0.9
    assert adjusted_rand_score(truth, GSEC(4, text_weight=0.98, **settings).fit(X, text=noise).labels_) < 0.5
    light, heavy = (GSEC(4, preset="published", text_weight=weight, **{**settings, "max_steps": 5}).fit(X, text=S) for weight in (0.1, 0.9))
    assert np.array_equal(light.members_[0].weights, heavy.members_[0].weights)


def test_without_text_the_image_half_serves_alone() -> None:
    X, _, truth = blobs()
    estimator = GSEC(4, **SMALL).fit(X)
    assert adjusted_rand_score(truth, estimator.labels_) > 0.8
    with pytest.raises(ValueError, match="text has 12 features, and GSEC was fitted with None"):
        estimator.predict(X, blobs()[1])


def test_presets_are_what_they_say() -> None:
    published = GSEC(preset="published").plan()
    assert (published.n_members, published.training.max_steps, published.training.gamma) == (1, 6000, 50)
    assert (GSEC().plan().n_members, GSEC().plan().training.max_steps, GSEC().plan().training.gamma) == (4, 300, 10)
    assert GSEC(preset="published", max_steps=7, n_members=3).plan().training.max_steps == 7
    assert set(PRESETS) == {"default", "published"}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"preset": "fast"}, "preset = 'fast': there are default, published"),
        ({"text_weight": 2}, "text_weight = 2: it must be between 0 and 1"),
        ({"tol": -1}, "tol = -1"),
        ({"n_members": 0}, "n_members = 0: it must be at least 1"),
        ({"n_clusters": 301}, "n_clusters = 301: n_samples = 300"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, object], says: str) -> None:
    X, S, _ = blobs()
    with pytest.raises(ValueError, match=says):
        clone(GSEC(4)).set_params(**parameters).fit(X, text=S)


def test_text_of_another_length_is_refused() -> None:
    X, S, _ = blobs()
    with pytest.raises(ValueError, match="text has 299 rows and X has 300"):
        GSEC(4).fit(X, text=S[1:])


def test_ties_of_sure_members_are_settled_whatever_the_clusters_are_called() -> None:
    """Two members say one thing with certainty and two another: in single precision neither wins."""
    weights = np.array([[[60.0], [0]], [[50], [0]], [[0], [40]], [[0], [40]]], np.float32)
    features = Features(np.ones((1, 1), np.float32), None, [Half(np.zeros(1, np.float32), np.ones(1, np.float32))], 0.5)
    for names in ([0, 1], [1, 0]):
        found = Ensemble(weights, np.zeros((4, 2), np.float32), np.array([names] * 4, np.int32)).assign(features, slice(None), "cpu")
        assert found.confidence[0] == 0.5
        assert (found.labels[0], found.margin[0]) == (names[0], 0)
