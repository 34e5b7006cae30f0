"""The text counterpart of an image: a weighted mean of descriptions of other images.

TAC's retrieval (Li et al. 2024, https://arxiv.org/abs/2310.11989) with generated sentences in place of nouns, as in
Li et al. 2026, https://arxiv.org/abs/2605.12961.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gsec_core.clustering.kmeans import unit_rows

_BLOCK_VALUES = 2**25
"""Cosines in memory at once."""


class Counterparts(NamedTuple):
    """Of a block of rows."""

    vectors: NDArray[np.float32]
    """(rows, dt), unit length."""
    best: NDArray[np.int32]
    """(rows,): the description with the largest weight."""
    weight: NDArray[np.float32]
    """(rows,): that weight."""


def softmax_counterparts(X: NDArray[Any], T_joint: NDArray[Any], T: NDArray[Any], tau: float, max_lost_weight: float = 0.0) -> Iterator[Counterparts]:
    """Counterparts of the rows of ``X``, block by block, in order.

    With w_ij = softmax over all descriptions j of cos(x_i, t_j) / ``tau``, the counterpart of row i is the direction of
    sum_j w_ij t_j.

    For speed, descriptions with w_ij < max_j w_ij * ``max_lost_weight`` / M are left out and the rest is scaled to sum
    to 1. These are fewer than M, and the largest weight is at most 1, so their weights sum to less than
    M * 1 * ``max_lost_weight`` / M = ``max_lost_weight``. With 0 none is left out.

    Parameters
    ----------
    X : (n, d) images in the space shared with text, floats of any precision and length; may be a memory map
    T_joint : (M, d) descriptions in that space
    T : (M, dt) descriptions in the space of the counterparts
    tau : temperature, above 0
    max_lost_weight : at least 0, below 1

    Raises ValueError if there is no description.
    """
    if not len(T):
        raise ValueError("T has no rows: without a description there is no counterpart.")
    texts, values = unit_rows(T_joint), np.ascontiguousarray(T, np.float32)
    step = max(1, _BLOCK_VALUES // len(T))
    for start in range(0, len(X), step):
        cosines = unit_rows(X[start : start + step]) @ texts.T
        best = cosines.argmax(1)
        if max_lost_weight:
            sums, total = _summed(cosines, best, values, tau, np.log(max_lost_weight / len(T)))
        else:
            sums, total = _summed_all(cosines, best, values, tau)
        yield Counterparts(unit_rows(sums), best.astype(np.int32), np.reciprocal(total))


def _summed_all(
    cosines: NDArray[np.float32], best: NDArray[np.int64], values: NDArray[np.float32], tau: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The weighted sums (rows, dt) and the sums of the weights (rows,), as multiples of the largest weight."""
    weights = np.exp((cosines - _at(cosines, best)) / np.float32(tau))
    return weights @ values, weights.sum(1)


def _summed(
    cosines: NDArray[np.float32], best: NDArray[np.int64], values: NDArray[np.float32], tau: float, least: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As `_summed_all`, of the weights whose logarithm is at least ``least``."""
    largest = _at(cosines, best)
    kept = cosines >= largest + np.float32(tau * least)
    counts = kept.sum(1)
    columns = np.flatnonzero(kept) - np.repeat(np.arange(len(kept)) * kept.shape[1], counts)
    weights = np.exp((cosines[kept] - np.repeat(largest, counts)) / np.float32(tau))
    starts = np.concatenate([[0], np.cumsum(counts)])
    sums: NDArray[np.float32] = csr_array((weights, columns, starts), shape=cosines.shape) @ values
    return sums, np.add.reduceat(weights, starts[:-1])


def _at(cosines: NDArray[np.float32], best: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.take_along_axis(cosines, best[:, None], 1)
