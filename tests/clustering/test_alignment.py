"""Alignment and consensus of members whose clusters are planted permutations of one labelling."""

from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from gsec_core.clustering.alignment import align, aligned_mean, co_assignment, member_labels
from gsec_core.clustering.ensemble import Ensemble
from gsec_core.clustering.features import UnitFeatures


def one_hot(labels: NDArray[np.integer], clusters: int) -> NDArray[np.float32]:
    return np.eye(clusters, dtype=np.float32)[labels]


def permuted(truth: NDArray[np.integer], permutations: NDArray[np.integer], random: np.random.Generator, noise: float) -> Tensor:
    """Posteriors (rows, members, clusters): ``truth`` under each member's permutation, or, with probability ``noise``, a random cluster."""
    members, clusters = permutations.shape
    wrong = random.random((len(truth), members)) < noise
    labels = np.where(wrong, random.integers(clusters, size=wrong.shape), permutations[:, truth].T)
    soft = 0.8 * one_hot(labels, clusters) + 0.2 / clusters
    return torch.from_numpy(soft.astype(np.float32))


def assert_undone(found: NDArray[np.integer], planted: NDArray[np.integer]) -> None:
    """Assert that for each c the clusters planted[m][c] of all members m are one consensus cluster."""
    assert len({tuple(permutation[place]) for permutation, place in zip(found, planted, strict=True)}) == 1


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 7), st.sampled_from([0.0, 0.3]))
def test_planted_permutations_are_undone(seed: int, clusters: int, members: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    truth = np.concatenate([np.repeat(np.arange(clusters), 30), random.integers(clusters, size=1000)])
    planted = np.array([random.permutation(clusters) for _ in range(members)])
    posteriors = permuted(truth, planted, random, noise)
    found = align(co_assignment([posteriors]))
    assert_undone(found, planted)
    if not noise:
        assert adjusted_rand_score(truth, aligned_mean(posteriors, found).argmax(1)) == 1


def test_small_clusters_are_aligned_too() -> None:
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [5000, 60, 20])
    planted = np.array([random.permutation(3) for _ in range(6)])
    posteriors = permuted(truth, planted, random, 0.2)
    assert_undone(align(co_assignment([posteriors])), planted)


def test_the_consensus_of_noisy_members_is_better_than_each_of_them() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(10, size=2000)
    planted = np.array([random.permutation(10) for _ in range(9)])
    posteriors = permuted(truth, planted, random, 0.4)
    found = align(co_assignment([posteriors]))
    single = [adjusted_rand_score(truth, labels) for labels in member_labels(posteriors.argmax(2).numpy(), found).T]
    assert adjusted_rand_score(truth, aligned_mean(posteriors, found).argmax(1)) > max(single) + 0.2


def test_a_first_member_with_all_images_in_one_cluster_does_not_disturb_the_alignment() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(4, size=500)
    planted = np.array([random.permutation(4) for _ in range(4)])
    posteriors = permuted(truth, planted, random, 0.1)
    posteriors[:, 0] = torch.from_numpy(one_hot(np.zeros(500, int), 4))  # all in one cluster
    assert_undone(align(co_assignment([posteriors]))[1:], planted[1:])


def test_co_assignments_of_blocks_add_up_to_that_of_all_rows() -> None:
    posteriors = torch.from_numpy(np.random.default_rng(0).random((100, 3, 4)).astype(np.float32))
    assert co_assignment([posteriors[:37], posteriors[37:]]) == pytest.approx(co_assignment([posteriors]), rel=1e-5)


def test_member_labels_are_those_of_the_aligned_posteriors() -> None:
    random = np.random.default_rng(0)
    posteriors = torch.from_numpy(random.random((50, 3, 5)).astype(np.float32))
    permutations = np.array([random.permutation(5) for _ in range(3)], np.int32)
    for member in range(3):
        alone = aligned_mean(posteriors[:, [member]], permutations[[member]])
        assert np.array_equal(member_labels(posteriors.argmax(2).numpy(), permutations)[:, member], alone.argmax(1))


def test_a_single_member_keeps_its_numbers_and_predicts_nothing_for_its_alignment() -> None:
    models = MagicMock(n_clusters=3)
    models.__len__.return_value = 1
    found = Ensemble.aligned(models, UnitFeatures([np.eye(5, dtype=np.float32)]), random_state=0, device="cpu")
    assert found.permutations.tolist() == [[0, 1, 2]]
    models.logits.assert_not_called()
