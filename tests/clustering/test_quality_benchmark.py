"""The benchmark of quality: true labels are used only for the scores."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import CONSENSUS, KMEANS, LEAK, MEMBER, PUBLISHED, table_of
from benchmarks.sets import Described, Set


def planted() -> Set:
    random = np.random.default_rng(0)
    truth = random.integers(3, size=60)
    X, J = (random.normal(size=(3, d))[truth] + 0.5 * random.normal(size=(60, d)) for d in (10, 6))
    X, J = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (X, J))
    described = np.arange(0, 60, 3)
    return Set("planted", X.astype(np.float16), J.astype(np.float16), truth, Described(described, J[described].astype(np.float32)))


@pytest.mark.parametrize("captions", [True, False])
def test_permuted_true_labels_change_the_scores_but_no_clustering(captions: bool) -> None:
    images = planted() if captions else replace(planted(), described=None)
    permuted = replace(images, truth=np.random.default_rng(1).permutation(images.truth))
    ours, theirs = (table_of(given, seeds=1, published_steps=20) for given in (images, permuted))
    assert set(ours.labels) == {*KMEANS, MEMBER, CONSENSUS, PUBLISHED, LEAK}
    for name in set(ours.labels) - {LEAK}:
        assert np.array_equal(ours.labels[name], theirs.labels[name]), name
    assert ours.scores(CONSENSUS)[0, 0] > theirs.scores(CONSENSUS)[0, 0] + 20
    assert ours.scores(LEAK)[0, 0] >= ours.scores(PUBLISHED)[0, 0], "the member chosen by true labels cannot score worse"


def test_a_long_tail_has_geometrically_falling_classes_and_is_reproducible() -> None:
    images = replace(planted(), truth=np.repeat([0, 1, 2], 20))
    rows = images.long_tail(ratio=4)
    assert sorted(np.bincount(images.truth[rows]).tolist()) == [5, 10, 20]
    assert np.array_equal(rows, images.long_tail(ratio=4))


def test_simulated_captions_are_right_in_the_requested_share() -> None:
    images = planted()
    sentences = np.eye(3, dtype=np.float32)
    for right in (0.0, 1.0):
        described = images.with_captions("simulated", right, lambda label: sentences[label]).described
        assert described is not None
        assert (described.T.argmax(1) == images.truth[described.rows]).mean() == right
