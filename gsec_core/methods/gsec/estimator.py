"""GSEC as one estimator: features, neighbours, members, consensus."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from gsec_core.clustering.ensemble import Ensemble, Head, head_posteriors, joined
from gsec_core.clustering.features import Features, Half, principal, project, standardising
from gsec_core.clustering.neighbors import NeighborIndex
from gsec_core.clustering.smoothing import Allocate, Posteriors
from gsec_core.devices import keep_freed_memory, resolve, within_usable_cores
from gsec_core.errors import Refused
from gsec_core.methods.gsec.bilevel import Member, Neighbors, Training, train_block


@dataclass(frozen=True)
class Preset:
    """A design of the clustering."""

    components: tuple[int, int] | None
    """Principal axes of the image half and of the text half; None: dimensions as they are, standardised. More clusters
    than image axes have more of both, up to twice as many."""
    weighs_halves: bool
    """Whether the text half counts by `text_weight` or just as the image half."""
    n_neighbors: int
    """Of a row in each half."""
    rows_per_neighbor: int
    """Few rows have fewer neighbours: one for so many, at least one."""
    n_members: int
    """Outer members."""
    members_times_clusters: int
    """Of many clusters there are fewer members: so many columns together."""
    smoothing: int
    """Rounds in which posteriors are averaged with those of neighbours."""
    training: Training


PRESETS = {
    "default": Preset(
        components=(128, 64),
        weighs_halves=True,
        n_neighbors=20,
        rows_per_neighbor=40,
        n_members=20,
        members_times_clusters=10_000,
        smoothing=3,
        training=Training(
            block_size=10,
            from_kmeans=True,
            max_steps=100,
            tol=0.0,
            batch_rows=512,
            batch_rows_per_cluster=4,
            batch_rows_at_most=8192,
            inner_steps=4,
            inner_lr=1e-2,
            outer_lr=1e-2,
            last_lr=0.0,
            inner_weight_decay=1e-4,
            outer_weight_decay=0.0,
            max_norm=math.inf,
            heads=0.5,
            balance=0.0,
            pairs=1.0,
            beta=0.6,
            distillation=0.0,
            temperature=1.0,
            cosine=0.0,
            entropy=0.0,
        ),
    ),
    "published": Preset(
        components=None,
        weighs_halves=False,
        n_neighbors=3,
        rows_per_neighbor=1,
        n_members=1,
        members_times_clusters=10_000,
        smoothing=0,
        training=Training(
            block_size=1,
            from_kmeans=False,
            max_steps=6000,
            tol=1e-3,
            batch_rows=1000,
            batch_rows_per_cluster=0,
            batch_rows_at_most=1000,
            inner_steps=10,
            inner_lr=1e-3,
            outer_lr=1e-2,
            last_lr=1e-7,
            inner_weight_decay=1e-4,
            outer_weight_decay=1e-4,
            max_norm=1.0,
            heads=1.0,
            balance=50.0,
            pairs=0.0,
            beta=1.0,
            distillation=0.1,
            temperature=2.0,
            cosine=0.1,
            entropy=-0.01,
        ),
    ),
}
"""``published``: the settings of the paper's code, the same for all data sets. ``default``: what beats k-means on the
development sets of docs/measured.md; its values were chosen on them, by their labels, and are the same for all."""

MOST_COLUMNS = 4096
"""Members times clusters that are trained in one computation."""

MOST_GRAM_BYTES = 2**33
"""Of the products of all members' posteriors: 32,768 members times clusters."""

_FLOATS = [np.float32, np.float16]
"""What is taken as it is; other numbers become the first."""


