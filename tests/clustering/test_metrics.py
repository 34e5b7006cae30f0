import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.clustering.metrics import accuracy, bias_variance, score

labellings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60).map(lambda pairs: np.array(pairs).T)


def test_a_perfect_labelling_with_other_names_has_a_perfect_score() -> None:
    assert score(["a", "a", "b", "c"], [2, 2, 0, 1]) == (1, 1, 1)


def test_images_of_a_cluster_matched_to_no_class_count_as_wrong() -> None:
    assert accuracy([0, 0, 0, 0], [0, 0, 1, 2]) == pytest.approx(0.5)


@given(labellings)
def test_scores_do_not_depend_on_the_names_of_clusters(pair: np.ndarray) -> None:
    truth, labels = pair
    assert score(truth, labels) == pytest.approx(score(truth, 10 - labels))


@given(labellings)
def test_accuracy_is_at_least_the_share_of_equal_numbers(pair: np.ndarray) -> None:
    truth, labels = pair
    assert (truth == labels).mean() - 1e-12 <= accuracy(truth, labels) <= 1


def test_equal_runs_have_no_variance_and_a_bias_equal_to_their_error() -> None:
    truth = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    run = np.array([5, 5, 6, 6, 6, 6, 7, 7])
    found = bias_variance([run, run, np.array([1, 1, 2, 2, 2, 2, 0, 0])], truth)
    assert found == (0.125, 0.125, 0)


def test_runs_that_err_on_different_images_have_variance_and_no_bias() -> None:
    truth = np.repeat([0, 1, 2], 4)
    runs = np.tile(truth, (3, 1))
    for number, run in enumerate(runs):
        run[number] = 2
    found = bias_variance(runs, truth)
    assert found == pytest.approx((1 / 12, 0, 1 / 12))


@given(labellings)
def test_the_error_of_a_single_run_is_its_bias_and_one_minus_its_accuracy(pair: np.ndarray) -> None:
    truth, labels = pair
    found = bias_variance([labels], truth)
    assert found.error == found.bias == pytest.approx(1 - accuracy(truth, labels))
    assert found.variance == 0


def test_bias_variance_without_any_run_is_an_error() -> None:
    with pytest.raises(ValueError, match="runs is empty"):
        bias_variance(np.empty((0, 3)), [0, 1, 1])
