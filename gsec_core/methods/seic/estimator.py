"""Stage one of SEIC (Li et al. 2025, "Self-Enhanced Image Clustering with Cross-Modal Semantic Consistency", https://arxiv.org/abs/2508.01254).

Images and their text counterparts are mapped linearly into one space, normalised to unit length, and labelled there by linear heads. The losses
ask both sides to agree on every image, on the images of each cluster, and on its centre, and favour clusters that had few images in recent
batches. No ground truth is used; the last state is kept. A member predicts with its image side.

There is no official code. Losses, weights and schedule are those of an implementation from the paper and its appendix; the rules for many
clusters are this module's own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import Rows
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import CIFAR_ROWS, IMAGENET_ROWS, NonlinearModels, Plan, Probe, UnitVectors, published_steps
from gsec_core.methods.seic import N_MEMBERS, SELECTION
from gsec_core.text import NounSelection

EPOCHS, LEAST_STEPS = 200, 800
"""The least number of steps is that of STL-10, the smallest data set of the paper."""

INSTANCES, CLUSTERS, CENTRES, BALANCE = 0.5, 1.0, 1.0, 2.0
"""Weights of the terms of the loss."""

TEMPERATURE = 0.5
"""Temperature of the agreement of clusters and of centres."""

FIRST_SCALE, LARGEST_SCALE = 1 / 0.07, 100.0
"""Initial and largest scale of the agreement of images; the scale is trained."""

SIZES_MOMENTUM, LEAST_SIZE, LARGEST_WEIGHT = 0.9, 0.01, 5.0
"""Momentum and minimum of the running cluster sizes (shares of the images), and maximum of the weights derived from them."""

LEARNING_RATE = 5e-3

N_NEIGHBORS = 50

_LEAST = 1e-8


class Schedule(NamedTuple):
    """How long a member is trained, and on what batches."""

    steps: int
    batch: int


def schedule(n: int, n_clusters: int, max_steps: int | None = None) -> Schedule:
    """The schedule for ``n`` images; ``max_steps`` replaces the published epochs.

    With many clusters a batch has eight rows per cluster, up to 8,192, since most clusters would have no row in a smaller batch.
    """
    wanted = max(1024, min(8 * n_clusters, 8192))
    batch, largest = min(wanted, n), CIFAR_ROWS if wanted == 1024 else IMAGENET_ROWS
    return Schedule(max_steps or published_steps(n, batch, EPOCHS, LEAST_STEPS, largest), batch)


def agreement(first: Tensor, second: Tensor, scale: Tensor | float) -> Tensor:
    """InfoNCE loss of two sets of unit vectors (rows, d), in both directions: rows of the same number are positives, all others negatives."""
    similarities = scale * first @ second.T
    return ((similarities.logsumexp(0) + similarities.logsumexp(1)) / 2 - similarities.diagonal()).mean()


def cluster_agreement(images: Tensor, texts: Tensor) -> Tensor:
    """`agreement` of the clusters of two labellings (rows, clusters) of the same rows: of their normalised columns."""
    return agreement(F.normalize(images.T, dim=1), F.normalize(texts.T, dim=1), 1 / TEMPERATURE)


def centre_agreement(images: Tensor, texts: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`agreement` of the clusters' image and text centres. ``a`` and ``b`` (rows, d) are unit vectors with labels ``images`` and ``texts`` (rows, clusters).

    A centre is the direction of the sum of the vectors assigned to the cluster, weighted by their labels. Clusters that are empty on one
    side are left out; with fewer than two clusters the loss is 0.
    """
    (image_centres, image_sizes), (text_centres, text_sizes) = _centres(images, a), _centres(texts, b)
    used = (image_sizes > 0) & (text_sizes > 0)
    if int(used.sum()) < 2:
        return images.new_zeros(())
    return agreement(image_centres[used], text_centres[used], 1 / TEMPERATURE)


