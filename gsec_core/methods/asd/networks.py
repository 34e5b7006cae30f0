"""Members of ASD as networks on pixels: the networks of `pixels`, trained and stored as members of the outer layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import Rows
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.methods.asd.estimator import SelfLabellingPlan
from gsec_core.methods.asd.pixels import Learner, log_posteriors, network
from gsec_core.methods.plan import PROBE_STEPS, Leg, NonlinearModels, Probe, State

PARTS = 20
"""Number of parts of a training, with a checkpoint after each but the last: a killed process loses at most one part per member."""

_MOST_KEPT = 2**27
"""Largest number of predicted values of all rows that are kept in memory."""


@dataclass(frozen=True, eq=False)
class Networks(NonlinearModels):
    """Several networks as predictors; see `ensemble.Models`."""

    depth: int
    width: int
    outputs: int

    of_features = False

    @property
    def n_clusters(self) -> int:
        return self.outputs

    @property
    def values_a_row(self) -> int:
        return len(self) * self.outputs

    @cached_property
    def modules(self) -> list[nn.Module]:
        """The network of each member."""
        found = []
        for member in self.members:
            module = network(self.outputs, self.depth, self.width).to(memory_format=torch.channels_last)
            module.load_state_dict({name: torch.from_numpy(array) for name, array in member.items()}, strict=False)  # the counters of batches are not stored
            found.append(module)
        return found

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        numbers = np.arange(len(features))[rows]
        if len(features) * self.values_a_row > _MOST_KEPT:
            return torch.from_numpy(self.said(features, numbers, device)).to(device)
        if features not in self._kept:
            self._kept[features] = _Said.nothing(len(features), len(self), self.n_clusters)
        kept = self._kept[features]
        missing = numbers[~kept.known[numbers]]
        if len(missing):
            kept.values[missing] = self.said(features, missing, device)
            kept.known[missing] = True
        return torch.from_numpy(kept.values[numbers]).to(device)

    @cached_property
    def _kept(self) -> "WeakKeyDictionary[Features, _Said]":
        """Alignment, consensus and assignment all need the predictions, and networks are slow."""
        return WeakKeyDictionary()

    def said(self, features: Features, rows: NDArray[np.int64], device: str) -> NDArray[np.float32]:
        """Log-posteriors of the given rows, (rows, members, clusters)."""
        assert features.pixels is not None, "the plan has asked for them"
        return np.stack([np.concatenate(list(log_posteriors(module.to(device), features.pixels, rows, device))) for module in self.modules], 1)


class _Said(NamedTuple):
    """Log-posteriors that are known. Threads that need the same unknown rows at once compute them twice, with equal results."""

    values: NDArray[np.float32]
    """(rows, members, clusters)"""
    known: NDArray[np.bool_]

    @classmethod
    def nothing(cls, n: int, members: int, clusters: int) -> "_Said":
        return cls(np.empty((n, members, clusters), np.float32), np.zeros(n, np.bool_))


@dataclass(frozen=True, kw_only=True)
class NetworkPlan(SelfLabellingPlan):
    """See `Plan`. A member is a network with averaged weights; embeddings are used for neighbours only."""

    side: int
    depth: int
    width: int

    @property
    def pixel_side(self) -> int:
        return self.side

    def checkpoints(self, n: int, block: int) -> Sequence[int]:
        parts = [self.max_steps * part // PARTS for part in range(1, PARTS)]
        return sorted({self.instance_steps, *(step for step in parts if 0 < step <= self.max_steps - PROBE_STEPS)})

    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        with torch.device("meta"):
            module = network(self.n_clusters, self.depth, self.width)
        return {name: tuple(values.shape) for name, values in _floats(module).items()}

    def models(self, members: Sequence[Member]) -> Networks:
        return Networks([member.parameters for member in members], self.depth, self.width, self.n_clusters)

    def advance(self, features: Features, neighbors: Neighbors, leg: Leg, progress: Callable[[int], None]) -> State:
        learner = self._learner(features, leg.block, leg.state)
        for _ in range(learner.step, leg.step):
            learner.learn()
            progress(1)
        return learner.state()

    def finish(self, features: Features, neighbors: Neighbors, block: int, state: State | None, progress: Callable[[int], None]) -> list[Member]:
        learner = self._learner(features, block, state)
        rows = self.probed_rows(len(features))
        probe = Probe(self.max_steps, lambda: _labels(learner, rows))
        loss = 0.0
        for step in range(learner.step, self.max_steps):
            if step > learner.instance_steps:
                probe.look(step)
            loss = learner.learn()
            progress(1)
        arrays = {name: values.cpu().numpy() for name, values in _floats(learner.averaged).items()}
        return [Member(arrays, self.max_steps, float(probe.changed()), loss)]

    def _learner(self, features: Features, block: int, state: State | None) -> Learner:
        assert features.pixels is not None, "the plan has asked for them"
        parameters: dict[str, Any] = {"max_steps": self.max_steps, "depth": self.depth, "width": self.width}
        learner = Learner(features.pixels, self.n_clusters, **parameters, random_state=self.seed(block), device=self.device)
        if state is not None:
            learner.restore(state)
        return learner


def _labels(learner: Learner, rows: NDArray[np.int64]) -> Tensor:
    said = log_posteriors(learner.averaged, learner.images, rows, learner.device)
    return torch.from_numpy(np.concatenate([block.argmax(1) for block in said]))


def _floats(module: nn.Module) -> dict[str, Tensor]:
    """Weights and running statistics: the entries of the state dict that are floats."""
    return {name: values for name, values in module.state_dict().items() if values.is_floating_point()}
