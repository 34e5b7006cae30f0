"""Scores against ground truth, which only judge finished results and choose nothing; and purity, which needs no ground truth."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


class Scores(NamedTuple):
    """Scores between 0 and 1 (ARI: about 0 for chance, and negative below it)."""

    acc: float
    """Share of images right under the best one-to-one matching of clusters to classes."""
    nmi: float
    """Normalised mutual information, arithmetic mean."""
    ari: float
    """Adjusted Rand index."""


def accuracy(truth: ArrayLike, labels: ArrayLike) -> float:
    """Clustering accuracy: Hungarian matching on the contingency table (Kuhn 1955); clusters without a class count as wrong."""
    table = contingency_matrix(truth, labels)
    rows, columns = linear_sum_assignment(-table)
    return float(table[rows, columns].sum() / table.sum())


class BiasVariance(NamedTuple):
    """Error, bias and variance of several runs, after Domingos 2000 for 0/1 loss."""

    error: float
    """Share of wrong images, mean over the runs."""
    bias: float
    """Share of images for which the plurality of the runs is wrong."""
    variance: float
    """Share of images on which a run differs from the plurality, mean over the runs. Bias and variance need not add up to the error, since differing from a
    wrong plurality may help."""


def bias_variance(runs: ArrayLike, truth: ArrayLike) -> BiasVariance:
    """Bias and variance of ``runs`` (runs, n) against ``truth`` (n,); runs may number their clusters differently.

    Each run's clusters are matched to the classes as in `accuracy`; a cluster without a class is wrong everywhere. If several
    classes are equally frequent for an image, the lowest is the plurality. Raises ValueError if there is no run.
    """
    classes, true = np.unique(np.asarray(truth), return_inverse=True)
    named = np.array([_classes(true, np.asarray(run), len(classes)) for run in np.asarray(runs)])
    if not len(named):
        raise ValueError("runs is empty: bias and variance need at least one run.")
    votes = np.stack([(named == label).sum(0) for label in range(len(classes) + 1)])
    plurality = votes.argmax(0)
    return BiasVariance(float((named != true).mean()), float((plurality != true).mean()), float((named != plurality).mean()))


def _classes(true: NDArray[np.intp], labels: NDArray[Any], n_classes: int) -> NDArray[np.int64]:
    """The class matched to each label; ``n_classes`` if there is none."""
    clusters, found = np.unique(labels, return_inverse=True)
    table = contingency_matrix(true, found)
    rows, columns = linear_sum_assignment(-table)
    match = np.full(len(clusters), n_classes)
    match[columns] = rows
    named: NDArray[np.int64] = match[found]
    return named


def purity(labels: NDArray[np.integer[Any]], neighbors: NDArray[np.integer[Any]], rows: NDArray[np.int64] | None = None) -> tuple[NDArray[np.float64], float]:
    """How far clusters keep neighbours together: purity of each cluster (n_clusters,), and mean over images. 1: all neighbours are in the cluster; 0: chance.

    Parameters
    ----------
    labels : (n,) from 0; a cluster without images has purity 0
    neighbors : (m, k) row numbers of the neighbours of ``rows``
    rows : (m,) row numbers; None: all rows
    """
    own = labels if rows is None else labels[rows]
    sizes = np.bincount(labels)
    shares, found = sizes / len(labels), np.bincount(own, minlength=len(sizes))
    within = np.bincount(own, (labels[neighbors] == own[:, None]).mean(1), len(sizes)) / np.maximum(found, 1)
    pure = np.where((found > 0) & (shares < 1), (within - shares) / np.maximum(1 - shares, 1e-12), 0)
    return pure, float(pure @ found / len(own))


def score(truth: ArrayLike, labels: ArrayLike) -> Scores:
    """ACC, NMI and ARI of ``labels`` (n,) against ``truth`` (n,)."""
    truth, labels = np.asarray(truth), np.asarray(labels)
    return Scores(accuracy(truth, labels), float(normalized_mutual_info_score(truth, labels)), float(adjusted_rand_score(truth, labels)))
