"""Text counterparts of images, made from descriptions of a few images.

`Ridge` predicts them from the images' embeddings, so that it needs no space shared by images and text. `softmax_counterparts`
is the published method: TAC's retrieval (Li et al. 2024, https://arxiv.org/abs/2310.11989) with generated sentences in
place of nouns, as in Li et al. 2026, https://arxiv.org/abs/2605.12961.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve
from scipy.sparse import csr_array

from gsec_core.clustering.kmeans import row_blocks, unit_rows

PENALTY = 1.0
"""Penalty of ridge regression, for unit vectors as rows."""

LEAST_WEIGHT, MOST_WEIGHT = 0.15, 0.5
"""Text weight of counterparts without new information, and of those that are as informative as the images."""

_BLOCK_VALUES = 2**25
"""Number of cosines in memory at once."""

_SPARSE = 0.02
"""Up to this share of non-zero weights a sparse product, in one thread, is faster than a dense one."""


@dataclass(frozen=True)
class Ridge:
    """A linear map from images to descriptions: the counterpart of x is normalise(c @ weights), with c = normalise(x - mean)."""

    mean: NDArray[np.float32]
    """(d,): mean of all images."""
    weights: NDArray[np.float32]
    """(d, dt)."""

    @classmethod
    def fit(cls, X: NDArray[Any], described: NDArray[np.int64], T: NDArray[Any]) -> "Ridge":
        """Ridge regression, in closed form, of the centred descriptions on the directions of their images from the mean image.

        Parameters
        ----------
        X : (n, d) images, unit vectors of any precision; may be a memory map
        described : (M,) the row of ``X`` that each row of ``T`` describes
        T : (M, dt) descriptions

        Raises ValueError if there is no description, or if all are equal: every counterpart would be 0.
        """
        if not len(T):
            raise ValueError("T has no rows: without descriptions there are no counterparts.")
        if all_equal(T):
            raise ValueError(f"T: all {len(T)} descriptions are equal, so they do not tell images apart. Give different ones, or no text.")
        mean = _mean(X)
        return cls(mean, _ridge_weights(unit_rows(X[described] - mean), T))

    def counterparts(self, X: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
        """Counterparts of the rows of ``X`` (n, d), block by block: unit vectors (rows, dt)."""
        for rows in row_blocks(len(X)):
            yield unit_rows(unit_rows(X[rows] - self.mean) @ self.weights)


def all_equal(T: NDArray[Any]) -> bool:
    """Whether all rows of ``T`` (M, dt) are equal."""
    return len(distinct_rows(np.asarray(T))[0]) == 1


def _mean(X: NDArray[Any]) -> NDArray[np.float32]:
    total = sum(X[rows].sum(0, dtype=np.float64) for rows in row_blocks(len(X)))
    mean: NDArray[np.float32] = (total / len(X)).astype(np.float32)
    return mean


def _ridge_weights(directions: NDArray[np.float32], T: NDArray[Any]) -> NDArray[np.float32]:
    """Weights (d, dt) of the ridge regression of ``T`` (M, dt), centred, on ``directions`` (M, d)."""
    rows = directions.astype(np.float64)
    texts = np.asarray(T, np.float64) - np.asarray(T, np.float64).mean(0)
    if len(rows) <= rows.shape[1]:
        weights = rows.T @ solve(rows @ rows.T + PENALTY * np.eye(len(rows)), texts, assume_a="pos")
    else:
        weights = solve(rows.T @ rows + PENALTY * np.eye(rows.shape[1]), rows.T @ texts, assume_a="pos")
    return np.asarray(weights, np.float32)


def ridge_cosines(X: NDArray[Any], described: NDArray[np.int64], T: NDArray[Any]) -> NDArray[np.float32]:
    """How well `Ridge` predicts held-out descriptions, (M,); arguments as in `Ridge.fit`. See `_held_out_cosines`."""
    images = X[described]
    directions = unit_rows(images - _mean(X))
    return _held_out_cosines(images, T, lambda known, held: directions[held] @ _ridge_weights(directions[known], T[known]))


def softmax_cosines(X: NDArray[Any], T: NDArray[Any], tau: float, max_lost_weight: float = 0.0) -> NDArray[np.float32]:
    """How well `softmax_counterparts` predicts held-out descriptions, (M,); ``X`` (M, d) are the described images, ``T`` (M, d). See `_held_out_cosines`."""

    def predict(known: NDArray[np.int64], held: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.concatenate(list(softmax_counterparts(X[held], T[known], T[known], tau, max_lost_weight)))
        return np.asarray(found - np.asarray(T[known], np.float32).mean(0))

    return _held_out_cosines(X, T, predict)


def _held_out_cosines(
    images: NDArray[Any], T: NDArray[Any], predict: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Cosine of each description in ``T`` (M, dt) with its prediction by five-fold cross-validation, (M,); both are centred on the mean of the known ones.

    ``predict`` gets the row numbers of the known and of the held-out descriptions. Copies, which are equal rows of ``images`` (M, d), are held out together:
    a description known from a copy would seem predicted. The descriptions of a single image have cosine 0.
    """
    from sklearn.model_selection import KFold

    found = np.zeros(len(T), np.float32)
    first, copies = distinct_rows(images)
    if len(first) < 2:
        return found
    copies = np.argsort(np.argsort(first))[copies]  # numbered in the order of the rows
    for _, part in KFold(min(5, len(first)), shuffle=True, random_state=0).split(first):
        out = np.isin(copies, part)
        known, held = np.flatnonzero(~out), np.flatnonzero(out)
        directions = unit_rows(np.asarray(T[held], np.float32) - np.asarray(T[known], np.float32).mean(0))
        found[held] = (directions * unit_rows(predict(known, held))).sum(1)
    return found


