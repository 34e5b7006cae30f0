"""Zero-shot classification (Radford et al. 2021, https://arxiv.org/abs/2103.00020): one cluster for each given name, without training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsec_core.clustering.features import RADIUS, Features, Half, UnitFeatures
from gsec_core.clustering.kmeans import unit_rows
from gsec_core.clustering.linear import BIAS, WEIGHTS
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.smoothing import Allocate
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import LinearMembers, Plan, UnitVectors
from gsec_core.methods.zero_shot import METHOD
from gsec_core.text import NounSelection

SCALE = 100.0
"""Factor of a cosine in the logits, as CLIP was trained."""

N_NEIGHBORS = 20
BATCH_ROWS = 1024
"""Rows in a mini-batch for distilling the head."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotPlan(UnitVectors, LinearMembers, Plan):
    """See `Plan`. A member has the names' vectors as weights; if these are not in the space of the embeddings, only the second half, which is, has weight."""

    def steps(self, n: int) -> int:
        return 1

    def batch(self, n: int) -> int:
        return min(n, BATCH_ROWS)

    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> UnitFeatures:
        return UnitFeatures(matrices, [0.0, 1.0][-len(matrices) :])

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        assert features.nouns is not None, "there are names"
        names = unit_rows(features.nouns)
        weights = np.zeros((self.n_clusters, features.dimensions), np.float32)
        weights[:, -names.shape[1] :] = names * np.float32(SCALE / RADIUS)
        progress(1)
        return [Member({WEIGHTS: weights, BIAS: np.zeros(self.n_clusters, np.float32)}, 1, 0.0, 0.0)]


class ZeroShot(Clusterer):
    """Assigns each image to the nearest of given names, for known classes. This is not clustering, but an upper bound to compare clusterings with.

    Radford et al. 2021, https://arxiv.org/abs/2103.00020. Requires ``nouns`` in `fit`, one vector for each cluster. Attributes are those
    of `Clusterer`; cluster 0 is the largest, and ``ensemble_.permutations[0]`` is the cluster of each name.

    Parameters
    ----------
    n_clusters : int
        Number of clusters; must equal the number of names.
    n_members : int or None
        Number of members, which are all equal; None = 1.
    random_state : int
        Seed of the mini-batches for distilling the head of several members; a single one is its own head.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
    """

    NEEDS_NOUNS = True

    def __init__(self, n_clusters: int = 10, *, n_members: int | None = None, random_state: int = 0, device: str = "auto") -> None:
        self.n_clusters = n_clusters
        self.n_members = n_members
        self.random_state = random_state
        self.device = device

    def noun_selection(self) -> NounSelection:
        return METHOD.nouns(self.n_clusters)

    def plan(self) -> ZeroShotPlan:
        self.check_positive("n_clusters", "n_members")
        return ZeroShotPlan(**self.shared(1), n_neighbors=N_NEIGHBORS)
