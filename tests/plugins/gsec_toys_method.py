"""The estimator of the toy method."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gsec_core.clustering.features import Features
from gsec_core.clustering.linear import BIAS, WEIGHTS
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import LinearMembers, Plan, UnitVectors


@dataclass(frozen=True, kw_only=True)
class ToyPlan(UnitVectors, LinearMembers, Plan):
    """Members are random images as centres."""

    sharpness: float

    def batch(self, n: int) -> int:
        return min(n, 64)

    def steps(self, n: int) -> int:
        return 1

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        rows = np.random.default_rng([self.random_state, block]).choice(len(features), self.n_clusters, replace=False)
        progress(1)
        centres = features.rows(np.sort(rows)).numpy()
        return [Member({WEIGHTS: self.sharpness * centres, BIAS: np.zeros(self.n_clusters, np.float32)}, 1, 0.0, 0.0)]


class Toy(Clusterer):
    """Clusters images by the nearest of some random images."""

    def __init__(self, n_clusters: int = 10, *, sharpness: float = 10.0, n_members: int | None = None, random_state: int = 0, device: str = "auto") -> None:
        self.n_clusters = n_clusters
        self.sharpness = sharpness
        self.n_members = n_members
        self.random_state = random_state
        self.device = device

    def plan(self) -> ToyPlan:
        return ToyPlan(
            n_clusters=self.n_clusters,
            n_members=self.member_count(3),
            n_neighbors=5,
            rows_per_neighbor=4,
            smoothing=1,
            random_state=self.random_state,
            device=self.resolved_device(),
            sharpness=self.sharpness,
        )
