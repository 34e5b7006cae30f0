"""SIC: Semantic-Enhanced Image Clustering (Cai et al. 2023, https://arxiv.org/abs/2208.09849).

Trains a linear head on the images. An image and its neighbour should have the same label, clusters should be of equal size, and labels should
agree with those given by nouns: the nouns nearest to the mean of each cluster's most confident images are averaged to the cluster's *semantic
centre*, and an image's label by nouns is the nearest semantic centre. With the mapping `adjusted`, these centres are computed again in every epoch.

The paper's code stops at the epoch whose labels are best against the ground truth. Here the last state is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from gsec_core.clustering.features import RADIUS, Features, Half, UnitFeatures
from gsec_core.clustering.kmeans import Rows, lloyd, sample_rows, sample_size
from gsec_core.clustering.linear import BIAS, WEIGHTS, linear, random_maps
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.smoothing import Allocate
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import CIFAR_ROWS, IMAGENET_ROWS, LinearMembers, Plan, Probe, UnitVectors, published_steps
from gsec_core.methods.sic import MANY_CLUSTERS, N_MEMBERS, Mapping, nouns
from gsec_core.text import NounSelection

BLOCK_MEMBERS = 5
"""Number of heads that are trained together, which combines their small matrix products into one."""

WEIGHT_DECAY = 1e-4
EPOCHS, LEAST_STEPS = 100, 3900
"""The least number of steps is that of STL-10, the smallest data set of the paper."""
MAPPED_STEPS = 39
"""Least number of steps between two mappings: an epoch of that data set. In smaller sets an epoch is only a step or two."""

SOFTNESS = 0.05
"""A head that starts at centres has as logits minus the squared distances times this factor."""

_MAX_ITER = 300
_SEMANTIC_ROWS, _MAPPED_ROWS = 256, 8192
"""Numbers of centres, and of images, whose logits are in memory at once."""

_LEAST = 1e-8


class Schedule(NamedTuple):
    """How members are trained; the values are those published for CIFAR-10, and with many clusters those for ImageNet."""

    most_rows: int
    """Images of that data set; see `published_steps`."""
    n_neighbors: int
    batch: int
    learning_rate: float
    balance: float
    """Weight of the entropy of the mean label."""
    surest: float
    """Number of most confident images by which a cluster is mapped, as a share of n / n_clusters."""
    nearest: int
    """Number of nouns per semantic centre."""


def schedule(n_clusters: int) -> Schedule:
    """The schedule for a number of clusters."""
    if n_clusters <= MANY_CLUSTERS:
        return Schedule(CIFAR_ROWS, 20, 128, 1e-4, 5.0, 0.9, 30)
    return Schedule(IMAGENET_ROWS, 50, 4096, 3e-4, 1.0, 0.5, 20)


def losses(logits: Tensor, neighbors: Tensor, labels: Tensor, balance: float, beta: float) -> tuple[Tensor, Tensor]:
    """SIC's loss (members,), and its gradient for ``logits`` and then for ``neighbors`` (2 rows, members, clusters).

    ``logits`` and ``neighbors`` (rows, members, clusters) are those of images and of a neighbour of each, ``labels`` (rows, members) are given by nouns.
    """
    p, q = logits.softmax(2), neighbors.softmax(2)
    both = p * q
    agreement = both.sum(2, keepdim=True)
    counts = agreement >= _LEAST  # where the logarithm is clamped, it has no gradient
    agreement.clamp_(min=_LEAST)
    sizes = p.mean(0)
    log_sizes = sizes.clamp(min=_LEAST).log()
    own = labels[..., None]
    unlike = agreement.log().add_(p.gather(2, own).clamp_(min=_LEAST).log_(), alpha=beta).mean(0)[:, 0]
    found = balance * (sizes * log_sizes).sum(1) - unlike
    uneven = log_sizes - (p * log_sizes).sum(2, keepdim=True)
    both.mul_(counts / agreement)
    of_images = (balance * uneven + beta + counts).mul_(p).sub_(both).scatter_add_(2, own, torch.full_like(own, -beta, dtype=p.dtype))
    of_neighbors = (q * counts).sub_(both)
    return found, torch.cat([of_images, of_neighbors]).div_(len(p))


@torch.no_grad()
def surest_rows(logits: Callable[[slice], Tensor], n: int, count: int) -> Tensor:
    """Numbers of the ``count`` rows with the largest values in each column, (columns, count); ``logits`` returns (rows, columns) for a slice of ``n`` rows."""
    best = rows = None
    for start in range(0, n, _MAPPED_ROWS):
        found = logits(slice(start, min(start + _MAPPED_ROWS, n))).T
        numbers = torch.arange(start, start + found.shape[1], device=found.device).expand_as(found)
        if best is not None and rows is not None:
            found, numbers = torch.cat([best, found], 1), torch.cat([rows, numbers], 1)
        best, places = found.topk(min(count, found.shape[1]), 1)
        rows = numbers.gather(1, places)
    assert rows is not None
    return rows


@torch.no_grad()
def semantic_centres(centres: Tensor, nouns: Tensor, nearest: int) -> Tensor:
    """Normalised means of the ``nearest`` nouns of each of ``centres`` (k, d); ``nouns`` (m, d) are unit vectors."""
    found = []
    for start in range(0, len(centres), _SEMANTIC_ROWS):
        near = (centres[start : start + _SEMANTIC_ROWS] @ nouns.T).topk(min(nearest, len(nouns)), 1).indices
        found.append(F.normalize(nouns[near].mean(1), dim=1))
    return torch.cat(found)


@torch.no_grad()
def mean_directions(features: Features, half: int, rows: Tensor, device: str) -> Tensor:
    """Normalised means (k, d) of k sets of rows (k, count) in one half. Reads the features once, forwards."""
    cluster = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    numbers, order = rows.flatten().sort(stable=True)
    cluster = cluster[order]
    sums = torch.zeros(len(rows), features.widths[half], device=device)
    for start in range(0, len(features), _MAPPED_ROWS):
        stop = min(start + _MAPPED_ROWS, len(features))
        first, last = (int(place) for place in torch.searchsorted(numbers, torch.tensor([start, stop], device=numbers.device)))
        if first < last:
            here = features.half(half, slice(start, stop), device)
            sums.index_add_(0, cluster[first:last], here[numbers[first:last] - start])
    return F.normalize(sums, dim=1)


@dataclass(frozen=True, kw_only=True)
class SICPlan(UnitVectors, LinearMembers, Plan):
    """See `Plan`. Members are linear maps of the image half; if the nouns are in another space, the second half is the images in that space."""

    max_steps: int | None
    mapping: Mapping
    beta: float
    start_at_centres: bool

    @property
    def block_size(self) -> int:
        return BLOCK_MEMBERS

    @property
    def abreast(self) -> int:
        return N_MEMBERS // BLOCK_MEMBERS

    def steps(self, n: int) -> int:
        return self.max_steps or published_steps(n, self.batch(n), EPOCHS, LEAST_STEPS, schedule(self.n_clusters).most_rows)

    def batch(self, n: int) -> int:
        return min(schedule(self.n_clusters).batch, n)

    def prepared_by_clusters(self, n: int) -> bool:
        return self.n_clusters > MANY_CLUSTERS  # then images have more neighbours

    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> UnitFeatures:
        return UnitFeatures(matrices, [1.0, 0.0][: len(matrices)])

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        n, steps, batch = len(features), self.steps(len(features)), self.batch(len(features))
        how, joint = schedule(self.n_clusters), len(features.halves) - 1
        assert features.nouns is not None, "there are nouns"
        vectors = F.normalize(torch.from_numpy(features.nouns.astype(np.float32)).to(self.device), dim=1)
        weight, bias = (part.to(self.device) for part in self._starts(features, block))
        optimizer = torch.optim.Adam([weight, bias], lr=how.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        probed, last = self._images(features, self.probed_rows(n)), torch.zeros(BLOCK_MEMBERS)
        probe = Probe(steps, lambda: linear(probed, weight, bias).argmax(2))
        centres = self._fixed(features, vectors, block) if self.mapping != "adjusted" else None
        for step, rows in enumerate(self.mini_batches(n, block, steps)):
            probe.look(step)
            if self.mapping == "adjusted" and step % max(n // batch, MAPPED_STEPS) == 0:
                centres = self._adjusted(features, vectors, weight, bias)
            assert centres is not None
            random = np.random.default_rng([self.random_state, block, step, 1])
            near = np.column_stack([rows, neighbors.image[rows]])[np.arange(batch), random.integers(neighbors.image.shape[1] + 1, size=batch)]
            x = self._images(features, np.concatenate([rows, near]))
            described = features.half(joint, rows, self.device) if joint else x[:batch]
            labels = (described @ centres.flatten(0, 1).T).view(batch, BLOCK_MEMBERS, -1).argmax(2)
            logits, others = torch.split(linear(x, weight, bias), batch)
            last, gradient = losses(logits, others, labels, how.balance, self.beta)
            weight.grad, bias.grad = (gradient.flatten(1).T @ x).view_as(weight), gradient.sum(0)
            optimizer.step()
            progress(1)
        joined = F.pad(weight, (0, features.dimensions - weight.shape[2]))  # labels depend on the image half only
        arrays = (joined.cpu().numpy(), bias.cpu().numpy(), probe.changed(), last.tolist())
        return [Member({WEIGHTS: w.copy(), BIAS: b.copy()}, steps, float(moved), value) for w, b, moved, value in zip(*arrays, strict=True)]

    def _images(self, features: Features, rows: Rows) -> Tensor:
        """The image half of rows, (rows, d)."""
        return features.half(0, rows, self.device).mul_(RADIUS)

    def _starts(self, features: Features, block: int) -> tuple[Tensor, Tensor]:
        """Initial weights (members, clusters, d) of the image half, and bias (members, clusters)."""
        if self.start_at_centres:
            found = [self._centres(lambda rows: self._images(features, rows).cpu(), len(features), seed) for seed in self._seeds(block)]
            centres = torch.from_numpy(np.stack(found))
            return 2 * SOFTNESS * centres, -SOFTNESS * centres.square().sum(2)
        return random_maps(BLOCK_MEMBERS, self.n_clusters, features.widths[0], torch.Generator().manual_seed(self.seed(block)))

    def _fixed(self, features: Features, nouns: Tensor, block: int) -> Tensor:
        """Semantic centres (members, clusters, d) of the mappings `centres` and `direct`, which do not depend on the heads."""
        joint = len(features.halves) - 1

        def centres(seed: int) -> Tensor:
            if self.mapping == "direct":
                return torch.from_numpy(self._centres(lambda rows: nouns.cpu()[torch.as_tensor(rows)], len(nouns), seed, spherical=True))
            found = torch.from_numpy(self._centres(lambda rows: features.half(joint, rows), len(features), seed, spherical=True))
            return semantic_centres(found.to(self.device), nouns, schedule(self.n_clusters).nearest)

        return torch.stack([centres(seed).to(self.device) for seed in self._seeds(block)])

    def _centres(self, take: Callable[[NDArray[np.int64]], Tensor], n: int, seed: int, *, spherical: bool = False) -> NDArray[np.float32]:
        sample = take(sample_rows(n, sample_size(self.n_clusters), seed)).numpy()
        threads = torch.get_num_threads()
        return lloyd(sample, self.n_clusters, n_init=1, max_iter=_MAX_ITER, random_state=seed, spherical=spherical, n_threads=threads)[0]

    def _seeds(self, block: int) -> list[int]:
        return [int(seed >> 1) for seed in np.random.SeedSequence([self.random_state, block]).generate_state(BLOCK_MEMBERS)]

    def _adjusted(self, features: Features, nouns: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Semantic centres (members, clusters, d) from the most confident images of the current heads."""
        n, how = len(features), schedule(self.n_clusters)
        count = max(1, int(how.surest * (n // self.n_clusters)))
        rows = surest_rows(lambda rows: linear(self._images(features, rows), weight, bias).flatten(1), n, count)
        directions = mean_directions(features, len(features.halves) - 1, rows, self.device)
        return semantic_centres(directions, nouns, how.nearest).view(BLOCK_MEMBERS, self.n_clusters, -1)


class SIC(Clusterer):
    """Clusters images by a linear head trained on neighbours and nouns.

    Cai et al. 2023, "Semantic-Enhanced Image Clustering", https://arxiv.org/abs/2208.09849. Requires ``nouns`` in `fit`. Each member is SIC
    with a different seed; the outer layer makes their consensus. Favours clusters of equal size. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_members : int or None
        Outer members; None = 10; 1 = SIC as published, without an outer layer.
    max_steps : int or None
        Steps of a member; None = the published 100 epochs of batches of 128 (4,096 with more than 100 clusters), at least 3,900, and at most
        those of 50,000 images (1,281,167 with more than 100 clusters).
    mapping : str
        Where a cluster's nouns come from: ``adjusted``, near the most confident images of the head, updated every epoch; ``centres``, near the
        centres of k-means of the images, computed once; ``direct``, from k-means of the nouns themselves.
    beta : float
        Weight of the labels given by nouns. The paper's code has 0.1 for CIFAR-10; 1 was chosen on development sets.
    start_at_centres : bool or None
        Whether heads start at the centres of k-means of the images, or else at random; None = only with more than 100 clusters.
    random_state : int
        Seed. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
    """

    NEEDS_NOUNS = True

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        n_members: int | None = None,
        max_steps: int | None = None,
        mapping: Mapping = "adjusted",
        beta: float = 1.0,
        start_at_centres: bool | None = None,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.n_members = n_members
        self.max_steps = max_steps
        self.mapping = mapping
        self.beta = beta
        self.start_at_centres = start_at_centres
        self.random_state = random_state
        self.device = device

    def noun_selection(self) -> NounSelection:
        return nouns(self.n_clusters)

    def plan(self) -> SICPlan:
        self.check_positive("n_clusters", "n_members", "max_steps")
        if self.mapping not in get_args(Mapping):
            raise ValueError(f"mapping = {self.mapping!r}: give one of {', '.join(get_args(Mapping))}.")
        if not self.lies("beta", 0):
            raise ValueError(f"beta = {self.beta!r}: it must be at least 0.")
        start_at_centres = self.n_clusters > MANY_CLUSTERS if self.start_at_centres is None else self.start_at_centres
        return SICPlan(
            **self.shared(N_MEMBERS),
            n_neighbors=schedule(self.n_clusters).n_neighbors,
            max_steps=self.max_steps,
            mapping=self.mapping,
            beta=self.beta,
            start_at_centres=start_at_centres,
        )
