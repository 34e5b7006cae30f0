import numpy as np
import pytest
import torch

from gsec_core.clustering import kmeans
from gsec_core.clustering.features import Features
from gsec_core.clustering.starts import ENTROPY, kmeans_starts


def blobs() -> Features:
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [200, 80, 20])
    X = 4 * random.normal(size=(3, 8))[truth] + random.normal(size=(300, 8))
    return Features([X.astype(np.float32)], [1.0], [1.0])


def test_labels_at_the_start_have_the_planned_entropy() -> None:
    random = np.random.default_rng(0)
    features = Features([random.normal(size=(500, 8)).astype(np.float32)], [1.0], [1.0])
    [start] = kmeans_starts(features, 5, [0])
    q = (features.rows(slice(None)) @ start.weight.T + start.bias).softmax(1)
    assert float(-torch.xlogy(q, q).sum(1).mean() / np.log(5)) == pytest.approx(ENTROPY, abs=0.01)


def test_a_start_labels_by_the_nearest_centre_and_has_the_sizes_of_clusters() -> None:
    features = blobs()
    [start] = kmeans_starts(features, 3, [1])
    labels = (features.rows(slice(None)) @ start.weight.T + start.bias).argmax(1)
    assert torch.bincount(labels, minlength=3) / 300 == pytest.approx(start.sizes)
    assert sorted(torch.bincount(labels).tolist()) == [20, 80, 200]


def test_a_start_does_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    [whole] = kmeans_starts(blobs(), 3, [0])
    monkeypatch.setattr(kmeans, "BLOCK_ROWS", 7)
    [by_blocks] = kmeans_starts(blobs(), 3, [0])
    assert torch.equal(by_blocks.sizes, whole.sizes)
    assert torch.equal(by_blocks.weight, whole.weight)


@pytest.mark.parametrize("rows", [4, 5])
def test_identical_rows_have_a_finite_start(rows: int) -> None:
    [start] = kmeans_starts(Features([np.ones((rows, 2), np.float32)], [1.0], [1.0]), 3, [0])
    assert torch.isfinite(start.weight).all()
    assert torch.isfinite(start.bias).all()


def test_a_start_does_not_depend_on_other_starts() -> None:
    features = blobs()
    together = kmeans_starts(features, 3, [1, 2, 3])
    [alone] = kmeans_starts(features, 3, [2])
    assert torch.equal(together[1].weight, alone.weight)
