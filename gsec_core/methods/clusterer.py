"""What the estimators of all methods share: scikit-learn's conventions around a `Plan`."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from gsec_core.clustering.ensemble import head_posteriors, joined
from gsec_core.clustering.features import Half
from gsec_core.devices import in_threads, resolve, threads_of_torch, usable_cores
from gsec_core.errors import Refused
from gsec_core.methods.plan import OuterLayer, Start
from gsec_core.text import DISTINCT, NounSelection
from gsec_core.text.nouns import noun_counterparts, select_nouns

_FLOATS = [np.float32, np.float16]
"""What is taken as it is; other numbers become the first."""

ROWS_PER_NEIGHBOR = 40
"""Few rows have fewer neighbours: one for so many."""

SMOOTHING = 3
"""Rounds over neighbours of the consensus."""

MEMBERS_TIMES_CLUSTERS = 10_000
"""Of many clusters there are fewer members: so many columns together, unless more are asked for."""

MOST_GRAM_BYTES = 2**33
"""Of the products of all members' posteriors: 32,768 members times clusters."""


class Estimator(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Parameters that are checked by name."""

    device: str

    def check_positive(self, *names: str) -> None:
        """Raises ValueError for a parameter of ``names`` that is given and below 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: it must be at least 1.")

    def resolved_device(self) -> str:
        """See `devices.resolve`. Raises ValueError if it is not there."""
        try:
            return resolve(self.device, "device")
        except Refused as error:
            raise ValueError(str(error)) from None


class Clusterer(Estimator):
    """An outer ensemble: members that a method trains, aligned, averaged and smoothed over neighbours. No label takes part.

    Attributes
    ----------
    labels_ : int32 (n_samples,), cluster 0 is the largest
    member_labels_ : int32 (n_members, n_samples), aligned
    confidence_ : float32 (n_samples,), the label's mean aligned posterior, smoothed and calibrated: about the share of members that agree
    margin_ : float32 (n_samples,), mean difference to the second largest posterior
    agreement_ : float32 (n_samples,), share of members that agree with the label
    member_agreement_ : float32 (n_members,), share of samples on which a member agrees with the labels
    members_ : list of `members.Member`
    ensemble_ : `ensemble.Ensemble`
    head_ : `ensemble.Head`, what `predict` uses, as new rows have no neighbours to be smoothed over
    halves_ : list of `features.Half`, what puts X and text on their scale
    nouns_ : int64 (n_selected,), the nouns that stand for texts; None without nouns
    n_text_features_in_ : int or None
    """

    n_clusters: int
    n_members: int | None
    random_state: int

    text_weight: float = 0.5
    """Weight of the text half against the image half; a parameter where the method weighs them."""

    NEEDS_TEXT = False
    """Whether there are no clusters without texts or nouns."""

    NEEDS_NOUNS = False
    """Whether there are none without nouns."""

    @abstractmethod
    def plan(self) -> OuterLayer:
        """What the parameters come to. Raises ValueError naming the parameter and its value."""

    def noun_selection(self) -> NounSelection:
        """Which nouns stand for the images, and how."""
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

        Their texts are counterparts ``text`` (n_samples, dt), one a sample; or ``nouns`` (n_nouns, dt), of a vocabulary, of which some are
        selected, as `text.nouns` says and whatever the seed; or none. If nouns are not in the space of ``X``, ``joint`` (n_samples, dt) are the
        images in theirs.

        A fit can continue another: ``start`` is that one, of the same class and parameters, and ``before`` (n_samples,) the cluster that each
        sample had, -1 of new ones. Clusters are called as they were; their members are trained further, if the method can. With
        ``before`` alone all members are trained from the beginning; there may then be more clusters than before.

        Raises ValueError naming the parameter and its value.
        """
        if text is not None and nouns is not None:
            raise ValueError("text and nouns: give only one of them.")
        plan = self.plan()
        self.nouns_: NDArray[np.int64] | None = None
        if nouns is not None:
            joint = self._select(X, nouns, joint)
            text = self._counterparts(X, joint)
        elif self.NEEDS_NOUNS:
            raise ValueError(f"nouns: {type(self).__name__} needs images and nouns. Give nouns.")
        matrices = self._validated(X, text, reset=True)
        continued = self._start(plan, start, before, len(matrices[0]))
        with threads_of_torch(usable_cores()):  # torch knows of affinity, but not of a quota
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
        return self

    def predict(self, X: ArrayLike, text: ArrayLike | None = None, *, joint: ArrayLike | None = None) -> NDArray[np.int32]:
        """The cluster of each row of ``X`` (n_samples, d), by `head_`; with ``text`` or ``joint`` if and only if it was fitted with them."""
        labels: NDArray[np.int32] = self.predict_proba(X, text, joint=joint).argmax(1).astype(np.int32)
        return labels

    def predict_proba(self, X: ArrayLike, text: ArrayLike | None = None, *, joint: ArrayLike | None = None) -> NDArray[np.float32]:
        """Posteriors by `head_`, (n_samples, n_clusters); arguments as of `predict`."""
        check_is_fitted(self)
        if self.nouns_ is not None:
            if text is not None:
                raise ValueError("text: the estimator was fitted with nouns, which also give the texts of new rows. Leave it out.")
            text = self._counterparts(X, X if joint is None else joint)
        matrices, plan = self._validated(X, text, reset=False), self.plan()
        features = plan.features(matrices, self.halves_, self.text_weight)
        blocks = self.ensemble_.blocks(0, len(features))
        found = in_threads(lambda rows: head_posteriors(self.head_, features, rows, plan.device).cpu().numpy(), blocks, plan.device)
        return np.concatenate(list(found))

    def _start(self, plan: OuterLayer, start: "Clusterer | None", before: ArrayLike | None, n: int) -> Start | None:
        """What this fit continues."""
        if before is None:
            if start is not None:
                raise ValueError("start: give the earlier cluster of each sample as before.")
            return None
        had = np.asarray(before, np.int32)
        if had.shape != (n,) or had.min() < -1 or had.max() >= self.n_clusters:
            raise ValueError(f"before: give {n} numbers of clusters below n_clusters = {self.n_clusters}, or -1.")
        if start is None or not plan.goes_on:
            return Start(had, (), np.empty((0, self.n_clusters), np.int32))
        check_is_fitted(start)
        if (type(start), start.n_clusters, len(start.members_)) != (type(self), self.n_clusters, plan.n_members):
            raise ValueError("start: it has another class, or another number of clusters or members. Give only before.")
        return Start(had, start.members_, start.ensemble_.permutations)

    def _select(self, X: ArrayLike, nouns: ArrayLike, joint: ArrayLike | None) -> ArrayLike:
        """Selects nouns; the images in their space."""
        name, images = ("X", X) if joint is None else ("joint", joint)
        matrix, vectors = (check_array(given, dtype=_FLOATS, input_name=called) for given, called in ((images, name), (nouns, "nouns")))
        if matrix.shape[1] != vectors.shape[1]:
            raise ValueError(f"nouns has {vectors.shape[1]} features and {name} has {matrix.shape[1]}: they must be in the same space.")
        self._check_enough(len(matrix))
        if self.noun_selection().per_centre is None and len(vectors) > self.n_clusters:
            raise ValueError(f"nouns: {len(vectors)} are given, and n_clusters = {self.n_clusters}. Give one for each cluster.")
        self.nouns_ = select_nouns(matrix, vectors, self.n_clusters, self.noun_selection()).noun
        if len(self.nouns_) < self.n_clusters:
            raise ValueError(f"nouns: {len(self.nouns_)} of {len(vectors)} represent the images, fewer than n_clusters = {self.n_clusters}. Give more.")
        self._noun_vectors = vectors[self.nouns_]
        return images

    def _counterparts(self, X: ArrayLike, joint: ArrayLike) -> ArrayLike | None:
        """By the nouns that were selected; None if they are the images themselves."""
        selection = self.noun_selection()
        if selection.tau is None:
            return None if joint is X else joint
        return np.concatenate(list(noun_counterparts(np.asarray(joint), self._noun_vectors, selection)))

    def member_count(self, default: int, methods: int = 1) -> int:
        """Outer members of each of ``methods``: as many as are asked for, else ``default``, and of many clusters fewer.

        Raises ValueError if so many cannot be aligned.
        """
        n_members = self.n_members or min(default, max(1, MEMBERS_TIMES_CLUSTERS // (methods * self.n_clusters)))
        gram_bytes = 8 * (methods * n_members * self.n_clusters) ** 2
        if gram_bytes > MOST_GRAM_BYTES:
            raise ValueError(f"n_members = {n_members}: aligning them in {self.n_clusters} clusters would take {gram_bytes / 2**30:.0f} GiB. Ask for fewer.")
        return n_members

    def shared(self, default_members: int) -> dict[str, Any]:
        """What the plans of most methods have in common: of a single member, which is a method as published, nothing is smoothed."""
        n_members = self.member_count(default_members)
        return {
            "n_clusters": self.n_clusters,
            "n_members": n_members,
            "rows_per_neighbor": ROWS_PER_NEIGHBOR,
            "smoothing": SMOOTHING if n_members > 1 else 0,
            "random_state": self.random_state,
            "device": self.resolved_device(),
        }

    def _check_enough(self, n: int) -> None:
        if n < max(2, self.n_clusters):
            raise ValueError(f"n_clusters = {self.n_clusters}: n_samples = {n}, and there must be at least as many, and two.")

    def _validated(self, X: ArrayLike, text: ArrayLike | None, *, reset: bool) -> Sequence[NDArray[Any]]:
        images: NDArray[Any] = validate_data(self, X, dtype=_FLOATS, reset=reset)
        texts: NDArray[Any] | None = None if text is None else check_array(text, dtype=_FLOATS, input_name="text")
        width = None if texts is None else texts.shape[1]
        if texts is None and self.NEEDS_TEXT:
            raise ValueError(f"text, nouns: {type(self).__name__} needs images and texts. Give text or nouns.")
        if texts is not None and len(texts) != len(images):
            raise ValueError(f"text has {len(texts)} rows and X has {len(images)}: give a counterpart for each sample.")
        if reset:
            self._check_enough(len(images))
            self.n_text_features_in_ = width
        elif width != self.n_text_features_in_:
            raise ValueError(f"text has {width} features, and {type(self).__name__} was fitted with {self.n_text_features_in_}.")
        return [images] if texts is None else [images, texts]
