"""Compares images that came after a fit with those of the fit, and finds groups of new ones that are unlike the old. Uses no labels.

Two questions have a separate test each. *Does the model fit the new images?* The share of outliers and the means of confidence and margin, predicted by
the same head, are compared between old and new images. *Do some new images lie together where none were before?* They do if their neighbours are
mostly new although few images are new: the two-sample test by nearest neighbours (Schilling 1986, Henze 1988), applied to each image.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gsec_core.clustering.centres import Centres
from gsec_core.clustering.kmeans import sample_rows
from gsec_core.clustering.neighbors import neighbors_of
from gsec_core.tables import CONTINUED, KEPT, RENEWED

FAR_OUT = 2.0
"""An image counts as an outlier of its cluster above this number of standard deviations."""

MORE_OUTLIERS, LESS_SURE = 0.05, 0.1
"""The model does not fit if the share of outliers grows, or mean confidence or margin falls, by more than this."""

SURE = 4.0
"""Number of standard errors by which such a difference must exceed chance; for shares, the probability of chance that belongs to it."""

MOST_NEIGHBORS, LEAST_NEIGHBORS, ROWS_PER_NEIGHBOR = 20, 5, 40
"""Number of neighbours of a new image among all images: one for every `ROWS_PER_NEIGHBOR` images, within the other two bounds."""

LEAST_TOGETHER = 10
"""Least number of images in a group of new images."""

MOST_NEW = 0.4
"""If a larger share of the images is new, no groups are searched, since new neighbours mean nothing then."""

MOST_LOOKED_AT = 16_384
"""Largest number of new images whose neighbours are searched; others join a group as neighbours of these."""

MOST_GROWTH = 0.5
"""A model is renewed if the collection has grown or shrunk by more than this share."""

LEAST_GROUP = 0.25
"""Size of a group of new images, in clusters of average size, from which the model is renewed."""


class Said(NamedTuple):
    """Predictions of a model for n images, each (n,)."""

    outlier: NDArray[np.float32]
    confidence: NDArray[np.float32]
    margin: NDArray[np.float32]

    @classmethod
    def of(cls, X: NDArray[Any], posteriors: NDArray[np.float32], centres: Centres, sizes: NDArray[np.int64] | None = None) -> "Said":
        """From embeddings ``X`` (n, d) and the head's posteriors (n, clusters); with the clusters' ``sizes`` if the model was fitted on these images."""
        second, best = np.partition(posteriors, -2, axis=1)[:, -2:].T
        return cls(centres.outliers(X, posteriors.argmax(1), sizes), best, best - second)


class Measure(NamedTuple):
    """The mean of one property over old and over new images."""

    name: str
    before: float
    now: float
    worse: bool
    """Whether new images are worse by more than the bound, and beyond chance."""


def compare(old: Said, new: Said) -> list[Measure]:
    """Compare the share of outliers, confidence and margin of old and new images under the same model. Neither may be empty."""
    return [
        _measure("outliers", old.outlier > FAR_OUT, new.outlier > FAR_OUT, MORE_OUTLIERS),
        _measure("confidence", old.confidence, new.confidence, -LESS_SURE),
        _measure("margin", old.margin, new.margin, -LESS_SURE),
    ]


class Decision(NamedTuple):
    """Decision about a model, with its reason in words."""

    decision: str
    why: str
    measures: list[Measure]


def decide(old: Said, new: Said, n_new: int, growth: float, largest_group: float) -> Decision:
    """Decide whether a model is kept, continued or renewed.

    Parameters
    ----------
    old, new : predictions for images of the model's fit and for new images, or for a sample of each
    n_new : number of new images in all
    growth : number of images now divided by that when all members were fitted
    largest_group : size of the largest group of new images (see `together`), in clusters of average size
    """
    measures = compare(old, new) if n_new else []
    if abs(growth - 1) > MOST_GROWTH:
        change = f"grew by {growth - 1:.0%}" if growth > 1 else f"shrank by {1 - growth:.0%}"
        return Decision(RENEWED, f"the collection {change} since its members were fitted", measures)
    if largest_group >= LEAST_GROUP:
        return Decision(RENEWED, "new images form a group where there are no old images", measures)
    worse = [measure for measure in measures if measure.worse]
    if worse:
        return Decision(CONTINUED, f"of {n_new:,} new images " + "; ".join(map(_in_words, worse)), measures)
    return Decision(KEPT, f"{n_new:,} new images fit as well as the old ones" if n_new else "no image is new", measures)


def _in_words(measure: Measure) -> str:
    if measure.name == "outliers":
        return f"{measure.now:.0%} are outliers ({measure.before:.0%} of the old ones)"
    return f"{measure.name} is {measure.now:.2f} on average ({measure.before:.2f} for the old ones)"


def _measure(name: str, before: NDArray[Any], now: NDArray[Any], bound: float) -> Measure:
    change = (now.mean(dtype=np.float64) - before.mean(dtype=np.float64)) * np.sign(bound)
    return Measure(name, float(before.mean()), float(now.mean()), bool(change > abs(bound) and _beyond_chance(before, now, change)))


def _beyond_chance(before: NDArray[Any], now: NDArray[Any], change: float) -> bool:
    if now.dtype == np.bool_:
        from scipy.stats import hypergeom, norm

        # The exact probability of so many among the new ones (Fisher 1922): of few images the share is far from normal, and of a single one it is 0 or 1.
        all_of_them, both = len(before) + len(now), int(before.sum() + now.sum())
        return bool(hypergeom.sf(int(now.sum()) - 1, all_of_them, both, len(now)) < norm.sf(SURE))
    # A single new image has no variance: that of the old ones is used for both.
    return change > SURE * math.sqrt(before.var(dtype=np.float64) * (1 / len(before) + 1 / len(now)))


def together(rows: Callable[[Any], NDArray[Any]], is_new: NDArray[np.bool_], *, n_threads: int = 0) -> list[NDArray[np.int64]]:
    """Groups of new images that lie together where no old ones are: arrays of row numbers, the largest group first.

    A new image belongs to a group if its share of new neighbours is at least midway between the share of new images and 1. Such images that are neighbours
    form a group; groups of fewer than `LEAST_TOGETHER` images are dropped. There is no group if more than `MOST_NEW` of the images are new. Of more than
    `MOST_LOOKED_AT` new images a sample is looked at; the others belong to the group whose images have them as neighbours.

    Parameters
    ----------
    rows : callable
        Returns embeddings (rows, d) for a slice or an array of row numbers.
    is_new : bool (n,)
    """
    n, new = len(is_new), np.flatnonzero(is_new)
    chance = len(new) / n
    if len(new) < LEAST_TOGETHER or chance > MOST_NEW:
        return []
    new = new[sample_rows(len(new), MOST_LOOKED_AT, 0)]
    count = min(n - 1, max(LEAST_NEIGHBORS, min(MOST_NEIGHBORS, n // ROWS_PER_NEIGHBOR)))
    near = neighbors_of(rows, n, new, count, n_threads=n_threads)
    core = is_new[near].mean(1) >= (1 + chance) / 2
    joins = is_new.copy()
    joins[new[~core]] = False  # what is left are the core, and new images that were not looked at
    inside = joins[near[core]]
    nodes = np.unique(np.concatenate([new[core], near[core][inside]]))
    place = np.full(n, -1)
    place[nodes] = np.arange(len(nodes))
    of, to = np.repeat(place[new[core]], near.shape[1])[inside.ravel()], place[near[core][inside]]
    edges = coo_array((np.ones(len(of)), (of, to)), shape=(len(nodes), len(nodes)))
    _, group = connected_components(edges, directed=False)
    sizes = np.bincount(group)
    cores = np.bincount(group[place[new[core]]], minlength=len(sizes))
    return [nodes[group == number] for number in np.argsort(-sizes, kind="stable") if cores[number] >= LEAST_TOGETHER]
