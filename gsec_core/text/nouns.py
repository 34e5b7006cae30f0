"""Text counterparts of images from the nouns of a vocabulary that distinguish parts of the images.

The images are divided into parts, each with a *semantic centre*, and for each centre some nouns are kept; the `NounSelection` of the method says
which. In TAC (Li et al. 2024, https://arxiv.org/abs/2310.11989) parts are small, every noun belongs to its nearest centre, and the nouns are kept
that are most clearly nearer to it than to the other centres; SIC and SEIC keep many nouns near each of as many centres as clusters. An image's
counterpart is the mean of the kept nouns, weighted by softmax of their cosines with the image.

No array has the size of nouns times images: see `assigned_nouns` and `fusion.softmax_counterparts`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gsec_core.clustering.kmeans import cosines, one_start, sample_rows, unit_rows
from gsec_core.devices import native_threads
from gsec_core.text import DISTINCT, NounSelection
from gsec_core.text.fusion import distinct_rows, nearest_counterparts, softmax_counterparts

MAX_LOST_WEIGHT = 1e-4
"""Largest total weight of the nouns that are left out of a counterpart."""

_MANY_CENTRES = 1000
"""More centres are placed by one start of ten iterations on a sample: the published 10 starts of 300 would take longer than all that follows."""

_SAMPLE_PER_CENTRE = 32

_NOUN_ROWS, _CENTRE_ROWS = 16_384, 256
"""Numbers of nouns and of centres whose cosines are in memory at once."""

_WEIGHTS = 2**25
"""Number of weights of nouns in images that are in memory at once."""


class Selection(NamedTuple):
    """The nouns that are kept, centre by centre, the best first."""

    noun: NDArray[np.int64]
    """(kept,): numbers in the vocabulary; the first of those with equal vectors."""
    centre: NDArray[np.int64]
    """(kept,): the centre to which the noun belongs."""
    rank: NDArray[np.int64]
    """(kept,): rank within the centre; 0 is the best."""
    score: NDArray[np.float32]
    """(kept,): log of the softmax over centres of the noun's cosines, at the noun's centre."""


def centre_count(n: int, n_clusters: int, images_per_centre: int | None) -> int:
    """Number of semantic centres of ``n`` images: one for ``images_per_centre``, but three per cluster if these were not more than clusters; at most n / 2.

    Without ``images_per_centre``, one per cluster.
    """
    if images_per_centre is None:
        return n_clusters
    count = round(n / images_per_centre)
    if count <= n_clusters:
        count = 3 * n_clusters
    return max(1, min(count, n // 2))


def semantic_centres(X: NDArray[Any], count: int, *, random_state: int, n_threads: int = 0) -> NDArray[np.float32]:
    """Unit centres (count, d) of images ``X`` (n, d) by spherical k-means; fewer if some parts have no images."""
    if count <= _MANY_CENTRES:
        from gsec_core.clustering.spherical_kmeans import SphericalKMeans

        parts = SphericalKMeans(count, n_init=10, max_iter=300, random_state=random_state, n_threads=n_threads).fit(X)
        centres, labels = parts.cluster_centers_, parts.labels_
    else:
        sample = unit_rows(X[sample_rows(len(X), _SAMPLE_PER_CENTRE * count, random_state)])
        with native_threads(n_threads):
            centres = unit_rows(one_start(sample, count, max_iter=10, seed=random_state, spherical=True)[0])
            labels = np.concatenate([block.argmax(1) for block in cosines(sample, centres)])
    kept: NDArray[np.float32] = centres[np.unique(labels)]
    return kept


def select_nouns(X: NDArray[Any], nouns: NDArray[Any], n_clusters: int, selection: NounSelection = DISTINCT) -> Selection:
    """Select from ``nouns`` (n_nouns, d) those that represent images ``X`` (n, d), which must be in the same space."""
    if selection.per_centre is None:
        return kept_nouns(nouns, unit_rows(nouns), selection)
    count = centre_count(len(X), n_clusters, selection.images_per_centre)
    return kept_nouns(nouns, semantic_centres(X, count, random_state=0), selection)


def kept_nouns(nouns: NDArray[Any], centres: NDArray[np.float32], selection: NounSelection) -> Selection:
    """Select from ``nouns`` (n_nouns, d) those to keep for the unit ``centres`` (k, d).

    Equal vectors count as one noun, and the order of the vocabulary does not matter. A centre to which no noun belongs keeps none.
    """
    first, _ = distinct_rows(nouns)
    if selection.unlike:
        vectors = unit_rows(nouns[first])
        first = first[vectors @ unit_rows(vectors.mean(0, keepdims=True))[0] < 1 - selection.unlike]
    most = selection.per_centre or 1
    if selection.nearest:
        first = first[np.unique(nearest_nouns(nouns[first], centres, most))] if len(first) else first
        most = len(first)
    centre, score = assigned_nouns(nouns[first], centres)
    order = np.lexsort((-score, centre))
    starts = np.searchsorted(centre[order], np.arange(len(centres)))
    rank = np.arange(len(order)) - starts[centre[order]]
    kept = order[rank < most]
    return Selection(first[kept], centre[kept], rank[rank < most], score[kept])


def assigned_nouns(nouns: NDArray[Any], centres: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest of the unit ``centres`` (k, d) for each noun (n_nouns, d), and the log of its softmax over all centres, at temperature 1."""
    labels, scores = np.empty(len(nouns), np.int64), np.empty(len(nouns), np.float32)
    for start in range(0, len(nouns), _NOUN_ROWS):
        rows = slice(start, min(start + _NOUN_ROWS, len(nouns)))
        vectors = unit_rows(nouns[rows])
        best, label, total = np.full(len(vectors), -np.inf), np.zeros(len(vectors), np.int64), np.zeros(len(vectors))
        for first in range(0, len(centres), _CENTRE_ROWS):
            found = vectors @ centres[first : first + _CENTRE_ROWS].T
            total += np.exp(found).sum(1, dtype=np.float64)  # exponentials of cosines cannot overflow
            here = found.argmax(1)
            value = np.take_along_axis(found, here[:, None], 1)[:, 0]
            label = np.where(value > best, first + here, label)
            best = np.maximum(best, value)
        labels[rows], scores[rows] = label, best - np.log(total)
    return labels, scores


