"""GSEC as one estimator: features, neighbours, members, consensus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from gsec_core.clustering.bilevel import Member, Neighbors, Training, train_block
from gsec_core.clustering.ensemble import Ensemble, joined
from gsec_core.clustering.features import Features, Half, fit_half
from gsec_core.clustering.neighbors import N_NEIGHBORS, NeighborIndex, neighbor_count
from gsec_core.devices import resolve
from gsec_core.errors import Refused

PRESETS = {
    "default": Training(n_members=4, block_size=4, max_steps=300, gamma=10.0, weighs_halves=True),
    "published": Training(),
}
"""``published``: the settings of the paper's code, the same for all data sets. ``default`` is provisional: fewer steps,
a weaker balance term and an ensemble; its values were chosen on development sets."""

MOST_GRAM_BYTES = 2**33
"""Of the products of all members' posteriors: 32,768 members times clusters."""

_FLOATS = [np.float32, np.float16]
"""What is taken as it is; other numbers become the first."""


def half_index(features: Features, number: int, *, n_threads: int = 0) -> NeighborIndex:
    """The neighbours of all rows in one half, by the cosine of its standardised values; ``n_threads`` 0 = one a core."""
    return NeighborIndex(lambda rows: features.half(number, rows).numpy(), len(features), n_threads=n_threads)