def distinct_rows(rows: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For ``rows`` (n, d) the number of the first of each set of equal ones, sorted by their bytes, (m,); and for each row the place of its set there, (n,)."""
    rows = np.ascontiguousarray(rows)
    _, first, place = np.unique(rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel(), return_index=True, return_inverse=True)
    return first, place


def best_predicted(cosines: Mapping[str, NDArray[np.float32]]) -> str:
    """The kind of counterpart with the best held-out cosines (M,). An earlier kind is preferred unless a later mean is larger by two standard errors."""
    best, *others = cosines
    for other in others:
        difference = cosines[other] - cosines[best]
        if difference.mean() > 2 * difference.std() / np.sqrt(len(difference)):
            best = other
    return best


def weight_by(cosine: float) -> float:
    """The text weight for a mean held-out cosine: the better the counterparts predict descriptions, the larger it is.

    It lies between `LEAST_WEIGHT`, for a cosine of 0, and `MOST_WEIGHT`.
    """
    return float(np.clip(LEAST_WEIGHT + cosine, LEAST_WEIGHT, MOST_WEIGHT))


def softmax_counterparts(X: NDArray[Any], T_joint: NDArray[Any], T: NDArray[Any], tau: float, max_lost_weight: float = 0.0) -> Iterator[NDArray[np.float32]]:
    """Counterparts of the rows of ``X``, block by block, in order: unit vectors (rows, dt).

    With w_ij = softmax over all descriptions j of cos(x_i, t_j) / ``tau``, the counterpart of row i is the direction of
    sum_j w_ij t_j.

    For speed, descriptions with w_ij < max_j w_ij * ``max_lost_weight`` / M are left out, and the others are scaled to sum
    to 1. Fewer than M are left out, and the largest weight is at most 1, so that the lost weights sum to less than
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
        raise ValueError("T has no rows: without descriptions there are no counterparts.")
    texts, values = unit_rows(T_joint), np.ascontiguousarray(T, np.float32)
    step = max(1, _BLOCK_VALUES // len(T))
    for start in range(0, len(X), step):
        cosines = unit_rows(X[start : start + step]) @ texts.T
        least = cosines.max(1, keepdims=True) + np.float32(tau * np.log(max_lost_weight / len(T))) if max_lost_weight else None
        yield unit_rows(_summed(cosines, values, tau, least))


def nearest_counterparts(X: NDArray[Any], nouns: NDArray[Any], count: int, tau: float) -> Iterator[NDArray[np.float32]]:
    """Counterparts of the rows of ``X`` (n, d) from the ``count`` nearest of ``nouns`` (n_nouns, d) alone, block by block: unit vectors (rows, d).

    The weights are the softmax of cosines / ``tau`` over these nouns. Nouns as near as the last of them are included, so that the order of nouns
    does not matter. If there are ``count`` nouns or fewer, all are used, as in `softmax_counterparts`.

    Raises ValueError if there is no noun.
    """
    if count >= len(nouns):
        yield from softmax_counterparts(X, nouns, nouns, tau)
        return
    vectors, values = unit_rows(nouns), np.ascontiguousarray(nouns, np.float32)
    step = max(1, _BLOCK_VALUES // len(nouns))
    for start in range(0, len(X), step):
        cosines = unit_rows(X[start : start + step]) @ vectors.T
        last = len(nouns) - count
        yield unit_rows(_summed(cosines, values, tau, np.partition(cosines, last, axis=1)[:, last : last + 1]))


def _summed(cosines: NDArray[np.float32], values: NDArray[np.float32], tau: float, least: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Weighted sums (rows, dt) of the ``values`` whose cosines are at least ``least`` (rows, 1); weights are relative to the largest of each row."""
    largest = cosines.max(1, keepdims=True)
    sums: NDArray[np.float32]
    if least is None:
        sums = np.exp((cosines - largest) / np.float32(tau)) @ values
        return sums
    kept = cosines >= least
    counts = kept.sum(1)
    if counts.sum() > _SPARSE * kept.size:
        sums = np.where(kept, np.exp((cosines - largest) / np.float32(tau)), np.float32(0)) @ values
        return sums
    columns = np.flatnonzero(kept) - np.repeat(np.arange(len(kept)) * kept.shape[1], counts)
    weights = np.exp((cosines[kept] - np.repeat(largest, counts)) / np.float32(tau))
    sums = csr_array((weights, columns, np.concatenate([[0], np.cumsum(counts)])), shape=cosines.shape) @ values
    return sums
