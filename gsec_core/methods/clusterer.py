"""Base classes of the estimators of all methods: scikit-learn's conventions around a plan, see `plan`."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from gsec_core.clustering.ensemble import head_posteriors, joined
from gsec_core.clustering.features import Half
from gsec_core.devices import in_threads, resolve, threads_of_torch, usable_cores
from gsec_core.errors import Refused
from gsec_core.methods.method import default_members
from gsec_core.methods.plan import OuterLayer, Start
from gsec_core.text import DISTINCT, NounSelection
from gsec_core.text.nouns import noun_counterparts, select_nouns

_FLOATS = [np.float32, np.float16]
"""Types that are used without conversion; other numbers are converted to the first."""

ROWS_PER_NEIGHBOR = 40
"""Least number of rows per neighbour: with few rows there are fewer neighbours."""

SMOOTHING = 3
"""Rounds of smoothing the consensus over neighbours."""

MOST_GRAM_BYTES = 2**33
"""Limit of memory for the products of all members' posteriors: enough for members times clusters = 32,768."""


class Estimator(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator with helpers that check parameters."""

    random_state: int
    device: str

    def check_positive(self, *names: str) -> None:
        """Raises ValueError for a parameter in ``names`` that is neither None nor a whole number of at least 1.

        Also for ``n_clusters`` = None, and for a ``random_state`` that is not a seed of at least 0.
        """
        for name, least in (*((name, 1) for name in names), ("random_state", 0)):
            value = getattr(self, name)
            if value is None and name not in ("n_clusters", "random_state"):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ValueError(f"{name} = {value!r}: it must be a whole number.")
            if value < least:
                raise ValueError(f"{name} = {value}: it must be at least {least}.")

    def lies(self, name: str, least: float, most: float = math.inf) -> bool:
        """Whether the parameter ``name`` is a number from ``least`` to ``most``."""
        value = getattr(self, name)
        return isinstance(value, Real) and least <= float(value) <= most

    def resolved_device(self) -> str:
        """The device that `devices.resolve` chooses. Raises ValueError if it is not available."""
        try:
            return resolve(str(self.device), "device")  # a `torch.device` is called as its string is
        except Refused as error:
            raise ValueError(str(error)) from None


class Clusterer(Estimator):
    """An outer ensemble: members that a method trains, aligned, averaged and smoothed over neighbours. Uses no ground truth.

    Attributes
    ----------
    labels_ : int32 (n_samples,), cluster 0 is the largest, except after `fit` with ``before``
    member_labels_ : int32 (n_members, n_samples), aligned
    confidence_ : float32 (n_samples,), the label's mean aligned posterior, smoothed and calibrated: about the share of members that agree
    margin_ : float32 (n_samples,), difference between that posterior and the second largest
    agreement_ : float32 (n_samples,), share of members that agree with the label
    member_agreement_ : float32 (n_members,), share of samples on which a member agrees with the labels
    members_ : list of `members.Member`
    ensemble_ : `ensemble.Ensemble`
    head_ : `ensemble.Head`, used by `predict`, since new rows have no neighbours to be smoothed over
    halves_ : list of `features.Half`, the scaling of X and text
    nouns_ : int64 (n_selected,), indices of the selected nouns; None without nouns
    n_text_features_in_ : int or None
    n_joint_features_in_ : int or None
    """

    n_clusters: int
    n_members: int | None
    random_state: int

    text_weight: float = 0.5
    """Weight of the text half, between 0 and 1; a parameter of methods that weight the halves."""

    NEEDS_TEXT = False
    """Whether `fit` requires text or nouns."""

    NEEDS_NOUNS = False
    """Whether `fit` requires nouns."""

    @abstractmethod
    def plan(self) -> OuterLayer:
        """Check the parameters and return the plan that they describe. Raises ValueError naming the parameter and its value."""

    def noun_selection(self) -> NounSelection:
        """How nouns are selected, and counterparts made from them."""
        return DISTINCT

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        *,
        text: ArrayLike | None = None,
        nouns: ArrayLike | None = None,
        joint: ArrayLike | None = None,
        start: "Clusterer | None" = None,
        before: ArrayLike | None = None,
    ) -> Self:
        """Fit on image embeddings ``X`` (n_samples, d), floats of any precision.

        Texts are optional: either counterparts ``text`` (n_samples, dt), one for each sample, or ``nouns`` (n_nouns, dt), the vectors of a
        vocabulary from which some are selected (see `text.nouns`; independent of the seed). If the nouns are not in the space of ``X``,
        ``joint`` (n_samples, dt) are the embeddings of the images in the space of the nouns.

        A fit can continue another one: ``start`` is the fitted estimator, of the same class and parameters, and ``before`` (n_samples,) the
        previous cluster of each sample, -1 for new ones. Clusters keep their numbers, and the members are trained further if the method can do
        that. With ``before`` alone all members are trained from the beginning; then there may be more clusters than before.

        Raises ValueError naming the parameter and its value.
        """
        if text is not None and nouns is not None:
            raise ValueError("text and nouns: give only one of them.")
        if joint is not None and nouns is None:
            raise ValueError("joint: without nouns it has no use. Leave it out, or give nouns.")
        plan = self.plan()
        if plan.pixel_side:
            raise ValueError("pixels = True: fit gets embeddings, not images. Use gsec_core.methods.asd.pixels.ASDPixels, or a run.")
        if nouns is None and self.NEEDS_NOUNS:
            raise ValueError(f"nouns: {type(self).__name__} needs images and nouns. Give nouns.")
        if nouns is None and text is None and self.NEEDS_TEXT:
            raise ValueError(f"text, nouns: {type(self).__name__} needs images and texts. Give text or nouns.")
        images: NDArray[Any] = validate_data(self, X, dtype=_FLOATS)
        n = len(images)
        if n < max(2, self.n_clusters):
            raise ValueError(f"n_clusters = {self.n_clusters}: n_samples = {n} is too few. Give at least n_clusters samples, and at least two.")
        placed, texts = _beside("joint", joint, n), _beside("text", text, n)
        self.nouns_: NDArray[np.int64] | None = None
        if nouns is not None:
            self._select("X" if placed is None else "joint", images if placed is None else placed, nouns)
            texts = self._counterparts(images, placed)
        self.n_joint_features_in_, self.n_text_features_in_ = _width(placed), _width(texts)
        matrices = [images] if texts is None else [images, texts]
        continued = self._start(plan, start, before, n)
        with threads_of_torch(usable_cores()):  # torch respects CPU affinity, but not a CPU quota
            self.halves_: list[Half] = start.halves_ if start is not None and continued is not None and continued.members else plan.halves(matrices)
            features = plan.features(matrices, self.halves_, self.text_weight)
            features.nouns = None if nouns is None else self._noun_vectors
            neighbors = plan.neighbors(features)
            self.members_ = plan.wanted(plan.trained(features, neighbors, plan.blocks, start=continued.members if continued else ()))
            self.ensemble_, consensus, self.head_ = plan.align(features, neighbors, self.members_, start=continued)
        found = joined(list(self.ensemble_.assigned(consensus, 0, len(features))))
        self.labels_, self.confidence_, self.margin_, self.agreement_ = found.labels, found.confidence, found.margin, found.agreement
        self.member_labels_ = np.ascontiguousarray(found.member_labels.T)
        self.member_agreement_ = (self.member_labels_ == self.labels_).mean(1, dtype=np.float32)
        empty = self.n_clusters - len(np.unique(self.labels_))
        if empty:
            warnings.warn(f"n_clusters = {self.n_clusters}: {empty} of the clusters got no samples. Fewer clusters may fit these better.", stacklevel=2)
        return self

    def predict(self, X: ArrayLike, text: ArrayLike | None = None, *, joint: ArrayLike | None = None) -> NDArray[np.int32]:
        """The cluster of each row of ``X`` (n_samples, d), by `head_`. Give ``text`` or ``joint`` if and only if the estimator was fitted with it."""
        return np.concatenate([block.argmax(1).astype(np.int32) for block in self._posteriors(X, text, joint)])

    def predict_proba(self, X: ArrayLike, text: ArrayLike | None = None, *, joint: ArrayLike | None = None) -> NDArray[np.float32]:
        """Posteriors by `head_`, (n_samples, n_clusters); arguments as of `predict`."""
        return np.concatenate(list(self._posteriors(X, text, joint)))

    def _posteriors(self, X: ArrayLike, text: ArrayLike | None, joint: ArrayLike | None) -> Iterator[NDArray[np.float32]]:
        """Blocks of `predict_proba`: for many rows and clusters all of them would take far more memory than the labels."""
        check_is_fitted(self, "head_")
        images: NDArray[Any] = validate_data(self, X, dtype=_FLOATS, reset=False)
        placed, texts = _beside("joint", joint, len(images)), _beside("text", text, len(images))
        self._check_width("joint", placed, self.n_joint_features_in_)
        if self.nouns_ is not None:
            if texts is not None:
                raise ValueError("text: the estimator was fitted with nouns, which also give the texts of new rows. Leave it out.")
            texts = self._counterparts(images, placed)
        self._check_width("text", texts, self.n_text_features_in_)
        matrices, plan = [images] if texts is None else [images, texts], self.plan()
        features = plan.features(matrices, self.halves_, self.text_weight)
        blocks = self.ensemble_.blocks(0, len(features))
        return in_threads(lambda rows: head_posteriors(self.head_, features, rows, plan.device).cpu().numpy(), blocks, plan.device)

    def _start(self, plan: OuterLayer, start: "Clusterer | None", before: ArrayLike | None, n: int) -> Start | None:
        """The labels, and members with their permutations, that this fit continues; None if it continues nothing. Checks the arguments of `fit`."""
        if before is None:
            if start is not None:
                raise ValueError("start: give the earlier cluster of each sample as before.")
            return None
        given = check_array(before, ensure_2d=False, input_name="before")
        if given.shape != (n,) or given.min() < -1 or given.max() >= self.n_clusters or (given != np.rint(given)).any():
            raise ValueError(f"before: give {n} numbers of clusters below n_clusters = {self.n_clusters}, or -1.")
        had = given.astype(np.int32)
        if start is None or not plan.goes_on:
            return Start(had)
        check_is_fitted(start, "head_")
        if (type(start), start.n_clusters, len(start.members_)) != (type(self), self.n_clusters, plan.n_members):
            raise ValueError("start: it has another class, or another number of clusters or members. Give only before.")
        if (start.n_features_in_, start.n_text_features_in_) != (self.n_features_in_, self.n_text_features_in_):
            raise ValueError("start: it was fitted on another number of features of X or text. Give only before.")
        return Start(had, start.members_, start.ensemble_.permutations)

    def _select(self, name: str, images: NDArray[Any], nouns: ArrayLike) -> None:
        """Select and store nouns that represent ``images``, which must be in their space; ``name`` is the argument of `fit` that gave the images."""
        vectors = check_array(nouns, dtype=_FLOATS, input_name="nouns")
        if images.shape[1] != vectors.shape[1]:
            raise ValueError(f"nouns has {vectors.shape[1]} features and {name} has {images.shape[1]}: they must be in the same space.")
        if self.noun_selection().per_centre is None and len(vectors) > self.n_clusters:
            raise ValueError(f"nouns: {len(vectors)} are given, and n_clusters = {self.n_clusters}. Give one for each cluster.")
        self.nouns_ = select_nouns(images, vectors, self.n_clusters, self.noun_selection()).noun
        if len(self.nouns_) < self.n_clusters:
            raise ValueError(f"nouns: {len(self.nouns_)} of {len(vectors)} represent the images, fewer than n_clusters = {self.n_clusters}. Give more.")
        self._noun_vectors = vectors[self.nouns_]

    def _counterparts(self, images: NDArray[Any], joint: NDArray[Any] | None) -> NDArray[Any] | None:
        """Counterparts by the selected nouns; for a method that has none, the images in the space of the nouns if that is another one."""
        selection = self.noun_selection()
        if selection.tau is None:
            return joint
        return np.concatenate(list(noun_counterparts(images if joint is None else joint, self._noun_vectors, selection)))

    def _check_width(self, name: str, matrix: NDArray[Any] | None, fitted: int | None) -> None:
        width, called = _width(matrix), type(self).__name__
        if width == fitted:
            return
        if width is None:
            raise ValueError(f"{name}: {called} was fitted with {name} of {fitted} features. Give it for new samples, too.")
        if fitted is None:
            raise ValueError(f"{name}: {called} was fitted without it. Leave it out.")
        raise ValueError(f"{name} has {width} features, and {called} was fitted with {fitted}.")

    def member_count(self, default: int, methods: int = 1) -> int:
        """Number of outer members for each of ``methods`` methods: `n_members`, or else ``default``, but fewer with many clusters.

        Raises ValueError if aligning so many would take too much memory.
        """
        n_members = self.n_members or default_members(default, self.n_clusters, methods)
        most = math.isqrt(MOST_GRAM_BYTES // 8) // methods
        if self.n_clusters > most:  # fewer members would not help
            raise ValueError(f"n_clusters = {self.n_clusters}: members can be aligned in at most {most} clusters. Ask for fewer.")
        gram_bytes = 8 * (methods * n_members * self.n_clusters) ** 2
        if gram_bytes > MOST_GRAM_BYTES:
            raise ValueError(f"n_members = {n_members}: aligning them in {self.n_clusters} clusters would take {gram_bytes / 2**30:.0f} GiB. Ask for fewer.")
        return n_members

    def shared(self, default_members: int) -> dict[str, Any]:
        """Arguments that the plans of most methods share. With a single member, i.e. the method as published, there is no smoothing."""
        n_members = self.member_count(default_members)
        return {
            "n_clusters": self.n_clusters,
            "n_members": n_members,
            "rows_per_neighbor": ROWS_PER_NEIGHBOR,
            "smoothing": SMOOTHING if n_members > 1 else 0,
            "random_state": self.random_state,
            "device": self.resolved_device(),
        }


def _beside(name: str, given: ArrayLike | None, n: int) -> NDArray[Any] | None:
    """The argument ``name``, checked: a matrix with one row for each of ``n`` samples, or None."""
    if given is None:
        return None
    matrix: NDArray[Any] = check_array(given, dtype=_FLOATS, input_name=name)
    if len(matrix) != n:
        raise ValueError(f"{name} has {len(matrix)} rows and X has {n}: give one for each sample.")
    return matrix


def _width(matrix: NDArray[Any] | None) -> int | None:
    return None if matrix is None else matrix.shape[1]
