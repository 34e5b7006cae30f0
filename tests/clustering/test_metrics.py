import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.clustering.metrics import accuracy, bias_variance, score

labellings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60).map(lambda pairs: np.array(pairs).T)


def test_a_perfect_labelling_under_other_names() -> None:
    assert score(["a", "a", "b", "c"], [2, 2, 0, 1]) == (1, 1, 1)


def test_a_cluster_that_no_class_is_left_for_counts_as_wrong() -> None:
    assert accuracy([0, 0, 0, 0], [0, 0, 1, 2]) == pytest.approx(0.5)


@given(labellings)
def test_names_do_not_matter(pair: np.ndarray) -> None:
    truth, labels = pair
    assert score(truth, labels) == pytest.approx(score(truth, 10 - labels))


@given(labellings)
def test_accuracy_is_at_least_what_the_plainest_matching_gives(pair: np.ndarray) -> None:
    truth, labels = pair
    assert (truth == labels).mean() - 1e-12 <= accuracy(truth, labels) <= 1


def test_equal_runs_have_no_variance_and_the_bias_is_their_error() -> None:
    truth = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    run = np.array([5, 5, 6, 6, 6, 6, 7, 7])
    found = bias_variance([run, run, np.array([1, 1, 2, 2, 2, 2, 0, 0])], truth)
    assert found == (0.125, 0.125, 0)


def test_runs_that_err_in_different_places_have_variance_and_no_bias() -> None:
    truth = np.repeat([0, 1, 2], 4)
    runs = np.tile(truth, (3, 1))
    for number, run in enumerate(runs):
        run[number] = 2
    found = bias_variance(runs, truth)
    assert found == pytest.approx((1 / 12, 0, 1 / 12))


@given(labellings)
def test_of_one_run_the_error_is_the_bias_and_what_accuracy_leaves(pair: np.ndarray) -> None:
    truth, labels = pair
    found = bias_variance([labels], truth)
    assert found.error == found.bias == pytest.approx(1 - accuracy(truth, labels))
    assert found.variance == 0


def test_no_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="runs is empty"):
        bias_variance(np.empty((0, 3)), [0, 1, 1])
