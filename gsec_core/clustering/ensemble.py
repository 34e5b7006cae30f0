"""The outer ensemble: trained members and the permutations that align their label spaces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gsec_core.clustering.alignment import align, aligned_mean, co_assignment, member_labels
from gsec_core.clustering.batch_ensemble import linear
from gsec_core.clustering.bilevel import Member
from gsec_core.clustering.features import Features, Rows
from gsec_core.clustering.kmeans import sample_rows

_SAMPLE_ROWS = 65_536
_SAMPLE_ROWS_PER_CLUSTER = 64
"""Rows by which label spaces are aligned: more do not change a matching, and the tables cost (members x clusters)^2 a row."""

_BLOCK_VALUES = 2**24
"""Values of features, and of posteriors, in memory at once."""


class Assigned(NamedTuple):
    """What the ensemble says of some rows."""

    labels: NDArray[np.int32]
    """(rows,): the cluster of the largest mean aligned posterior."""
    confidence: NDArray[np.float32]
    """(rows,): that posterior."""
    margin: NDArray[np.float32]
    """(rows,): how much it is above the second largest."""
    agreement: NDArray[np.float32]
    """(rows,): share of the members that say the same cluster."""
    member_labels: NDArray[np.int32]
    """(rows, members), aligned."""


@dataclass(frozen=True)
class Ensemble:
    """Members with aligned label spaces. Cluster 0 is the consensus's largest."""

    weights: NDArray[np.float32]
    """(members, clusters, dimensions of the features)."""
    bias: NDArray[np.float32]
    """(members, clusters)."""
    permutations: NDArray[np.int32]
    """(members, clusters): the consensus cluster of each member's each cluster."""

    @classmethod
    def of(cls, members: Sequence[Member], permutations: NDArray[np.int32]) -> "Ensemble":
        """Members and the permutations that were found for them."""
        return cls(np.stack([member.weights for member in members]), np.stack([member.bias for member in members]), permutations)

    @classmethod
    def aligned(cls, members: Sequence[Member], features: Features, *, random_state: int, device: str) -> tuple["Ensemble", NDArray[np.float32]]:
        """Align ``members`` on ``features``. Returns the ensemble, and for each member the share of rows on which it agrees with the consensus."""
        clusters = len(members[0].bias)
        ensemble = cls.of(members, np.tile(np.arange(clusters, dtype=np.int32), (len(members), 1)))
        sample = sample_rows(len(features), max(_SAMPLE_ROWS, _SAMPLE_ROWS_PER_CLUSTER * clusters), random_state)
        step = ensemble.block_rows
        blocks = (sample[start : start + step] for start in range(0, len(sample), step))
        permutations = align(co_assignment(np.exp(ensemble.log_posteriors(features, rows, device)) for rows in blocks))
        ensemble = replace(ensemble, permutations=permutations)
        sizes, agreeing = np.zeros(clusters, np.int64), np.zeros(len(members), np.int64)
        for found in ensemble.assign_all(features, device):
            sizes += np.bincount(found.labels, minlength=clusters)
            agreeing += (found.member_labels == found.labels[:, None]).sum(0)
        rank = np.argsort(np.argsort(-sizes, kind="stable")).astype(np.int32)
        return replace(ensemble, permutations=rank[permutations]), (agreeing / len(features)).astype(np.float32)

    @property
    def block_rows(self) -> int:
        """Rows whose features and posteriors are in memory at once."""
        values_a_row: int = max(self.bias.size, self.weights.shape[2])
        return max(1, _BLOCK_VALUES // values_a_row)

    def log_posteriors(self, features: Features, rows: Rows, device: str) -> NDArray[np.float32]:
        """Of each member, not aligned: (rows, members, clusters)."""
        with torch.no_grad():
            weights, bias = torch.from_numpy(self.weights).to(device), torch.from_numpy(self.bias).to(device)
            found: NDArray[np.float32] = linear(features.rows(rows, device), weights, bias).log_softmax(-1).cpu().numpy()
        return found

    def probabilities(self, features: Features, rows: Rows, device: str) -> NDArray[np.float32]:
        """Mean aligned posteriors, (rows, clusters)."""
        return aligned_mean(np.exp(self.log_posteriors(features, rows, device)), self.permutations)

    def assign(self, features: Features, rows: Rows, device: str) -> Assigned:
        """What the ensemble says of ``rows``.

        Sure members that disagree tie exactly, in single precision. Then the geometric mean decides among the best, so
        that no label depends on how the clusters are numbered.
        """
        logs = self.log_posteriors(features, rows, device)
        mean = aligned_mean(np.exp(logs), self.permutations)
        best = mean.max(1)
        labels = mean.argmax(1).astype(np.int32)
        tied = np.flatnonzero((mean == best[:, None]).sum(1) > 1)
        labels[tied] = np.where(mean[tied] == best[tied, None], aligned_mean(logs[tied], self.permutations), -np.inf).argmax(1)
        mean[np.arange(len(mean)), labels] = 0  # what is left, if anything, is the second best
        said = member_labels(logs, self.permutations)
        return Assigned(labels, best, best - mean.max(1), (said == labels[:, None]).mean(1, dtype=np.float32), said)

    def assign_all(self, features: Features, device: str, start: int = 0, stop: int | None = None) -> Iterator[Assigned]:
        """`assign` for the rows from ``start`` to ``stop``, block by block."""
        stop = len(features) if stop is None else stop
        for first in range(start, stop, self.block_rows):
            yield self.assign(features, slice(first, min(first + self.block_rows, stop)), device)


def joined(parts: Sequence[Assigned]) -> Assigned:
    """Blocks of rows as one."""
    return Assigned(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
