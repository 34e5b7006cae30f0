"""Whether images that came after a fit are like those that it was made of, and which of them are something new. No label takes part.

Two questions, each with an instrument of its own. *Does the model fit them?* The shares of outliers and the means of confidence and margin,
of old and of new images by the same head, tell of images that it has no place for. *Do some of them lie together, where nothing was before?* An image
whose neighbours are mostly new, though few images are, says so: the two-sample test by nearest neighbours (Schilling 1986, Henze 1988), here image by image.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from gsec_core.clustering.centres import Centres
from gsec_core.clustering.neighbors import neighbors_of
from gsec_core.tables import CONTINUED, KEPT, RENEWED

FAR_OUT = 2.0
"""Deviations from which an image counts as an outlier of its cluster."""

MORE_OUTLIERS, LESS_SURE = 0.05, 0.1
"""By which share more images may be outliers, and by how much less confidence and margin may be on average, before a model does not fit."""

SURE = 4.0
"""Standard errors that such a difference must be beyond chance."""

MOST_NEIGHBORS, LEAST_NEIGHBORS, ROWS_PER_NEIGHBOR = 20, 5, 40
"""Neighbours of a new image among all images: of few images one for so many, within these bounds."""

LEAST_TOGETHER = 10
"""Images that a group of new ones has at least."""

MOST_NEW = 0.4
"""Share of the images above which being new says nothing of an image any more."""

MOST_LOOKED_AT = 16_384
"""New images whose neighbours are searched, among all: more do not change what is found."""

MOST_GROWTH = 0.5
"""By which share a collection may grow, or shrink, until a model is renewed."""

LEAST_GROUP = 0.25
"""Size, in clusters of average size, from which a group of new images asks for a new model."""


class Said(NamedTuple):
    """What a model says of images, each (n,)."""

    outlier: NDArray[np.float32]
    confidence: NDArray[np.float32]
    margin: NDArray[np.float32]

    @classmethod
    def of(cls, X: NDArray[Any], posteriors: NDArray[np.float32], centres: Centres, sizes: NDArray[np.int64] | None = None) -> "Said":
        """Of embeddings ``X`` (n, d) with the posteriors of the model's head, (n, clusters); with its clusters' ``sizes``, if it was made of them."""
        second, best = np.partition(posteriors, -2, axis=1)[:, -2:].T
        return cls(centres.outliers(X, posteriors.argmax(1), sizes), best, best - second)


class Measure(NamedTuple):
    """One property, on average of old and of new images."""

    name: str
    before: float
    now: float
    worse: bool
    """Whether it is worse by more than the bound, beyond chance."""


def compare(old: Said, new: Said) -> list[Measure]:
    """How new images differ from old ones of which the same model says it: the share of outliers, confidence and margin. Both have images."""
    return [
        _measure("outliers", old.outlier > FAR_OUT, new.outlier > FAR_OUT, MORE_OUTLIERS),
        _measure("confidence", old.confidence, new.confidence, -LESS_SURE),
        _measure("margin", old.margin, new.margin, -LESS_SURE),
    ]


class Decision(NamedTuple):
    """What is done with a model, and why."""

    decision: str
    why: str
    measures: list[Measure]


def decide(old: Said, new: Said, n_new: int, growth: float, largest_group: float) -> Decision:
    """Whether a model stays.

    Parameters
    ----------
    old, new : of images that the model was made of, and of others, or of a sample of each
    n_new : others in all
    growth : images now over those when all members were fitted
    largest_group : of the groups of new images (see `together`), in clusters of average size
    """
    measures = compare(old, new) if n_new else []
    if abs(growth - 1) > MOST_GROWTH:
        change = f"grew by {growth - 1:.0%}" if growth > 1 else f"shrank by {1 - growth:.0%}"
        return Decision(RENEWED, f"the collection {change} since its members were fitted", measures)
    if largest_group >= LEAST_GROUP:
        return Decision(RENEWED, "new images lie together where no old ones are", measures)
    worse = [measure for measure in measures if measure.worse]
    if worse:
        return Decision(CONTINUED, f"of {n_new:,} new images " + "; ".join(map(_in_words, worse)), measures)
    return Decision(KEPT, f"{n_new:,} new images fit as well as the old" if n_new else "no image is new", measures)


def _in_words(measure: Measure) -> str:
    if measure.name == "outliers":
        return f"{measure.now:.0%} are outliers ({measure.before:.0%} of the old)"
    return f"{measure.name} is {measure.now:.2f} on average ({measure.before:.2f} of the old)"


def _measure(name: str, before: NDArray[Any], now: NDArray[Any], bound: float) -> Measure:
    change = (now.mean(dtype=np.float64) - before.mean(dtype=np.float64)) * np.sign(bound)
    # A single new image has no spread of its own: that of the old ones counts for both.
    error = math.sqrt(before.var(dtype=np.float64) * (1 / len(before) + 1 / len(now)))
    return Measure(name, float(before.mean()), float(now.mean()), bool(change > abs(bound) and change > SURE * error))


def together(rows: Callable[[Any], NDArray[Any]], is_new: NDArray[np.bool_], *, n_threads: int = 0) -> list[NDArray[np.int64]]:
    """Groups of new images that lie together where no old ones are: the numbers of their rows, the largest group first.

    An image is in a group's core if at least half of the share of its neighbours that would be old by chance is new. Images of cores that are
    neighbours are one group, which has `LEAST_TOGETHER` images at least. If most images are new, there is none.

    Parameters
    ----------
    rows : callable
        From a slice or an array of row numbers to embeddings, (rows, d).
    is_new : bool (n,)
    """
    n, new = len(is_new), np.flatnonzero(is_new)
    chance = len(new) / n
    if len(new) < LEAST_TOGETHER or chance > MOST_NEW:
        return []
    if len(new) > MOST_LOOKED_AT:
        new = np.sort(np.random.default_rng(0).choice(new, MOST_LOOKED_AT, replace=False))
    count = min(n - 1, max(LEAST_NEIGHBORS, min(MOST_NEIGHBORS, n // ROWS_PER_NEIGHBOR)))
    near = neighbors_of(rows, n, new, count, n_threads=n_threads)
    core = is_new[near].mean(1) >= (1 + chance) / 2
    place = np.full(n, -1)
    place[new[core]] = np.arange(core.sum())
    of, to = np.repeat(np.arange(core.sum()), near.shape[1]), place[near[core]].ravel()
    edges = coo_array((np.ones((to >= 0).sum()), (of[to >= 0], to[to >= 0])), shape=(core.sum(), core.sum()))
    _, group = connected_components(edges, directed=False)
    sizes = np.bincount(group)
    return [new[core][group == number] for number in np.argsort(-sizes, kind="stable") if sizes[number] >= LEAST_TOGETHER]
