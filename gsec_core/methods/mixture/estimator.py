"""Members of several methods with one consensus.

Methods make different errors, so that labels on which several methods agree are right more often than labels on which members of one method agree
(Strehl and Ghosh 2002, "Cluster Ensembles"; Kuncheva and Hadjitodorov 2004 on how members should differ). Each method has separate features and
trains as it does alone, but all use the same neighbours, those of the embeddings. The members of all methods are then aligned and averaged together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.metaestimators import _BaseComposition
from torch import Tensor

from gsec_core.clustering.ensemble import Models
from gsec_core.clustering.features import Features, Half, UnitFeatures
from gsec_core.clustering.kmeans import Rows
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.smoothing import Allocate
from gsec_core.methods.clusterer import SMOOTHING, Clusterer
from gsec_core.methods.plan import Leg, OuterLayer, PseudoLabels, State
from gsec_core.text import NounSelection


class MixedFeatures(UnitFeatures):
    """Unit vectors, used for neighbours and for the head, together with the features of each method in ``parts``."""

    def __init__(self, halves: Sequence[NDArray[Any]], weights: Sequence[float], parts: Sequence[Features]) -> None:
        super().__init__(halves, weights)
        self.parts = list(parts)

    @property
    def pixels(self) -> NDArray[np.uint8] | None:
        """See `Features`; shared by all parts."""
        return self.parts[0].pixels

    @pixels.setter
    def pixels(self, found: NDArray[np.uint8] | None) -> None:
        for part in self.parts:
            part.pixels = found


@dataclass(frozen=True)
class MixedModels:
    """Members of several methods as predictors: the same number of each method, interleaved; see `ensemble.Models`."""

    parts: Sequence[Models]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def n_clusters(self) -> int:
        return self.parts[0].n_clusters

    @property
    def values_a_row(self) -> int:
        return sum(part.values_a_row for part in self.parts)

    @property
    def of_features(self) -> bool:
        return all(part.of_features for part in self.parts)

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        assert isinstance(features, MixedFeatures)
        said = [part.logits(own, rows, device) for part, own in zip(self.parts, features.parts, strict=True)]
        return torch.stack(said, 2).flatten(1, 2)

    def head_start(self, permutations: NDArray[np.int32], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.zeros((self.n_clusters, dimensions), np.float32), np.zeros(self.n_clusters, np.float32)


@dataclass(frozen=True, kw_only=True)
class MixturePlan(OuterLayer):
    """See `OuterLayer`. The numbers of members and blocks alternate between methods, so that more members do not change a number."""

    parts: tuple[OuterLayer, ...]

    @property
    def blocks(self) -> list[int]:
        return [block * len(self.parts) + part for part, plan in enumerate(self.parts) for block in plan.blocks]

    def numbers(self, block: int) -> range:
        own, part = divmod(block, len(self.parts))
        found, step = self.parts[part].numbers(own), len(self.parts)
        return range(found.start * step + part, found.stop * step + part, step)

    def total_steps(self, n: int, blocks: Sequence[int], further: bool = False) -> int:
        return sum(self.parts[block % len(self.parts)].total_steps(n, [block // len(self.parts)]) for block in blocks)

    def neighbor_count(self, n: int) -> int:
        return max(plan.neighbor_count(n) for plan in self.parts)

    def prepared_by_clusters(self, n: int) -> bool:
        return any(plan.prepared_by_clusters(n) for plan in self.parts)

    def halves(self, matrices: Sequence[NDArray[Any]]) -> list[Half]:
        return [half for plan in self.parts for half in plan.halves(matrices)]

    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> MixedFeatures:
        parts = [plan.features(matrices, self._own(halves, part), text_weight, allocate) for part, plan in enumerate(self.parts)]
        return MixedFeatures(matrices, [1 - text_weight, text_weight] if len(matrices) > 1 else [1.0], parts)

    def arrays(self, halves: Sequence[Half], block: int) -> Mapping[str, tuple[int, ...]]:
        own, part = divmod(block, len(self.parts))
        return self.parts[part].arrays(self._own(halves, part), own)

    def trained(
        self,
        features: Features,
        neighbors: Neighbors,
        blocks: Sequence[int],
        progress: Callable[[int], None] = lambda steps: None,
        states: Mapping[int, State] = MappingProxyType({}),
        start: Sequence[Member] = (),
    ) -> Iterator[list[Member]]:
        """See `OuterLayer.trained`. Trains one method after the other, each with the number of nearest neighbours that it uses alone."""
        for part, numbers in groupby(blocks, lambda block: block % len(self.parts)):
            own = {block // len(self.parts): states.get(block) for block in numbers}
            begun = {block: state for block, state in own.items() if state is not None}
            yield from self.parts[part].trained(*self._seen_by(part, features, neighbors), list(own), progress, begun)

    def checkpoints(self, n: int, block: int) -> Sequence[int]:
        own, part = divmod(block, len(self.parts))
        return self.parts[part].checkpoints(n, own)

    def advanced(self, features: Features, neighbors: Neighbors, legs: Sequence[Leg], progress: Callable[[int], None] = lambda steps: None) -> Iterator[State]:
        for part, theirs in groupby(legs, lambda leg: leg.block % len(self.parts)):
            own = [leg._replace(block=leg.block // len(self.parts)) for leg in theirs]
            yield from self.parts[part].advanced(*self._seen_by(part, features, neighbors), own, progress)

    def labelled_at(self, block: int) -> int | None:
        own, part = divmod(block, len(self.parts))
        return self.parts[part].labelled_at(own)

    def pseudo_labels(self, block: int, state: State) -> PseudoLabels:
        own, part = divmod(block, len(self.parts))
        return self.parts[part].pseudo_labels(own, state)

    @property
    def pixel_side(self) -> int:
        return max(plan.pixel_side for plan in self.parts)

    def models(self, members: Sequence[Member]) -> MixedModels:
        return MixedModels([plan.models(members[part :: len(self.parts)]) for part, plan in enumerate(self.parts)])

    def batch(self, n: int) -> int:
        return max(plan.batch(n) for plan in self.parts)

    def _seen_by(self, part: int, features: Features, neighbors: Neighbors) -> tuple[Features, Neighbors]:
        """The features and neighbours on which one method trains."""
        assert isinstance(features, MixedFeatures)
        own = features.parts[part]
        own.nouns = features.nouns
        count = self.parts[part].neighbor_count(len(features))
        nearest = [np.ascontiguousarray(half[:, :count]) for half in neighbors.halves]
        return own, Neighbors(*nearest)

    def _own(self, halves: Sequence[Half], part: int) -> Sequence[Half]:
        """The halves of one part, out of those of all parts."""
        count = len(halves) // len(self.parts)
        return halves[part * count : (part + 1) * count]


class Mixture(Clusterer, _BaseComposition):  # type: ignore[misc]
    """Clusters images by the consensus of several methods, with the same number of members of each.

    After Strehl and Ghosh 2002, "Cluster Ensembles", with the alignment of `clustering.alignment` instead of hypergraphs. Attributes are those of
    `Clusterer`; the members of the methods alternate. Parameters of a part have its name as prefix, as in ``tac__max_steps``.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    estimators : list of (str, Clusterer)
        Two or more estimators, each with a name. Their ``n_clusters``, ``n_members``, ``text_weight``, ``random_state`` and ``device`` are replaced by those
        of the mixture. None may need a name for each cluster, and all must select the same nouns.
    n_members : int or None
        Outer members of each method; None = the smallest of the methods' defaults.
    text_weight : float
        Weight of the text half, between 0 and 1, in smoothing, in the head and in those parts that weight the halves. Ignored without text.
    random_state : int
        Seed. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
    """

    def __init__(
        self,
        n_clusters: int = 10,
        estimators: Sequence[tuple[str, Clusterer]] = (),
        *,
        n_members: int | None = None,
        text_weight: float = 0.5,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.estimators = estimators
        self.n_members = n_members
        self.text_weight = text_weight
        self.random_state = random_state
        self.device = device

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """See `sklearn.base.BaseEstimator`."""
        found: dict[str, Any] = self._get_params("estimators", deep)
        return found

    def set_params(self, **params: Any) -> Self:
        """See `sklearn.base.BaseEstimator`."""
        self._set_params("estimators", **params)
        return self

    @property
    def NEEDS_TEXT(self) -> bool:  # type: ignore[override]
        return any(estimator.NEEDS_TEXT for _, estimator in self.estimators)

    @property
    def NEEDS_NOUNS(self) -> bool:  # type: ignore[override]
        return any(estimator.NEEDS_NOUNS for _, estimator in self.estimators)

    def noun_selection(self) -> NounSelection:
        (first, estimator), *others = self._parts(None)
        selection = estimator.noun_selection()
        for name, other in others:
            if other.noun_selection() != selection:
                raise ValueError(f"estimators: {first} and {name} use different nouns for the images. Leave one out, or give text.")
        return selection

    def plan(self) -> MixturePlan:
        self.check_positive("n_clusters", "n_members")
        if not self.lies("text_weight", 0, 1):
            raise ValueError(f"text_weight = {self.text_weight!r}: it must be between 0 and 1.")
        device = self.resolved_device()
        if not isinstance(self.estimators, Sequence) or not all(map(_is_part, self.estimators)):
            raise ValueError("estimators: give a list of pairs of a name and an estimator of a single method, as [('gsec', GSEC()), ('tac', TAC())].")
        if len(self.estimators) < 2:
            raise ValueError(f"estimators: {len(self.estimators)} are given. A mixture needs two or more.")
        self._validate_names([name for name, _ in self.estimators])
        least = min(plan.n_members for plan in self._plans(None))
        n_members = self.member_count(least, methods=len(self.estimators))
        return MixturePlan(
            n_clusters=self.n_clusters,
            n_members=n_members * len(self.estimators),
            smoothing=SMOOTHING,
            random_state=self.random_state,
            device=device,
            parts=tuple(self._plans(n_members)),
        )

    def _plans(self, n_members: int | None) -> Iterator[OuterLayer]:
        for name, estimator in self._parts(n_members):
            if estimator.noun_selection().per_centre is None:
                raise ValueError(f"estimators: {name} takes a name for each cluster and finds no clusters of its own. Leave it out.")
            try:
                yield estimator.plan()
            except ValueError as error:
                raise ValueError(f"{name}__{error}") from None

    def _parts(self, n_members: int | None) -> list[tuple[str, Clusterer]]:
        """Clones of the estimators, with the parameters of the mixture."""
        shared = {name: getattr(self, name) for name in ("n_clusters", "text_weight", "random_state", "device")} | {"n_members": n_members}
        found = []
        for name, estimator in self.estimators:
            part = clone(estimator)
            part.set_params(**{parameter: value for parameter, value in shared.items() if parameter in part.get_params(deep=False)})
            found.append((name, part))
        return found


def _is_part(given: object) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and isinstance(given[1], Clusterer) and not isinstance(given[1], Mixture)
