"""k-means as a linear map from features to soft labels: the start of a member of GSEC, and the whole of a member of k-means."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import MANY_CLUSTERS, one_start, row_blocks, sample_rows, sample_size, sample_size_of_many, side_by_side

MAX_ITER, MAX_ITER_OF_MANY = 50, 6
"""Iterations of k-means, and those for more than `MANY_CLUSTERS`, where training moves the centres further than more iterations would."""

ENTROPY = 0.3
"""Mean entropy of the soft labels at the start, as a share of log n_clusters, the largest possible."""

_PROBE_ROWS, _LEAST_PROBE_ROWS, _PROBE_VALUES = 4096, 512, 2**21
"""The entropy is computed from the first number of rows, or from fewer, down to the second, if their soft labels are more values than the third."""
_HALVINGS = 40


class LinearStart(NamedTuple):
    """A linear map to soft labels, softmax(z weight^T + bias): the start of a task encoder, or a whole member of k-means."""

    weight: Tensor
    """(n_clusters, dimensions)."""
    bias: Tensor
    """(n_clusters,)."""
    sizes: Tensor
    """(n_clusters,): share of the rows in each cluster."""


def kmeans_starts(features: Features, n_clusters: int, seeds: Sequence[int]) -> list[LinearStart]:
    """One k-means of the concatenated features (of a separate sample, where they are many) for each of ``seeds``, softened.

    The soft label of z is softmax over c of -k |z - v_c|^2, with centres v, and k such that the mean entropy is `ENTROPY`; the
    part of the exponent that is the same for all c cancels, and the rest is linear in z.
    """

    many = n_clusters > MANY_CLUSTERS
    iterations = MAX_ITER_OF_MANY if many else MAX_ITER
    rows = sample_size_of_many(n_clusters) if many else sample_size(n_clusters)  # each start draws its own sample

    def sample(seed: int) -> NDArray[np.float32]:
        return features.rows(sample_rows(len(features), rows, seed)).numpy()

    def centres(seed: int) -> NDArray[np.float32]:
        return one_start(sample(seed), n_clusters, max_iter=iterations, seed=seed)[0]

    found = side_by_side(centres, seeds, torch.get_num_threads())
    # Samples are drawn again instead of being kept: together they would take memory in proportion to the number of starts.
    return [softened(sample(seed), vectors, seed) for seed, vectors in zip(seeds, found, strict=True)]


def softened(sample: NDArray[np.float32], centres: NDArray[np.float32], seed: int) -> LinearStart:
    """The softened form, see `kmeans_starts`, of ``centres`` (n_clusters, d) that k-means found in ``sample`` (n, d)."""
    n_clusters = len(centres)
    # By blocks: for many clusters all logits would take far more memory than the sample.
    labels = [_linear(sample[rows], centres).argmax(1) for rows in row_blocks(len(sample), columns=n_clusters)]
    sizes = np.bincount(np.concatenate(labels), minlength=n_clusters) / len(sample)
    probed = sample_rows(len(sample), max(_LEAST_PROBE_ROWS, min(_PROBE_ROWS, _PROBE_VALUES // n_clusters)), seed)
    hardness = _hardness(torch.from_numpy(_linear(sample[probed], centres)))
    squares = np.square(centres).sum(1)
    return LinearStart(torch.from_numpy(2 * hardness * centres), torch.from_numpy(-hardness * squares), torch.from_numpy(sizes.astype(np.float32)))


def _linear(X: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """-|x - v|^2 + |x|^2 for all rows x and centres v, (rows, n_clusters)."""
    distances: NDArray[np.float32] = 2 * X @ centres.T - np.square(centres).sum(1)
    return distances


def _hardness(logits: Tensor) -> float:
    """The factor of ``logits`` (rows, n_clusters) at which their softmax has the mean entropy `ENTROPY`, found by bisection of its logarithm."""
    logits = logits - logits.max(1, keepdim=True).values
    spread = float(-logits.mean()) or 1.0
    low, high = 1e-4 / spread, 1e6 / spread
    wanted = ENTROPY * float(np.log(logits.shape[1]))
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        labels = (middle * logits).softmax(1)
        if float(-torch.xlogy(labels, labels).sum(1).mean()) > wanted:
            low = middle
        else:
            high = middle
    return high
