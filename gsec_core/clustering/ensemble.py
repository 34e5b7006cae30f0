"""The outer ensemble: trained members with aligned clusters, their consensus, and a head that predicts the consensus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import coo_array
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional as F

from gsec_core.clustering.alignment import align, aligned_mean, co_assignment, member_labels
from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import MANY_CLUSTERS, Rows, sample_rows, sample_size_of_many
from gsec_core.clustering.lineage import match
from gsec_core.clustering.linear import linear, training_dtype
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.refill import Division, refill
from gsec_core.clustering.smoothing import Allocate, Posteriors, smooth
from gsec_core.devices import in_threads, threads_of_torch

_SAMPLE_ROWS = 65_536
"""Number of rows by which clusters are aligned: more do not change a matching, and the tables cost (members x clusters)^2 per row."""

_BLOCK_VALUES = 2**22
"""Number of values of features, and of posteriors, that each thread holds in memory at once."""

_LOG_TEMPERATURES = (-3.0, 3.0)

_HEAD_STEPS = 200
_HEAD_BATCH_ROWS = 1024
_HEAD_LR = 0.01
_HEAD_MARGIN = 5.0
"""Difference of the logits of a refilled and a divided cluster, at the mean of each, with which the head starts."""

_SMALL_PRODUCT = 2**27
"""A training step of the head with at most this many multiplications runs in one thread: several would wait longer than they work."""


class Assigned(NamedTuple):
    """Labels of some rows, with their reliability."""

    labels: NDArray[np.int32]
    """(rows,): the cluster of the largest posterior."""
    confidence: NDArray[np.float32]
    """(rows,): that posterior."""
    margin: NDArray[np.float32]
    """(rows,): largest minus second largest posterior."""
    agreement: NDArray[np.float32]
    """(rows,): share of the members that give the same cluster."""
    member_labels: NDArray[np.int32]
    """(rows, members), aligned."""


@dataclass(frozen=True)
class Head:
    """A linear map that predicts the consensus for rows without neighbours in the fit: posteriors are softmax(z weights^T + bias)."""

    weights: NDArray[np.float32]
    """(clusters, dimensions of the features)."""
    bias: NDArray[np.float32]
    """(clusters,)."""


class Models(Protocol):
    """The members of an ensemble as predictors; each method implements it for its members."""

    def __len__(self) -> int:
        """Number of members."""
        ...

    @property
    def n_clusters(self) -> int: ...

    @property
    def values_a_row(self) -> int:
        """Largest number of values that prediction holds in memory per row."""
        ...

    @property
    def of_features(self) -> bool:
        """Whether predictions depend on the features alone, so that a linear head on the features can replace the members."""
        ...

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        """Logits of all members, (rows, members, clusters), with each member's own numbers of clusters; on the device."""
        ...

    def head_start(self, permutations: NDArray[np.int32], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Initial weights (clusters, dimensions) and bias (clusters,) of the head: the aligned mean of linear members, else zeros."""
        ...


class Consensus(NamedTuple):
    """Consensus of an ensemble on the rows of its fit."""

    posteriors: Posteriors
    labels: NDArray[np.int32]
    """(n, members): each member's cluster of each row, in its own numbers."""
    divided: list[Division]
    """The clusters that were divided, because others had no rows."""


@dataclass(frozen=True)
class Ensemble:
    """Members with aligned clusters."""

    models: Models
    permutations: NDArray[np.int32]
    """(members, clusters): the consensus cluster of each cluster of each member."""
    temperature: float = 1.0
    """Temperature of the consensus; see `calibrated`."""

    @classmethod
    def aligned(cls, models: Models, features: Features, *, random_state: int, device: str) -> "Ensemble":
        """Align members by their posteriors on a sample of ``features``."""
        ensemble = cls(models, np.tile(np.arange(models.n_clusters, dtype=np.int32), (len(models), 1)))
        if len(models) == 1:
            return ensemble  # there is nothing to align
        count = sample_size_of_many(models.n_clusters) if models.n_clusters > MANY_CLUSTERS else _SAMPLE_ROWS
        sample = sample_rows(len(features), count, random_state)
        step = ensemble.block_rows
        rows = (sample[start : start + step] for start in range(0, len(sample), step))
        dtype = training_dtype(models.n_clusters, device)  # the table of each block is rounded to it
        posteriors = in_threads(lambda part: models.logits(features, part, device).softmax(-1).to(dtype), rows, device)
        return replace(ensemble, permutations=align(co_assignment(posteriors)))

    def consensus(
        self,
        features: Features,
        neighbors: Neighbors,
        rounds: int,
        device: str,
        allocate: Allocate,
        *,
        refilled: bool = False,
        before: NDArray[np.int32] | None = None,
    ) -> Consensus:
        """Mean aligned posteriors of all rows, smoothed ``rounds`` times over the neighbours, at the ensemble's temperature.

        ``refilled``: whether empty clusters get images, see `refill.refill`. ``before``: see `Posteriors.leaning`.
        """
        # The rounding of sums depends on the order of the clusters. Until the end the order is that of the first member, whatever their final numbers: an
        # interrupted run that finds its clusters numbered already must round as an uninterrupted one.
        names = self.permutations[0]
        aligned = np.argsort(names).astype(np.int32)[self.permutations]
        found = Posteriors.empty(len(features), self.models.n_clusters, allocate)
        labels = allocate((len(features), len(self.models)), np.int32)

        def look(rows: slice) -> None:
            logits = self.models.logits(features, rows, device)
            labels[rows] = logits.argmax(-1).cpu().numpy()
            found.put(rows, aligned_mean(logits.softmax(-1), aligned))

        for _ in in_threads(look, self.blocks(0, len(features)), device):
            pass
        smoothed = smooth(found, neighbors.halves, features.weights, rounds, allocate)
        divided = refill(smoothed, labels, neighbors.halves, features.weights) if refilled else []
        smoothed.renamed(names)
        return Consensus((smoothed if before is None else smoothed.leaning(before)).sharpened(self.temperature), labels, divided)

    def by_size(self, consensus: Posteriors) -> "Ensemble":
        """A copy with clusters numbered by size in ``consensus``, which is renumbered in place."""
        sizes = sum(np.bincount(consensus.best(rows)[0], minlength=consensus.n_clusters) for rows in self.blocks(0, len(consensus.values)))
        rank = np.argsort(np.argsort(-np.asarray(sizes), kind="stable")).astype(np.int32)
        consensus.renamed(rank)
        return replace(self, permutations=rank[self.permutations])

    def as_before(self, consensus: Posteriors, before: NDArray[np.int32]) -> "Ensemble":
        """A copy with clusters numbered as they were ``before`` (n,), -1 for new rows; ``consensus`` is renumbered in place.

        Clusters are matched by the rows that they share; those without a match get the remaining numbers, the largest first.
        """
        clusters = consensus.n_clusters
        labels = np.concatenate([consensus.best(rows)[0] for rows in self.blocks(0, len(before))])
        had = before >= 0
        shared = coo_array((np.ones(had.sum()), (labels[had], before[had])), shape=(clusters, clusters))
        shared.sum_duplicates()
        names = match(shared)
        left = np.flatnonzero(names < 0)
        by_size = left[np.argsort(-np.bincount(labels, minlength=clusters)[left], kind="stable")]
        names[by_size] = np.setdiff1d(np.arange(clusters), names)
        consensus.renamed(names)
        return replace(self, permutations=names[self.permutations])

    def calibrated(self, consensus: Consensus, *, random_state: int) -> "Ensemble":
        """A copy with the temperature at which posteriors predict the share of agreeing members; ``consensus`` is scaled in place.

        The temperature gives the members' labels on a sample the largest likelihood: scaling after Guo et al. 2017, with the members instead of
        ground truth. An ensemble of a single member is not changed.
        """
        if len(self.models) < 2:
            return self
        posteriors = consensus.posteriors
        # Members do not know the clusters that were refilled: neither the rows of these nor votes for their numbers count.
        refilled = np.concatenate([np.empty(0, np.int64), *(division.part for division in consensus.divided)])
        numbers = np.unique(posteriors.labels_of(refilled))
        rows = np.setdiff1d(sample_rows(len(posteriors.values), _SAMPLE_ROWS, random_state), refilled)
        values, clusters = np.maximum(posteriors.values[rows], np.finfo(np.float32).tiny), posteriors.clusters[rows]
        votes = np.zeros_like(values)
        for said in member_labels(consensus.labels[rows], self.permutations).T:
            votes += (clusters == said[:, None]) & ~np.isin(said, numbers)[:, None]
        logs = np.log(values)

        def loss(log_temperature: float) -> float:
            scaled = logs * np.float32(np.exp(-log_temperature))
            return float(-(votes * (scaled - logsumexp(scaled, axis=1, keepdims=True))).sum())

        temperature = float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))
        posteriors.sharpened(temperature)
        return replace(self, temperature=temperature)

    def head(self, features: Features, consensus: Consensus, *, batch_rows: int, random_state: int, device: str) -> Head:
        """Distil ``consensus`` into a head (Hinton et al. 2015), which starts from `Models.head_start`."""
        rows_a_step = min(len(features), max(batch_rows, _HEAD_BATCH_ROWS))
        small = rows_a_step * features.dimensions * self.models.n_clusters <= _SMALL_PRODUCT
        with threads_of_torch(1 if small else torch.get_num_threads()):
            return self._distilled(features, consensus, rows_a_step, random_state, device)

    def _distilled(self, features: Features, found: Consensus, rows_a_step: int, random_state: int, device: str) -> Head:
        consensus = found.posteriors
        weights, bias = self.models.head_start(self.permutations, features.dimensions)
        for division in found.divided:
            [new], [old] = (consensus.labels_of(rows[:1]) for rows in division)
            # A refilled cluster starts as a copy of the divided one, apart from the direction in which the two differ.
            means = [features.rows(rows[sample_rows(len(rows), _HEAD_BATCH_ROWS, random_state)]).numpy().mean(0) for rows in division]
            direction = (means[0] - means[1]) / max(float(np.square(means[0] - means[1]).sum()), 1e-12)
            weights[new] = weights[old] + 2 * _HEAD_MARGIN * direction
            bias[new] = bias[old] - _HEAD_MARGIN * float(direction @ (means[0] + means[1]))
        weight, offset = (torch.from_numpy(part).to(device).requires_grad_() for part in (weights, bias))
        optimizer, dtype = torch.optim.Adam([weight, offset], fused=True), training_dtype(self.models.n_clusters, device)
        for step in range(_HEAD_STEPS):
            optimizer.param_groups[0]["lr"] = _HEAD_LR * (1 - step / _HEAD_STEPS)
            rows = np.sort(np.random.default_rng([random_state, step]).choice(len(features), rows_a_step, replace=False))
            logits = linear(features.rows(rows, device).to(dtype), weight[None], offset[None])[:, 0]
            clusters, values = (torch.from_numpy(part[rows]).to(device) for part in (consensus.clusters, consensus.values))
            loss = -(values * logits.log_softmax(1).gather(1, clusters.long())).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return Head(weight.detach().cpu().numpy(), offset.detach().cpu().numpy())

    @property
    def block_rows(self) -> int:
        """Number of rows whose features and posteriors are in memory at once."""
        return max(1, _BLOCK_VALUES // self.models.values_a_row)

    def blocks(self, start: int, stop: int) -> Iterator[slice]:
        """The rows from ``start`` to ``stop`` in blocks of `block_rows`."""
        return (slice(first, min(first + self.block_rows, stop)) for first in range(start, stop, self.block_rows))

    def assigned(self, consensus: Consensus, start: int, stop: int) -> Iterator[Assigned]:
        """Labels by the consensus of the rows from ``start`` to ``stop``, and agreement of the members, block by block."""
        for rows in self.blocks(start, stop):
            yield _with_members(member_labels(consensus.labels[rows], self.permutations), *consensus.posteriors.best(rows))

    def member_labels(self, features: Features, device: str, start: int, stop: int) -> NDArray[np.int32]:
        """Aligned labels by the members of the rows from ``start`` to ``stop``: (rows, members)."""
        said = in_threads(lambda rows: self._aligned_labels(self.models.logits(features, rows, device)), self.blocks(start, stop), device)
        return np.concatenate(list(said))

    def predicted(self, features: Features, head: Head, device: str) -> Iterator[Assigned]:
        """Predict rows outside the consensus, block by block, with the agreement of the members.

        Labels come from the head or, if the members depend on more than the features, from their mean posteriors.
        """

        def predict(rows: slice) -> Assigned:
            logits = self.models.logits(features, rows, device)
            found = Posteriors.empty(rows.stop - rows.start, self.models.n_clusters, np.empty)
            if self.models.of_features:
                found.put(slice(None), head_posteriors(head, features, rows, device))
            else:
                found.put(slice(None), aligned_mean(logits.softmax(-1), self.permutations))
            return _with_members(self._aligned_labels(logits), *found.best(slice(None)))

        return in_threads(predict, self.blocks(0, len(features)), device)

    def _aligned_labels(self, logits: Tensor) -> NDArray[np.int32]:
        """Aligned label by each member: (rows, members)."""
        return member_labels(logits.argmax(-1).cpu().numpy(), self.permutations)


def _with_members(said: NDArray[np.int32], labels: NDArray[np.int32], best: NDArray[np.float32], margin: NDArray[np.float32]) -> Assigned:
    return Assigned(labels, best, margin, (said == labels[:, None]).mean(1, dtype=np.float32), said)


def head_posteriors(head: Head, features: Features, rows: Rows, device: str) -> Tensor:
    """Posteriors by the head, (rows, clusters), on the device."""
    weights, bias = torch.from_numpy(head.weights).to(device), torch.from_numpy(head.bias).to(device)
    return F.linear(features.rows(rows, device), weights, bias).softmax(-1)


def joined(parts: Sequence[Assigned]) -> Assigned:
    """Several blocks of rows, concatenated."""
    return Assigned(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
