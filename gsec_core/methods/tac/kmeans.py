"""TAC without training: k-means of the concatenated images and text counterparts (Li et al. 2024, https://arxiv.org/abs/2310.11989)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import lloyd, sample_rows, sample_size
from gsec_core.clustering.linear import BIAS, WEIGHTS
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.starts import softened
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import LinearMembers, Plan, UnitVectors
from gsec_core.methods.tac import N_MEMBERS
from gsec_core.methods.tac.estimator import N_NEIGHBORS

MAX_ITER = 300
BATCH_ROWS = 1024
"""Rows in a mini-batch for distilling the head."""


@dataclass(frozen=True, kw_only=True)
class TACKMeansPlan(UnitVectors, LinearMembers, Plan):
    """See `Plan`."""

    n_init: int

    def steps(self, n: int) -> int:
        return self.n_init

    def batch(self, n: int) -> int:
        return min(n, BATCH_ROWS)

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        seed = int(np.random.SeedSequence([self.random_state, block]).generate_state(1)[0] >> 1)
        sample = features.rows(sample_rows(len(features), sample_size(self.n_clusters), seed)).numpy()
        centres, iterations = lloyd(
            sample,
            self.n_clusters,
            n_init=self.n_init,
            max_iter=MAX_ITER,
            random_state=seed,
            spherical=True,
            n_threads=torch.get_num_threads(),
            progress=lambda: progress(1),
        )
        start = softened(sample, centres, seed)
        return [Member({WEIGHTS: start.weight.numpy(), BIAS: start.bias.numpy()}, iterations, 0.0, 0.0)]


class TACKMeans(Clusterer):
    """Clusters images by k-means of their embeddings and text counterparts, concatenated as unit vectors.

    The variant without training of Li et al. 2024, https://arxiv.org/abs/2310.11989. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_members : int or None
        Outer members, each a k-means with a different seed; None = 10; 1 = as published, without an outer layer.
    n_init : int
        Number of starts of a member's k-means; the best by the k-means objective is kept.
    random_state : int
        Seed. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        Device of alignment and head; k-means itself always runs on the CPU.
    """

    NEEDS_TEXT = True

    def __init__(self, n_clusters: int = 10, *, n_members: int | None = None, n_init: int = 20, random_state: int = 0, device: str = "auto") -> None:
        self.n_clusters = n_clusters
        self.n_members = n_members
        self.n_init = n_init
        self.random_state = random_state
        self.device = device

    def plan(self) -> TACKMeansPlan:
        self.check_positive("n_clusters", "n_members", "n_init")
        return TACKMeansPlan(**self.shared(N_MEMBERS), n_neighbors=N_NEIGHBORS, n_init=self.n_init)
