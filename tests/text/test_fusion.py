import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from gsec_core.clustering.kmeans import unit_rows
from gsec_core.text import fusion
from gsec_core.text.fusion import (
    LEAST_WEIGHT,
    MOST_WEIGHT,
    PENALTY,
    Ridge,
    best_predicted,
    nearest_counterparts,
    ridge_cosines,
    softmax_cosines,
    softmax_counterparts,
    weight_by,
)


def images_and_texts(n: int = 300, m: int = 120, d: int = 24, dt: int = 16) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float16]]:
    """Images, half of them near one text each and the others near none, and the texts in the joint space and in another."""
    random = np.random.default_rng(0)
    T_joint = unit_rows(random.standard_normal((m, d)))
    X = random.standard_normal((n, d))
    X[::2] = T_joint[random.integers(0, m, len(X[::2]))] + 0.2 * X[::2]
    return unit_rows(X).astype(np.float16), T_joint.astype(np.float16), unit_rows(random.standard_normal((m, dt))).astype(np.float16)


def weights_of(X: NDArray[np.float16], T_joint: NDArray[np.float16], tau: float) -> NDArray[np.float64]:
    """The softmax weights by the formula, in double precision."""
    X, T_joint = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X.astype(np.float64), T_joint.astype(np.float64)))
    return np.asarray(softmax(X @ T_joint.T / tau, axis=1))


def dense(weights: NDArray[np.float64], T: NDArray[np.float16]) -> NDArray[np.float64]:
    sums = weights @ T.astype(np.float64)
    return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True))


@pytest.mark.parametrize("tau", [0.005, 0.05, 1.0])
def test_softmax_counterparts_without_a_cut_equal_the_dense_formula(tau: float) -> None:
    X, T_joint, T = images_and_texts()
    weights = weights_of(X, T_joint, tau)
    found = np.concatenate(list(softmax_counterparts(X, T_joint, T, tau)))
    # float32 cosines have errors of about 1e-7, which are divided by tau
    np.testing.assert_allclose(found, dense(weights, T), atol=1e-6 / tau)


@pytest.mark.parametrize("max_lost_weight", [1e-6, 1e-4, 0.01, 0.5])
@pytest.mark.parametrize("tau", [0.005, 0.05])
def test_the_weights_left_out_sum_to_no_more_than_the_bound(tau: float, max_lost_weight: float) -> None:
    X, T_joint, _ = images_and_texts()
    weights = weights_of(X, T_joint, tau)
    # With one-hot texts a counterpart is the weights themselves, up to its length.
    found = np.concatenate(list(softmax_counterparts(X, T_joint, np.eye(len(T_joint)), tau, max_lost_weight)))
    kept = found > 0
    assert not kept.all(), "no weight was left out"
    assert np.where(kept, 0, weights).sum(1).max() <= max_lost_weight


@pytest.mark.parametrize("max_lost_weight", [1e-6, 1e-4, 0.01])
def test_the_error_of_a_counterpart_is_limited_by_the_bound(max_lost_weight: float) -> None:
    X, T_joint, T = images_and_texts()
    weights = weights_of(X, T_joint, 0.05)
    found = np.concatenate(list(softmax_counterparts(X, T_joint, T, 0.05, max_lost_weight)))
    # The weights of unit vectors change by at most twice the bound in sum; scaling to unit length divides by the length of the sum.
    lengths = np.linalg.norm(weights @ T.astype(np.float64), axis=1)
    moved = np.linalg.norm(found - dense(weights, T), axis=1)
    assert (moved <= 2 * 2 * max_lost_weight / lengths + 1e-4).all()


def test_dense_and_sparse_products_leave_out_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    X, T_joint, _ = images_and_texts()
    found = []
    for share in (0.0, 1.0):  # the share of kept weights lies between these, so that both products are tested
        monkeypatch.setattr(fusion, "_SPARSE", share)
        found.append(np.concatenate(list(softmax_counterparts(X, T_joint, np.eye(len(T_joint)), 0.05, 1e-4))))
    assert 0 < (found[0] > 0).mean() < 1
    assert np.array_equal(found[0] > 0, found[1] > 0)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize("max_lost_weight", [0.0, 1e-4])