@dataclass(frozen=True)
class Plan:
    """What GSEC does, step by step, with parameters that are checked: `GSEC.fit` takes the steps in a row, the pipeline each in a stage."""

    preset: Preset
    """As the parameters change it."""
    n_clusters: int
    ensemble_size: int
    random_state: int
    device: str

    @property
    def n_blocks(self) -> int:
        """Blocks of members, the units of training."""
        return -(-self.preset.n_members // self.preset.training.block_size)

    def halves(self, matrices: Sequence[NDArray[Any]]) -> list[Half]:
        """What puts the image half and, where there is one, the text half, (n, d) each, on its scale."""
        if self.preset.components is None:
            return [standardising(matrix) for matrix in matrices]
        growth = min(2.0, max(1.0, self.n_clusters / self.preset.components[0]))
        return [principal(matrix, round(growth * axes)) for matrix, axes in zip(matrices, self.preset.components, strict=False)]

    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> Features:
        """The halves of ``matrices``, (n, d) each, as training sees them."""
        found = []
        for matrix, half in zip(matrices, halves, strict=True):
            rows = allocate((len(matrix), len(half.scale)), np.float32)
            start = 0
            for block in project(matrix, half):
                rows[start : start + len(block)] = block
                start += len(block)
            found.append(rows)
        if not self.preset.weighs_halves:
            return Features(found, [1 / len(found)] * len(found), [1.0] * len(found))
        weights = [1.0] if len(found) == 1 else [1 - text_weight, text_weight]
        return Features(found, weights, [math.sqrt(weight) for weight in weights])

    def neighbor_count(self, n: int) -> int:
        """Neighbours of a row of ``n`` in each half."""
        return max(1, min(self.preset.n_neighbors, n // self.preset.rows_per_neighbor, n - 1))

    def neighbor_index(self, features: Features, half: int) -> NeighborIndex:
        """Of all rows in one half, by cosine."""
        return NeighborIndex(lambda rows: features.half(half, rows).numpy(), len(features), n_threads=torch.get_num_threads())

    def neighbors(self, features: Features) -> Neighbors:
        """Of every row in each half."""
        n = len(features)
        found = [self.neighbor_index(features, half).search(0, n, self.neighbor_count(n)) for half in range(len(features.halves))]
        return Neighbors(found[0], found[1] if len(found) > 1 else None)

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        """All members of a block, wanted or not, as its width changes none of them; ``progress`` is told of every outer step. See `bilevel.train_block`."""
        if self.device == "cpu":
            keep_freed_memory()
        return train_block(
            features,
            neighbors,
            self.preset.training,
            n_clusters=self.n_clusters,
            ensemble_size=self.ensemble_size,
            random_state=self.random_state,
            block=block,
            device=self.device,
            progress=progress,
        )

    def align(self, features: Features, neighbors: Neighbors, members: Sequence[Member], allocate: Allocate = np.empty) -> tuple[Ensemble, Posteriors, Head]:
        """The members with one label space, the consensus of all rows, and the head that stands for it; cluster 0 is the largest."""
        ensemble = Ensemble.aligned(members, features, random_state=self.random_state, device=self.device)
        consensus = self.consensus(features, neighbors, ensemble, allocate)
        ensemble = ensemble.by_size(consensus).calibrated(features, consensus, random_state=self.random_state, device=self.device)
        rows = self.preset.training.batch(len(features), self.n_clusters)
        return ensemble, consensus, ensemble.head(features, consensus, batch_rows=rows, random_state=self.random_state, device=self.device)

    def consensus(self, features: Features, neighbors: Neighbors, ensemble: Ensemble, allocate: Allocate = np.empty) -> Posteriors:
        """See `Ensemble.consensus`."""
        return ensemble.consensus(features, neighbors, self.preset.smoothing, self.device, allocate)


class GSEC(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Clusters images by their embeddings and, where given, the text counterparts of the images.

    Outer members, each the outcome of a bilevel training with BatchEnsemble heads inside, are aligned and averaged, and
    the average is smoothed over neighbours. Li et al. 2026, https://arxiv.org/abs/2605.12961; see `bilevel`,
    `batch_ensemble`, `alignment` and `smoothing`. No label takes part.

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
    tol : float or None
        A member stops when at most this share of labels changed over its last 10 steps; 0 = it never stops early; None
        = the preset's.
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
    confidence_ : float32 (n_samples,), the label's mean aligned posterior, smoothed and calibrated: about the share of members that agree
    margin_ : float32 (n_samples,), how much that is above the second largest
    agreement_ : float32 (n_samples,), share of members that agree with the label
    member_agreement_ : float32 (n_members,), share of samples on which a member agrees with the labels
    members_ : list of `bilevel.Member`
    ensemble_ : `ensemble.Ensemble`
    head_ : `ensemble.Head`, what `predict` uses, as new rows have no neighbours to be smoothed over
    halves_ : list of `features.Half`, what puts X and text on their scale
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
        tol: float | None = None,
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

    @within_usable_cores()
    def fit(self, X: ArrayLike, y: object = None, *, text: ArrayLike | None = None) -> "GSEC":
        """Fit on image embeddings ``X`` (n_samples, d) and their counterparts ``text`` (n_samples, dt), floats of any precision.

        Raises ValueError naming the parameter and its value.
        """
        matrices = self._validated(X, text, reset=True)
        plan = self.plan()
        self.halves_ = plan.halves(matrices)
        features = plan.features(matrices, self.halves_, self.text_weight)
        neighbors = plan.neighbors(features)
        self.members_ = [member for block in range(plan.n_blocks) for member in plan.train(features, neighbors, block)][: plan.preset.n_members]
        self.ensemble_, consensus, self.head_ = plan.align(features, neighbors, self.members_)
        found = joined(list(self.ensemble_.assigned(features, consensus, plan.device, 0, len(features))))
        self.labels_, self.confidence_, self.margin_, self.agreement_ = found.labels, found.confidence, found.margin, found.agreement
        self.member_labels_ = np.ascontiguousarray(found.member_labels.T)
        self.member_agreement_ = (self.member_labels_ == self.labels_).mean(1, dtype=np.float32)
        return self

    def predict(self, X: ArrayLike, text: ArrayLike | None = None) -> NDArray[np.int32]:
        """The cluster of each row of ``X`` (n_samples, d), by `head_`; with ``text`` (n_samples, dt) if and only if it was fitted with it."""
        labels: NDArray[np.int32] = self.predict_proba(X, text).argmax(1).astype(np.int32)
        return labels

    def predict_proba(self, X: ArrayLike, text: ArrayLike | None = None) -> NDArray[np.float32]:
        """Posteriors by `head_`, (n_samples, n_clusters); arguments as of `predict`."""
        check_is_fitted(self)
        matrices, plan = self._validated(X, text, reset=False), self.plan()
        features = plan.features(matrices, self.halves_, self.text_weight)
        blocks = self.ensemble_.blocks(0, len(features))
        return np.concatenate([head_posteriors(self.head_, features, rows, plan.device) for rows in blocks])

    def plan(self) -> "Plan":
        """What the parameters come to. Raises ValueError naming the parameter and its value."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset = {self.preset!r}: there are {', '.join(PRESETS)}.")
        if not 0 <= self.text_weight <= 1:
            raise ValueError(f"text_weight = {self.text_weight}: it must be between 0 and 1.")
        if self.tol is not None and not 0 <= self.tol < 1:
            raise ValueError(f"tol = {self.tol}: it must be at least 0 and below 1.")
        for name in ("n_clusters", "n_members", "ensemble_size", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: it must be at least 1.")
        preset = PRESETS[self.preset]
        n_members = self.n_members or min(preset.n_members, max(1, preset.members_times_clusters // self.n_clusters))
        gram_bytes = 8 * (n_members * self.n_clusters) ** 2
        if gram_bytes > MOST_GRAM_BYTES:
            raise ValueError(f"n_members = {n_members}: aligning them in {self.n_clusters} clusters would take {gram_bytes / 2**30:.0f} GiB. Ask for fewer.")
        try:
            device = resolve(self.device, "device")
        except Refused as error:
            raise ValueError(str(error)) from None
        training = replace(
            preset.training,
            block_size=min(preset.training.block_size, max(1, MOST_COLUMNS // self.n_clusters)),
            max_steps=self.max_steps or preset.training.max_steps,
            tol=preset.training.tol if self.tol is None else self.tol,
        )
        return Plan(
            preset=replace(preset, n_members=n_members, training=training),
            n_clusters=self.n_clusters,
            ensemble_size=self.ensemble_size,
            random_state=self.random_state,
            device=device,
        )

    def _validated(self, X: ArrayLike, text: ArrayLike | None, *, reset: bool) -> list[NDArray[Any]]:
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
        return [images] if texts is None else [images, texts]
