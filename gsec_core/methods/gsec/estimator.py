"""GSEC as one estimator: features, neighbours, members, consensus."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.features import Features, Half, principal, project, standardising
from gsec_core.clustering.kmeans import MANY_CLUSTERS, row_blocks
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.smoothing import Allocate
from gsec_core.devices import keep_freed_memory
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.gsec import N_MEMBERS
from gsec_core.methods.gsec.bilevel import FURTHER_STEPS, Training, train_block
from gsec_core.methods.plan import LinearMembers, Plan


@dataclass(frozen=True)
class Preset:
    """Settings of one design of GSEC."""

    components: tuple[int, int] | None
    """Numbers of principal axes of the image half and of the text half; None: original dimensions, standardised. If there
    are more clusters than image axes, both numbers grow in proportion, up to twice as many."""
    weighs_halves: bool
    """Whether the text half has weight `text_weight`, or else the same weight as the image half."""
    n_neighbors: int
    """Number of neighbours of a row in each half."""
    rows_per_neighbor: int
    """Least number of rows per neighbour: with few rows there are fewer neighbours, but at least one."""
    cluster_rows_per_neighbor: int
    """The same for the mean number of rows of a cluster: more neighbours than that are mostly of other clusters. 0: no limit."""
    n_members: int
    """Number of outer members."""
    smoothing: int
    """Number of rounds in which posteriors are averaged with those of neighbours."""
    training: Training


PRESETS = {
    "default": Preset(
        components=(128, 64),
        weighs_halves=True,
        n_neighbors=20,
        rows_per_neighbor=40,
        cluster_rows_per_neighbor=4,
        n_members=N_MEMBERS["default"],
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
        cluster_rows_per_neighbor=0,
        n_members=N_MEMBERS["published"],
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
"""``published``: the settings of the paper's code, the same for all data sets. ``default``: settings that beat k-means on
the development sets of docs/measured/quality.md; the values were chosen by the labels of these sets, and are the same for all."""

STEPS_OF_MANY, INNER_STEPS_OF_MANY, ROWS_PER_CLUSTER_OF_MANY = 25, 2, 2
"""With more than `MANY_CLUSTERS` clusters the default training is shorter: the number of outer steps falls in proportion to 1 / clusters, down to the
first value, with the other two as inner steps and rows per cluster in a mini-batch. A step costs the square of the clusters, and members that
start from k-means gain nothing from longer training."""

MOST_COLUMNS, MOST_COLUMNS_OF_MANY = 4096, 2048
"""Limit of members times clusters that are trained together in one computation, and the limit for more than `MANY_CLUSTERS` clusters: there one
member is a large computation already, and smaller blocks keep all threads busy."""


@dataclass(frozen=True, kw_only=True)
class GSECPlan(LinearMembers, Plan):
    """See `Plan`."""

    preset: Preset
    """The preset, as changed by the parameters."""
    ensemble_size: int

    @property
    def block_size(self) -> int:
        return self.preset.training.block_size

    @property
    def abreast(self) -> int:
        return -(-self.preset.n_members // self.preset.training.block_size)

    def steps(self, n: int) -> int:
        return self.preset.training.max_steps

    @property
    def goes_on(self) -> bool:
        return True

    def total_steps(self, n: int, blocks: Sequence[int], further: bool = False) -> int:
        return (FURTHER_STEPS if further else self.steps(n)) * len(blocks)

    def batch(self, n: int) -> int:
        return self.preset.training.batch(n, self.n_clusters)

    def halves(self, matrices: Sequence[NDArray[Any]]) -> list[Half]:
        if self.preset.components is None:
            return [standardising(matrix) for matrix in matrices]
        return [principal(matrix, round(self._growth * axes)) for matrix, axes in zip(matrices, self.preset.components, strict=False)]

    @property
    def _growth(self) -> float:
        """By what factor the numbers of principal axes are larger because there are many clusters."""
        return min(2.0, max(1.0, self.n_clusters / self.preset.components[0])) if self.preset.components else 1.0

    def neighbor_count(self, n: int) -> int:
        share = self.preset.cluster_rows_per_neighbor * self.n_clusters
        return max(1, min(super().neighbor_count(n), n // share)) if share else super().neighbor_count(n)

    def prepared_by_clusters(self, n: int) -> bool:
        return self._growth > 1 or self.neighbor_count(n) < super().neighbor_count(n)

    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> Features:
        found = []
        for matrix, half in zip(matrices, halves, strict=True):
            scaled = allocate((len(matrix), len(half.scale)), np.float32)
            for rows, block in zip(row_blocks(len(matrix)), project(matrix, half), strict=True):
                scaled[rows] = block
            found.append(scaled)
        if not self.preset.weighs_halves:
            return Features(found, [1 / len(found)] * len(found), [1.0] * len(found))
        weights = [1.0] if len(found) == 1 else [1 - text_weight, text_weight]
        return Features(found, weights, [math.sqrt(weight) for weight in weights])

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        return self.further(features, neighbors, block, (), progress)

    def further(self, features: Features, neighbors: Neighbors, block: int, members: Sequence[Member], progress: Callable[[int], None]) -> list[Member]:
        """See `Plan.further` and `bilevel.train_block`; without ``members`` trains from the start. Members do not depend on the size of the block."""
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
            start=members,
        )


class GSEC(Clusterer):
    """Clusters images by their embeddings and, if given, their text counterparts.

    Outer members, each the result of a bilevel training with inner BatchEnsemble heads, are aligned and averaged, and
    the average is smoothed over neighbours. Li et al. 2026, https://arxiv.org/abs/2605.12961; see `bilevel`,
    `batch_ensemble`, `alignment` and `smoothing`. Uses no ground truth. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    preset : "default" or "published"
        Settings of the training: gsec's, or those of the paper's code; see `PRESETS`.
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
        Weight of the text half, between 0 and 1. Ignored without text, and with preset ``published``.
    random_state : int
        Seed of starts and mini-batches. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
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

    def plan(self) -> GSECPlan:
        if self.preset not in list(PRESETS):
            raise ValueError(f"preset = {self.preset!r}: there are {', '.join(PRESETS)}.")
        if not self.lies("text_weight", 0, 1):
            raise ValueError(f"text_weight = {self.text_weight!r}: it must be between 0 and 1.")
        if self.tol is not None and not (self.lies("tol", 0, 1) and self.tol < 1):
            raise ValueError(f"tol = {self.tol!r}: it must be at least 0 and below 1.")
        self.check_positive("n_clusters", "n_members", "ensemble_size", "max_steps")
        preset = PRESETS[self.preset]
        training = _for_many(preset.training, self.n_clusters)
        most_columns = MOST_COLUMNS_OF_MANY if self.n_clusters > MANY_CLUSTERS else MOST_COLUMNS
        training = replace(
            training,
            block_size=min(training.block_size, max(1, most_columns // self.n_clusters)),
            max_steps=self.max_steps or training.max_steps,
            tol=training.tol if self.tol is None else self.tol,
        )
        return GSECPlan(
            preset=replace(preset, training=training),
            n_clusters=self.n_clusters,
            n_members=self.member_count(preset.n_members),
            n_neighbors=preset.n_neighbors,
            rows_per_neighbor=preset.rows_per_neighbor,
            smoothing=preset.smoothing,
            ensemble_size=self.ensemble_size,
            random_state=self.random_state,
            device=self.resolved_device(),
        )


def _for_many(training: Training, n_clusters: int) -> Training:
    """``training`` adapted to the number of clusters; see `STEPS_OF_MANY`."""
    if not training.from_kmeans or n_clusters <= MANY_CLUSTERS:
        return training
    return replace(
        training,
        max_steps=max(STEPS_OF_MANY, training.max_steps * MANY_CLUSTERS // n_clusters),
        inner_steps=INNER_STEPS_OF_MANY,
        batch_rows=training.batch_rows_per_cluster * MANY_CLUSTERS,
        batch_rows_per_cluster=ROWS_PER_CLUSTER_OF_MANY,
    )