def test_counterparts_do_not_depend_on_the_blocks_of_rows(max_lost_weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    X, T_joint, T = images_and_texts()
    [whole] = softmax_counterparts(X, T_joint, T, 0.005, max_lost_weight)
    monkeypatch.setattr(fusion, "_BLOCK_VALUES", 37 * len(T))
    blocks = list(softmax_counterparts(X, T_joint, T, 0.005, max_lost_weight))
    assert [len(block) for block in blocks] == [37] * 8 + [4]
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 40])
@pytest.mark.parametrize("tau", [0.01, 0.1])
@pytest.mark.parametrize("rows", [1, 37, 1000])
def test_counterparts_of_the_nearest_nouns_equal_the_dense_formula_over_them(count: int, tau: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, nouns, _ = images_and_texts()
    monkeypatch.setattr(fusion, "_BLOCK_VALUES", rows * len(nouns))
    weights = weights_of(X, nouns, tau)
    weights[weights < np.sort(weights, axis=1)[:, -count, None]] = 0
    assert ((weights > 0).sum(1) == count).all()
    np.testing.assert_allclose(np.concatenate(list(nearest_counterparts(X, nouns, count, tau))), dense(weights, nouns), atol=1e-6 / tau)


def test_counterparts_of_at_least_as_many_nouns_as_exist_are_those_of_all() -> None:
    X, nouns, _ = images_and_texts()
    of_all = np.concatenate(list(softmax_counterparts(X, nouns, nouns, 0.005)))
    for count in (len(nouns), 10 * len(nouns)):
        assert np.array_equal(np.concatenate(list(nearest_counterparts(X, nouns, count, 0.005))), of_all)
    with pytest.raises(ValueError, match="without descriptions"):
        next(nearest_counterparts(X, nouns[:0], 5, 0.1))


def test_equal_descriptions_count_several_times() -> None:
    x = np.array([[1.0, 1.0]])
    T = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    [found] = softmax_counterparts(x, T, T, 0.1)
    np.testing.assert_allclose(found, [[1 / np.sqrt(5), 2 / np.sqrt(5)]], atol=1e-6)


def test_counterparts_without_descriptions_are_an_error() -> None:
    with pytest.raises(ValueError, match="without descriptions"):
        next(softmax_counterparts(np.ones((2, 3)), np.empty((0, 3)), np.empty((0, 3)), 0.1))


@pytest.mark.parametrize("described", [10, 200])
def test_ridge_weights_minimise_the_penalised_error(described: int) -> None:
    """At the minimum the gradient is zero. It is tested with more descriptions than dimensions and with fewer."""
    X, _, T = images_and_texts()
    rows = np.arange(described)
    ridge = Ridge.fit(X, rows, np.resize(T, (described, T.shape[1])))
    texts = np.resize(T, (described, T.shape[1])).astype(np.float64)
    images = unit_rows(X[rows] - X.astype(np.float64).mean(0)).astype(np.float64)
    gradient = images.T @ (images @ ridge.weights - (texts - texts.mean(0))) + PENALTY * ridge.weights
    assert np.abs(ridge.weights).max() > 0.01
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_ridge_predicts_descriptions_without_a_common_space_of_images_and_texts() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(3, size=300)
    X = unit_rows(random.standard_normal((3, 40))[truth] + 0.3 * random.standard_normal((300, 40)))
    T = unit_rows(random.standard_normal((3, 7)))
    described = np.arange(0, 300, 10)
    found = np.concatenate(list(Ridge.fit(X, described, T[truth[described]]).counterparts(X)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    centred = unit_rows(T - T[truth[described]].mean(0))
    assert ((found @ centred.T).argmax(1) == truth).mean() > 0.99


def test_ridge_without_a_description_is_an_error() -> None:
    with pytest.raises(ValueError, match="without descriptions"):
        Ridge.fit(np.ones((2, 3)), np.empty(0, np.int64), np.empty((0, 3)))


@pytest.mark.parametrize("described", [1, 5])
def test_ridge_with_equal_descriptions_is_an_error(described: int) -> None:
    """All counterparts would be zero vectors, although unit vectors are promised."""
    X = np.random.default_rng(0).standard_normal((9, 4))
    with pytest.raises(ValueError, match=f"T: all {described} descriptions are equal"):
        Ridge.fit(X, np.arange(described), np.ones((described, 3)))


def said_of_three(right: float, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Descriptions of ``images`` (n, d) of three kinds, right with probability ``right``; and each image's kind in the space of texts."""
    random = np.random.default_rng(1)
    kinds = np.arange(len(images)) % 3
    said = np.where(random.random(len(images)) < right, kinds, random.integers(3, size=len(images)))
    T = unit_rows(random.standard_normal((3, 40)))
    return unit_rows(T[said] + 0.02 * random.standard_normal((len(images), 40))), T[kinds]


def test_text_weighs_more_the_better_held_out_descriptions_are_predicted() -> None:
    random = np.random.default_rng(0)
    X = unit_rows(np.tile(random.standard_normal((3, 30)), (40, 1)) + 0.3 * random.standard_normal((120, 30)))
    cosines = [ridge_cosines(X, np.arange(120), said_of_three(right, X)[0]) for right in (0.0, 0.5, 1.0)]
    weights = [weight_by(float(found.mean())) for found in cosines]
    assert weights[0] < 0.25 < weights[1] <= weights[2] == MOST_WEIGHT
    assert weight_by(-0.5) == LEAST_WEIGHT
    assert cosines[2].mean() > 0.9


def test_a_held_out_description_does_not_take_part_in_its_own_prediction() -> None:
    random = np.random.default_rng(0)
    X, T = (unit_rows(random.standard_normal((60, 200))) for _ in range(2))
    assert abs(ridge_cosines(X, np.arange(60), T).mean()) < 0.05
    known = unit_rows(unit_rows(X - X.mean(0)) @ Ridge.fit(X, np.arange(60), T).weights)
    assert (known * unit_rows(T - T.mean(0))).sum(1).mean() > 0.5, "a description that takes part is predicted well"


def test_copies_of_an_image_are_held_out_together() -> None:
    """Otherwise a description that says nothing about its image would be known from the copy, and texts would weigh as much as images."""
    random = np.random.default_rng(0)
    X, T = (np.repeat(unit_rows(random.standard_normal((60, 200))), 2, axis=0) for _ in range(2))
    assert abs(ridge_cosines(X, np.arange(120), T).mean()) < 0.05


def test_softmax_is_chosen_only_if_it_predicts_held_out_descriptions_better_than_ridge() -> None:
    random = np.random.default_rng(0)
    T, kinds = said_of_three(1.0, np.empty((120, 0)))
    nothing, near = unit_rows(random.standard_normal(kinds.shape)), unit_rows(kinds + 0.05 * random.standard_normal(kinds.shape))
    rows = np.arange(120)
    assert best_predicted({"ridge": ridge_cosines(nothing, rows, T), "softmax": softmax_cosines(near, T, 0.005)}) == "softmax"
    assert best_predicted({"ridge": ridge_cosines(near, rows, T), "softmax": softmax_cosines(nothing, T, 0.005)}) == "ridge"
    assert best_predicted({"ridge": np.full(20, 0.3, np.float32), "softmax": np.tile(np.float32([0.1, 0.55]), 10)}) == "ridge"


def test_the_held_out_cosine_of_a_single_description_is_zero() -> None:
    one = np.ones((1, 3), np.float32)
    assert ridge_cosines(one, np.array([0]), one).tolist() == [0]