def _centres(labels: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the clusters, (clusters, d), and numbers of rows assigned to them, (clusters,)."""
    own = F.one_hot(labels.argmax(1), labels.shape[1])
    return F.normalize((own * labels).T @ vectors, dim=1), own.sum(0)


def balance(images: Tensor, texts: Tensor, sizes: Tensor) -> Tensor:
    """Loss of uneven cluster sizes: negative entropy of the mean labels, in which clusters of smaller running size (clusters,) have more weight."""
    weights = (1 / (len(sizes) * sizes)).clamp(max=LARGEST_WEIGHT)
    weights = weights / weights.mean()
    return sum((weights * torch.xlogy(mean, mean.clamp(min=_LEAST))).sum() for mean in (images.mean(0), texts.mean(0)))  # type: ignore[return-value]


def loss(images: Tensor, texts: Tensor, a: Tensor, b: Tensor, scale: Tensor, sizes: Tensor) -> Tensor:
    """Loss of SEIC's first stage. ``images`` and ``texts`` (rows, clusters) are the labels of the unit vectors ``a`` and ``b`` (rows, d)."""
    return (
        INSTANCES * agreement(a, b, scale)
        + CLUSTERS * cluster_agreement(images, texts)
        + CENTRES * centre_agreement(images, texts, a, b)
        + BALANCE * balance(images, texts, sizes)
    )


def followed(sizes: Tensor, labels: Tensor) -> Tensor:
    """Running sizes (clusters,), of sum 1, after a batch of labels (rows, clusters). With many clusters the minimum is a tenth of the mean size."""
    found = F.one_hot(labels.argmax(1), len(sizes)).to(sizes.dtype).mean(0)
    moved = (SIZES_MOMENTUM * sizes + (1 - SIZES_MOMENTUM) * found).clamp(min=min(LEAST_SIZE, 0.1 / len(sizes)))
    return moved / moved.sum()


class _Side(nn.Module):
    """Network of one side: linear, normalisation to unit length, linear, softmax."""

    def __init__(self, d: int, shared: int, n_clusters: int, generator: torch.Generator) -> None:
        super().__init__()
        # A layer that initialised itself would draw from torch's global generator, which belongs to the user.
        self.projection, self.head = (nn.utils.skip_init(nn.Linear, *widths) for widths in ((d, shared), (shared, n_clusters)))  # type: ignore[no-untyped-call]
        for layer in (self.projection, self.head):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (rows, n_clusters) and unit vectors (rows, shared)."""
        vectors = F.normalize(self.projection(x), dim=1)
        return self.head(vectors).softmax(1), vectors

    @torch.no_grad()
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Arrays of the side, as they are stored in a member."""
        found = {"projection": self.projection.weight, "projection_bias": self.projection.bias, "weights": self.head.weight, "bias": self.head.bias}
        return {name: array.cpu().numpy().copy() for name, array in found.items()}


@dataclass(frozen=True)
class ImageSides(NonlinearModels):
    """The image sides of several members as predictors; see `ensemble.Models`."""

    @property
    def n_clusters(self) -> int:
        return len(self.members[0]["bias"])

    @property
    def values_a_row(self) -> int:
        return max(len(self) * self.n_clusters, sum(self.members[0]["projection"].shape))

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        x = features.half(0, rows, device)
        return torch.stack([self._logits(member, x) for member in self.members], 1)

    def _logits(self, member: Mapping[str, NDArray[np.float32]], x: Tensor) -> Tensor:
        projection, offset, weights, bias = (torch.from_numpy(member[name]).to(x.device) for name in ("projection", "projection_bias", "weights", "bias"))
        return F.linear(F.normalize(F.linear(x, projection, offset), dim=1), weights, bias)


@dataclass(frozen=True, kw_only=True)
class SEICPlan(UnitVectors, Plan):
    """See `Plan`."""

    max_steps: int | None

    @property
    def abreast(self) -> int:
        return N_MEMBERS

    def steps(self, n: int) -> int:
        return schedule(n, self.n_clusters, self.max_steps).steps

    def batch(self, n: int) -> int:
        return schedule(n, self.n_clusters).batch

    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        d, shared = widths
        return {"projection": (shared, d), "projection_bias": (shared,), "weights": (self.n_clusters, shared), "bias": (self.n_clusters,)}

    def models(self, members: Sequence[Member]) -> ImageSides:
        return ImageSides([member.parameters for member in members])

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        n, steps = len(features), self.steps(len(features))
        generator = torch.Generator().manual_seed(self.seed(block))
        image_side, text_side = (_Side(width, features.widths[1], self.n_clusters, generator).to(self.device) for width in features.widths)
        log_scale = nn.Parameter(torch.tensor(FIRST_SCALE, device=self.device).log())
        optimizer = torch.optim.Adam([*image_side.parameters(), *text_side.parameters(), log_scale], lr=LEARNING_RATE, fused=True)
        sizes = torch.full((self.n_clusters,), 1 / self.n_clusters, device=self.device)
        probed, last = features.half(0, self.probed_rows(n), self.device), torch.zeros(())
        probe = Probe(steps, lambda: image_side(probed)[0].argmax(1))
        for step, rows in enumerate(self.mini_batches(n, block, steps)):
            probe.look(step)
            images, a = image_side(features.half(0, rows, self.device))
            texts, b = text_side(features.half(1, rows, self.device))
            found = loss(images, texts, a, b, log_scale.exp(), sizes)
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                log_scale.clamp_(max=np.log(LARGEST_SCALE))
                sizes = followed(sizes, images)
            last = found.detach()
            progress(1)
        return [Member(image_side.arrays(), steps, float(probe.changed()), float(last))]


class SEIC(Clusterer):
    """Clusters images by linear maps of their embeddings and of their text counterparts that agree with each other.

    The first stage of Li et al. 2025, "Self-Enhanced Image Clustering with Cross-Modal Semantic Consistency",
    https://arxiv.org/abs/2508.01254. Each member is SEIC with a different seed; the outer layer makes their consensus. Favours clusters of
    equal size. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_members : int or None
        Outer members; None = 4; 1 = SEIC as published, without an outer layer.
    max_steps : int or None
        Steps of a member; None = the published 200 epochs of batches of 1,024 (with more than 128 clusters, eight rows per cluster, at most
        8,192), at least 800, and at most those of 50,000 images (1,281,167 with more than 128 clusters).
    random_state : int
        Seed. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
    """

    NEEDS_TEXT = True

    def __init__(
        self, n_clusters: int = 10, *, n_members: int | None = None, max_steps: int | None = None, random_state: int = 0, device: str = "auto"
    ) -> None:
        self.n_clusters = n_clusters
        self.n_members = n_members
        self.max_steps = max_steps
        self.random_state = random_state
        self.device = device

    def noun_selection(self) -> NounSelection:
        return SELECTION

    def plan(self) -> SEICPlan:
        """See `Clusterer.plan`."""
        self.check_positive("n_clusters", "n_members", "max_steps")
        return SEICPlan(**self.shared(N_MEMBERS), n_neighbors=N_NEIGHBORS, max_steps=self.max_steps)
