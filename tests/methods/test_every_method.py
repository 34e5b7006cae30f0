"""What holds for every built-in method, and for a mixture of several: small and odd inputs, equal seeds, new rows."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from gsec_core import GSEC
from gsec_core.methods import BUILT_IN, Method, find
from gsec_core.methods.clusterer import Clusterer

QUICK: dict[str, dict[str, Any]] = {
    "gsec": {"n_members": 2, "max_steps": 10, "ensemble_size": 2},
    "tac": {"n_members": 2, "max_steps": 15},
    "tac-kmeans": {"n_members": 2, "n_init": 2},
    "turtle": {"n_members": 2, "max_steps": 15},
    "temi": {"n_members": 2, "max_steps": 5},
    "sic": {"n_members": 2, "max_steps": 15},
    "zero-shot": {"n_members": 2},
    "asd": {"n_members": 2, "max_steps": 40},
    "seic": {"n_members": 2, "max_steps": 15},
    "gsec,tac,temi": {"n_members": 2, "gsec": {"max_steps": 10, "ensemble_size": 2}, "tac": {"max_steps": 15}, "temi": {"max_steps": 5}},
}
"""Parameters that make each method quick."""

SEEDLESS = {"zero-shot"}
"""Methods that draw nothing at random."""

every_method = pytest.mark.parametrize("method", [*BUILT_IN, find("gsec,tac,temi")], ids=lambda method: method.name)


def fitted(method: Method, n_clusters: int, X: NDArray[Any], **more: Any) -> Clusterer:
    a_cluster = method.nouns(n_clusters).per_centre is None
    nouns = np.random.default_rng(1).standard_normal((n_clusters if a_cluster else max(40, 4 * n_clusters), X.shape[1])).astype(np.float32)
    estimator = method.load()(n_clusters, device="cpu", **{**QUICK[method.name], **more})
    return estimator.fit(X, nouns=nouns) if estimator.NEEDS_TEXT or estimator.NEEDS_NOUNS else estimator.fit(X)


@every_method
@pytest.mark.parametrize(("n", "n_clusters"), [(50, 3), (3, 3), (12, 3), (20, 2), (200, 100)], ids=["few", "as many as clusters", "identical", "two", "many"])
def test_small_and_odd_inputs_give_valid_labels_and_posteriors(method: Method, n: int, n_clusters: int) -> None:
    X = np.random.default_rng(0).standard_normal((n, 8)).astype(np.float32)
    if n == 12:
        X[:] = X[0]
    found = fitted(method, n_clusters, X)
    assert found.labels_.shape == (n,)
    assert found.labels_.max() < n_clusters
    posteriors = found.predict_proba(X)
    assert np.isfinite(posteriors).all()
    assert posteriors.sum(1) == pytest.approx(1, abs=1e-5)


@every_method
def test_equal_seeds_give_equal_labels_and_a_member_does_not_depend_on_others(method: Method) -> None:
    X = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    one, two, again = (fitted(method, 4, X, random_state=3, n_members=members) for members in (1, 2, 2))
    assert np.array_equal(two.labels_, again.labels_)
    for name, array in one.members_[0].parameters.items():
        assert np.array_equal(array, two.members_[0].parameters[name])
    other = fitted(method, 4, X, random_state=4)
    assert method.name in SEEDLESS or any(not np.array_equal(array, other.members_[0].parameters[name]) for name, array in two.members_[0].parameters.items())


@every_method
def test_a_fit_leaves_the_random_state_and_the_threads_of_the_process_as_they_are(method: Method) -> None:
    before, drawn, threads = torch.get_rng_state(), np.random.get_state()[1], torch.get_num_threads()
    fitted(method, 3, np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], drawn)
    assert torch.get_num_threads() == threads


@every_method
@pytest.mark.parametrize("asked", [None, 3])
@pytest.mark.parametrize("n_clusters", [2, 700, 3000])
def test_the_method_knows_the_number_of_members_without_its_estimator(method: Method, n_clusters: int, asked: int | None) -> None:
    settings = method.Settings()
    plan = method.load()(n_clusters, n_members=asked, device="cpu", **method.parameters(settings)).plan()
    assert method.member_count(settings, n_clusters, asked) == plan.n_members


@every_method
def test_a_wrong_parameter_is_an_error_that_names_it(method: Method) -> None:
    X = np.ones((9, 4), np.float32)
    with pytest.raises(ValueError, match="n_clusters = 0"):
        fitted(method, 0, X)
    with pytest.raises(ValueError, match="n_clusters = 10: n_samples = 9"):
        fitted(method, 10, X)
    with pytest.raises(ValueError, match="n_members = 0"):
        fitted(method, 3, X, n_members=0)
    for wrong in ({"random_state": None}, {"random_state": np.random.default_rng(0)}, {"random_state": -1}, {"n_members": 1.5}):
        [(name, value)] = wrong.items()
        with pytest.raises(ValueError, match=rf"{name} = {re.escape(repr(value))}: it must be"):
            fitted(method, 3, X, **wrong)
    for value in (2.5, None, "3"):
        with pytest.raises(ValueError, match=rf"n_clusters = {re.escape(repr(value))}: it must be a whole number"):
            method.load()(value, device="cpu", **QUICK[method.name]).plan()


@every_method
def test_a_view_with_reversed_rows_or_of_one_row_is_used_as_its_copy(method: Method) -> None:
    X = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    found = fitted(method, 3, X[::-1])
    assert np.array_equal(found.labels_, fitted(method, 3, X[::-1].copy()).labels_)
    assert np.array_equal(found.predict(X[::-1][:1]), found.predict(X[-1:]))


@pytest.mark.parametrize("name", ["gsec", "seic", "sic"])
def test_images_in_the_space_of_the_nouns_are_required_for_new_rows_if_and_only_if_the_fit_had_them(name: str) -> None:
    random = np.random.default_rng(0)
    X, nouns = random.standard_normal((60, 8)).astype(np.float32), random.standard_normal((40, 8)).astype(np.float32)
    estimator = find(name).load()(3, device="cpu", **QUICK[name])
    with_joint, without = (clone(estimator).fit(X, nouns=nouns, joint=joint) for joint in (X[::-1], None))
    with pytest.raises(ValueError, match=r"^joint: \w+ was fitted with joint of 8 features\. Give it for new samples, too\."):
        with_joint.predict(X)
    with pytest.raises(ValueError, match=r"^joint: \w+ was fitted without it\. Leave it out\."):
        without.predict(X, joint=X)
    with pytest.raises(ValueError, match=r"^joint: without nouns it has no use"):
        clone(estimator).fit(X, text=X, joint=X)
    with pytest.raises(ValueError, match=r"^joint has 9 rows and X has 60"):
        with_joint.predict(X, joint=X[:9])
    with pytest.raises(ValueError, match=r"^Input joint contains NaN"):
        with_joint.predict(X, joint=np.full_like(X, np.nan))
    with pytest.raises(ValueError, match=r"^X has 7 features, but \w+ is expecting 8"):
        without.predict(X[:, :7])
    with pytest.raises(ValueError, match=r"^Expected 2D array"):
        without.predict(X[0])


def test_an_estimator_whose_fit_failed_is_not_fitted() -> None:
    X = np.random.default_rng(0).standard_normal((60, 8)).astype(np.float32)
    estimator = GSEC(3, device="cpu")
    with pytest.raises(ValueError, match="text has 9 rows and X has 60"):
        estimator.fit(X, text=X[:9])
    with pytest.raises(NotFittedError):
        estimator.predict(X)


def test_a_device_may_be_torchs() -> None:
    assert GSEC(device=torch.device("cpu")).plan().device == "cpu"
