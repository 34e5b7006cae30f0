"""Scores against ground truth. They judge a result that is there; nothing in gsec is chosen by them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix


class Scores(NamedTuple):
    """Each between 0 (ARI: about 0 for chance) and 1."""

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


def score(truth: ArrayLike, labels: ArrayLike) -> Scores:
    """ACC, NMI and ARI of ``labels`` (n,) against ``truth`` (n,)."""
    truth, labels = np.asarray(truth), np.asarray(labels)
    return Scores(accuracy(truth, labels), float(normalized_mutual_info_score(truth, labels)), float(adjusted_rand_score(truth, labels)))
