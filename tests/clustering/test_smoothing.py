"""Smoothing over neighbours, compared with the dense formula."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gsec_core.clustering import smoothing
from gsec_core.clustering.smoothing import Posteriors, smooth


def kept(dense: NDArray[np.float32]) -> Posteriors:
    found = Posteriors.empty(*dense.shape, np.empty)
    found.put(slice(None), torch.from_numpy(dense))
    return found


def random_posteriors(n: int, clusters: int, concentration: float = 0.1) -> NDArray[np.float32]:
    return np.random.default_rng(0).dirichlet(np.full(clusters, concentration), n).astype(np.float32)


@pytest.mark.parametrize("gathered", [300, 2**20])
def test_with_few_clusters_smoothing_equals_the_dense_formula(gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "_GATHERED", gathered)
    random = np.random.default_rng(1)
    expected = dense = random_posteriors(50, 6)
    image, text = random.integers(50, size=(50, 4)), random.integers(50, size=(50, 3))
    image[:, 1] = image[:, 0]  # a neighbour that occurs twice counts twice
    for _ in range(2):
        expected = 0.5 * expected + 0.5 * (0.7 * expected[image].mean(1) + 0.3 * expected[text].mean(1))
    found = smooth(kept(dense), [image.astype(np.int32), text.astype(np.int32)], [0.7, 0.3], 2, np.empty)
    np.testing.assert_allclose(found.block(slice(None)), expected, atol=1e-6)


def test_with_many_clusters_only_the_largest_posteriors_are_kept() -> None:
    dense = random_posteriors(40, 100)
    found = kept(dense)
    assert found.values.shape == (40, smoothing.MOST_KEPT)
    assert found.values.sum(1) == pytest.approx(np.ones(40), abs=1e-5)
    largest = np.sort(np.argsort(dense, axis=1)[:, -smoothing.MOST_KEPT :], axis=1)
    assert np.array_equal(found.clusters, largest)


def test_smoothing_without_rounds_returns_its_input() -> None:
    before = kept(random_posteriors(10, 4))
    assert smooth(before, [np.zeros((10, 1), np.int32)], [1.0], 0, np.empty) is before


def test_best_gives_the_label_its_posterior_and_the_margin_to_the_second() -> None:
    dense = np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]], np.float32)
    labels, best, margin = kept(dense).best(slice(None))
    assert labels.tolist() == [1, 0], "of equal posteriors the lower cluster must win"
    assert best == pytest.approx([0.5, 0.4])
    assert margin == pytest.approx([0.2, 0], abs=1e-6)


@pytest.mark.parametrize("clusters", [5, 100])
def test_renamed_clusters_keep_their_posteriors(clusters: int) -> None:
    dense = random_posteriors(30, clusters)
    names = np.random.default_rng(2).permutation(clusters).astype(np.int32)
    before = kept(dense).block(slice(None))
    after = kept(dense).renamed(names)
    assert (np.diff(after.clusters, axis=1) > 0).all()
    np.testing.assert_array_equal(after.block(slice(None))[:, names], before)