@dataclass(frozen=True)
class Plan:
    """What GSEC does, step by step, with parameters that are checked: `GSEC.fit` takes the steps in a row, the pipeline each as a stage."""

    n_clusters: int
    training: Training
    n_members: int
    ensemble_size: int
    tol: float
    text_weight: float
    random_state: int
    device: str

    @property
    def n_blocks(self) -> int:
        """Blocks of members, the units of training."""
        return -(-self.n_members // self.training.block_size)

    def features(self, X: NDArray[Any], text: NDArray[Any] | None, halves: Sequence[Half]) -> Features:
        """``X`` (n, d) and ``text`` (n, dt) or None, to be standardised by ``halves``."""
        return Features(X, text, halves, self.text_weight)

    def neighbors(self, features: Features) -> Neighbors:
        """Of every row in each half."""
        n = len(features)
        k = neighbor_count(n, N_NEIGHBORS)
        image, *text = (half_index(features, number, n_threads=torch.get_num_threads()).search(0, n, k) for number in range(len(features.widths)))
        return Neighbors(image, text[0] if text else None)

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        """All members of a block, wanted or not, as its width changes none of them; ``progress`` is told of every outer step. See `bilevel.train_block`."""
        return train_block(
            features,
            neighbors,
            self.training,
            n_clusters=self.n_clusters,
            ensemble_size=self.ensemble_size,
            tol=self.tol,
            random_state=self.random_state,
            block=block,
            device=self.device,
            progress=progress,
        )

    def align(self, features: Features, members: Sequence[Member]) -> tuple[Ensemble, NDArray[np.float32]]:
        """See `Ensemble.aligned`."""
        return Ensemble.aligned(members, features, random_state=self.random_state, device=self.device)


class GSEC(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Clusters images by their embeddings and, where given, the text counterparts of the images.

    Outer members, each the outcome of a bilevel training with BatchEnsemble heads inside, are aligned and averaged.
    Li et al. 2026, https://arxiv.org/abs/2605.12961; see `bilevel`, `batch_ensemble` and `alignment`. No label takes part.

    Parameters
    ----------
    n_clusters : int
    preset : "default" or "published"
        Settings of the training, `PRESETS`.
    n_members : int or None
        Outer members; None = the preset's.
    ensemble_size : int
        BatchEnsemble members of each inner head.
    max_steps : int or None
        Outer steps, over which the learning rate decays; None = the preset's.
    tol : float
        A member stops when at most this share of labels changed over its last 10 steps; 0 = it never stops early.
    text_weight : float
        Weight of the text half against the image half. Without text, and by ``published``, ignored.
    random_state : int
        Seed of starts and mini-batches. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        ``auto`` (cuda if there), ``cpu``, ``cuda``, ``cuda:N``.

    Attributes
    ----------
    labels_ : int32 (n_samples,), cluster 0 is the largest
    member_labels_ : int32 (n_members, n_samples), aligned
    confidence_ : float32 (n_samples,), the label's mean aligned posterior
    agreement_ : float32 (n_samples,), share of members that agree with the label
    member_agreement_ : float32 (n_members,), share of samples on which a member agrees with the labels
    members_ : list of `bilevel.Member`
    ensemble_ : `ensemble.Ensemble`
    halves_ : list of `features.Half`, what standardises X and text
    n_text_features_in_ : int or None
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        preset: str = "default",
        n_members: int | None = None,
        ensemble_size: int = 32,
        max_steps: int | None = None,
        tol: float = 1e-3,
        text_weight: float = 0.5,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.preset = preset
        self.n_members = n_members
        self.ensemble_size = ensemble_size
        self.max_steps = max_steps
        self.tol = tol
        self.text_weight = text_weight
        self.random_state = random_state
        self.device = device

    def fit(self, X: ArrayLike, y: object = None, *, text: ArrayLike | None = None) -> "GSEC":
        """Fit on image embeddings ``X`` (n_samples, d) and their counterparts ``text`` (n_samples, dt), floats of any precision.

        Raises ValueError naming the parameter and its value.
        """
        images, texts = self._validated(X, text, reset=True)
        plan = self.plan()
        self.halves_ = [fit_half(matrix) for matrix in (images, texts) if matrix is not None]
        features = plan.features(images, texts, self.halves_)
        neighbors = plan.neighbors(features)
        self.members_ = [member for block in range(plan.n_blocks) for member in plan.train(features, neighbors, block)][: plan.n_members]
        self.ensemble_, self.member_agreement_ = plan.align(features, self.members_)
        found = joined(list(self.ensemble_.assign_all(features, plan.device)))
        self.labels_, self.confidence_, self.agreement_ = found.labels, found.confidence, found.agreement
        self.member_labels_ = np.ascontiguousarray(found.member_labels.T)
        return self

    def predict(self, X: ArrayLike, text: ArrayLike | None = None) -> NDArray[np.int32]:
        """The cluster of each row of ``X`` (n_samples, d); with ``text`` (n_samples, dt) if and only if it was fitted with it."""
        features, plan = self._features(X, text)
        return np.concatenate([found.labels for found in self.ensemble_.assign_all(features, plan.device)])

    def predict_proba(self, X: ArrayLike, text: ArrayLike | None = None) -> NDArray[np.float32]:
        """Mean aligned posteriors, (n_samples, n_clusters); arguments as of `predict`."""
        features, plan = self._features(X, text)
        step = self.ensemble_.block_rows
        return np.concatenate([self.ensemble_.probabilities(features, slice(start, start + step), plan.device) for start in range(0, len(features), step)])

    def _features(self, X: ArrayLike, text: ArrayLike | None) -> tuple[Features, "Plan"]:
        """New rows, validated."""
        check_is_fitted(self)
        images, texts = self._validated(X, text, reset=False)
        plan = self.plan()
        return plan.features(images, texts, self.halves_), plan

    def plan(self) -> "Plan":
        """What the parameters come to. Raises ValueError naming the parameter and its value."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset = {self.preset!r}: there are {', '.join(PRESETS)}.")
        if not 0 <= self.text_weight <= 1:
            raise ValueError(f"text_weight = {self.text_weight}: it must be between 0 and 1.")
        if not 0 <= self.tol < 1:
            raise ValueError(f"tol = {self.tol}: it must be at least 0 and below 1.")
        training = PRESETS[self.preset]
        n_members = training.n_members if self.n_members is None else self.n_members
        max_steps = training.max_steps if self.max_steps is None else self.max_steps
        for name, value in (("n_clusters", self.n_clusters), ("n_members", n_members), ("ensemble_size", self.ensemble_size), ("max_steps", max_steps)):
            if value < 1:
                raise ValueError(f"{name} = {value}: it must be at least 1.")
        gram_bytes = 8 * (n_members * self.n_clusters) ** 2
        if gram_bytes > MOST_GRAM_BYTES:
            raise ValueError(f"n_members = {n_members}: aligning them in {self.n_clusters} clusters would take {gram_bytes / 2**30:.0f} GiB. Ask for fewer.")
        try:
            device = resolve(self.device, "device")
        except Refused as error:
            raise ValueError(str(error)) from None
        return Plan(
            n_clusters=self.n_clusters,
            training=replace(training, max_steps=max_steps),
            n_members=n_members,
            ensemble_size=self.ensemble_size,
            tol=self.tol,
            text_weight=self.text_weight if training.weighs_halves else 0.5,
            random_state=self.random_state,
            device=device,
        )

    def _validated(self, X: ArrayLike, text: ArrayLike | None, *, reset: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
        images: NDArray[Any] = validate_data(self, X, dtype=_FLOATS, reset=reset)
        texts: NDArray[Any] | None = None if text is None else check_array(text, dtype=_FLOATS, input_name="text")
        width = None if texts is None else texts.shape[1]
        if texts is not None and len(texts) != len(images):
            raise ValueError(f"text has {len(texts)} rows and X has {len(images)}: give each sample its counterpart.")
        if reset:
            if len(images) < max(2, self.n_clusters):
                raise ValueError(f"n_clusters = {self.n_clusters}: n_samples = {len(images)}, and there must be at least as many, and two.")
            self.n_text_features_in_ = width
        elif width != self.n_text_features_in_:
            raise ValueError(f"text has {width} features, and GSEC was fitted with {self.n_text_features_in_}.")
        return images, texts
