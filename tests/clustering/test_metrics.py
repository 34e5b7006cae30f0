import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsec_core.clustering.metrics import accuracy, score

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