def nearest_nouns(nouns: NDArray[Any], centres: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Numbers of the ``count`` nouns (n_nouns, d) nearest to each of ``centres`` (k, d) by cosine, the nearest first: (k, count).

    Equal vectors count as one noun, the first of them; the order of the vocabulary does not matter. If there are fewer nouns, all are returned.
    """
    (first, _), directions = distinct_rows(nouns), unit_rows(centres)
    count = min(count, len(first))
    found, best = np.zeros((len(centres), count), np.int64), np.full((len(centres), count), -np.inf, np.float32)
    for start in range(0, len(first), _NOUN_ROWS):
        here = first[start : start + _NOUN_ROWS]
        vectors = unit_rows(nouns[here])
        for place in range(0, len(centres), _CENTRE_ROWS):
            rows = slice(place, place + _CENTRE_ROWS)
            values = np.hstack([best[rows], directions[rows] @ vectors.T])
            numbers = np.hstack([found[rows], np.broadcast_to(here, (len(values), len(here)))])
            kept = np.argpartition(values, len(here), axis=1)[:, len(here) :]
            found[rows], best[rows] = np.take_along_axis(numbers, kept, 1), np.take_along_axis(values, kept, 1)
    return np.take_along_axis(found, np.argsort(-best, axis=1, kind="stable"), 1)


def noun_counterparts(X: NDArray[Any], nouns: NDArray[Any], selection: NounSelection = DISTINCT) -> Iterator[NDArray[np.float32]]:
    """Unit counterparts of images ``X`` (n, d), block by block: means of ``nouns`` (n_kept, d), weighted by softmax(cosine / tau)."""
    assert selection.tau is not None, "else images are their own counterparts"
    if selection.in_counterpart is None:
        return softmax_counterparts(X, nouns, nouns, selection.tau, MAX_LOST_WEIGHT)
    return nearest_counterparts(X, nouns, selection.in_counterpart, selection.tau)


def cluster_weights(X: NDArray[Any], labels: NDArray[np.integer[Any]], n_clusters: int, nouns: NDArray[Any], tau: float) -> NDArray[np.float32]:
    """Mean weight of each noun in the counterparts of a cluster's images, minus its mean weight in those of all images: (n_clusters, n_kept).

    ``X`` (n, d) are the images with ``labels`` (n,), ``nouns`` (n_kept, d). A cluster without images has zeros.
    """
    vectors, sums = unit_rows(nouns), np.zeros((n_clusters, len(nouns)))
    step = max(1, _WEIGHTS // len(nouns))
    for start in range(0, len(X), step):
        logits = unit_rows(X[start : start + step]) @ vectors.T / np.float32(tau)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        here = labels[start : start + step]
        member = csr_array((np.ones(len(here), np.float32), (here, np.arange(len(here)))), shape=(n_clusters, len(here)))
        sums += member @ weights
    counts = np.bincount(labels, minlength=n_clusters)[:, None]
    means = np.where(counts > 0, sums / np.maximum(counts, 1) - sums.sum(0) / len(X), 0)
    return means.astype(np.float32)
