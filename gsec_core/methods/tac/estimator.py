"""TAC: two heads, one on images and one on their text counterparts, that teach each other (Li et al. 2024, https://arxiv.org/abs/2310.11989).

Each head is a perceptron with one hidden layer. The losses ask the clusters of each modality to agree with those of neighbours in the other
modality, an image to agree with its counterpart, and clusters to be of equal size. No ground truth is used; the last state is kept. A member
predicts with its image head. Batch normalisation is folded into the hidden layer at the end, so that the prediction for a row does not depend
on its batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import Rows
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import CIFAR_ROWS, IMAGENET_ROWS, NonlinearModels, Plan, Probe, UnitVectors, published_steps
from gsec_core.methods.tac import N_MEMBERS

MANY_CLUSTERS = 100
"""With more clusters, the schedule is the one that the paper has for its data sets of many classes."""

LEAST_STEPS = 180
"""The least number of steps is that of STL-10, the smallest data set of the paper."""

BALANCE = 5.0
"""Weight of the entropy of the mean label."""

N_NEIGHBORS = 50

LEARNING_RATE, BETAS = 1e-3, (0.9, 0.99)

_LEAST = 1e-8


class Schedule(NamedTuple):
    """How long a member is trained, and on what batches."""

    steps: int
    batch: int
    temperature: float
    """Temperature of the agreement of clusters."""


def schedule(n: int, n_clusters: int, max_steps: int | None = None) -> Schedule:
    """The schedule for ``n`` images; ``max_steps`` replaces the published epochs."""
    epochs, batch, temperature, largest = (20, 512, 0.5, CIFAR_ROWS) if n_clusters <= MANY_CLUSTERS else (100, 8192, 5.0, IMAGENET_ROWS)
    batch = min(batch, n)
    return Schedule(max_steps or published_steps(n, batch, epochs, LEAST_STEPS, largest), batch, temperature)


def cluster_agreement(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Contrastive loss between the clusters of two labellings (rows, clusters) of the same rows.

    For each of the 2 K columns, normalised, the cross-entropy with its partner in the other labelling as the positive and the other
    2 K - 2 columns as negatives; mean over the columns.
    """
    columns = nn.functional.normalize(torch.cat([first, second], 1).T, dim=1)
    similarities = columns @ columns.T / temperature
    similarities = similarities.masked_fill(torch.eye(len(columns), dtype=torch.bool, device=columns.device), -torch.inf)
    partners = torch.arange(len(columns), device=columns.device).roll(first.shape[1])
    return nn.functional.cross_entropy(similarities, partners)


def loss(images: Tensor, texts: Tensor, image_neighbors: Tensor, text_neighbors: Tensor, temperature: float) -> Tensor:
    """TAC's loss of the labels (rows, clusters) of images, of their counterparts, and of one neighbour of each."""
    distilled = cluster_agreement(images, text_neighbors, temperature) + cluster_agreement(texts, image_neighbors, temperature)
    agreement = (images * texts).sum(1).clamp(min=_LEAST).log().mean()
    return distilled - agreement - BALANCE * (_entropy(images.mean(0)) + _entropy(texts.mean(0)))


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p.clamp(min=_LEAST)).sum()


class _Head(nn.Module):
    """Linear, batch normalisation, ReLU, linear, softmax."""

    def __init__(self, d: int, n_clusters: int, generator: torch.Generator) -> None:
        super().__init__()
        # A layer that initialised itself would draw from torch's global generator, which belongs to the user.
        self.hidden, self.last = (nn.utils.skip_init(nn.Linear, d, outputs) for outputs in (d, n_clusters))  # type: ignore[no-untyped-call]
        self.norm = nn.BatchNorm1d(d)
        for layer in (self.hidden, self.last):
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        labels: Tensor = self.last(self.norm(self.hidden(x)).relu()).softmax(1)
        return labels

    @torch.no_grad()
    def folded(self) -> dict[str, NDArray[np.float32]]:
        """Arrays of the head, with the batch normalisation (by its running statistics) folded into the hidden layer."""
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        factor = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        arrays = {
            "hidden_weights": self.hidden.weight * factor[:, None],
            "hidden_bias": (self.hidden.bias - self.norm.running_mean) * factor + self.norm.bias,
            "weights": self.last.weight,
            "bias": self.last.bias,
        }
        return {name: array.cpu().numpy().copy() for name, array in arrays.items()}


@dataclass(frozen=True)
class ImageHeads(NonlinearModels):
    """The image heads of several members as predictors; see `ensemble.Models`."""

    @property
    def n_clusters(self) -> int:
        return len(self.members[0]["bias"])

    @property
    def values_a_row(self) -> int:
        return max(len(self) * self.n_clusters, 2 * len(self.members[0]["hidden_bias"]))

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        x = features.half(0, rows, device)
        return torch.stack([self._logits(member, x) for member in self.members], 1)

    def _logits(self, member: Mapping[str, NDArray[np.float32]], x: Tensor) -> Tensor:
        weights, bias, last, offset = (torch.from_numpy(member[name]).to(x.device) for name in ("hidden_weights", "hidden_bias", "weights", "bias"))
        return torch.addmm(offset, torch.addmm(bias, x, weights.T).relu_(), last.T)


@dataclass(frozen=True, kw_only=True)
class TACPlan(UnitVectors, Plan):
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
        d = widths[0]
        return {"hidden_weights": (d, d), "hidden_bias": (d,), "weights": (self.n_clusters, d), "bias": (self.n_clusters,)}

    def models(self, members: Sequence[Member]) -> ImageHeads:
        return ImageHeads([member.parameters for member in members])

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        n, (steps, batch, temperature) = len(features), schedule(len(features), self.n_clusters, self.max_steps)
        assert neighbors.text is not None, "there is a text half"
        generator = torch.Generator().manual_seed(self.seed(block))
        image_head, _ = heads = [_Head(width, self.n_clusters, generator).to(self.device) for width in features.widths]
        optimizer = torch.optim.Adam([parameter for head in heads for parameter in head.parameters()], lr=LEARNING_RATE, betas=BETAS, fused=True)
        probed, last = features.half(0, self.probed_rows(n), self.device), torch.zeros(())
        probe = Probe(steps, lambda: _labels(image_head, probed))
        for step, rows in enumerate(self.mini_batches(n, block, steps)):
            probe.look(step)
            random = np.random.default_rng([self.random_state, block, step, 1])
            near = [half[rows, random.integers(half.shape[1], size=batch)].astype(np.int64) for half in neighbors.halves]
            images, texts = (head(features.half(half, rows, self.device)) for half, head in enumerate(heads))
            others = [head(features.half(half, near[half], self.device)) for half, head in enumerate(heads)]
            found = loss(images, texts, others[0], others[1], temperature)
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            last = found.detach()
            progress(1)
        return [Member(image_head.folded(), steps, float(probe.changed()), float(last))]


def _labels(head: _Head, x: Tensor) -> Tensor:
    head.eval()
    labels: Tensor = head(x).argmax(1)
    head.train()
    return labels


class TAC(Clusterer):
    """Clusters images by their embeddings and text counterparts, with two heads that teach each other.

    Li et al. 2024, "Image Clustering with External Guidance", https://arxiv.org/abs/2310.11989. Each member is TAC with a different seed;
    the outer layer makes their consensus. Favours clusters of equal size. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_members : int or None
        Outer members; None = 10; 1 = TAC as published, without an outer layer.
    max_steps : int or None
        Steps of a member; None = the published epochs (20 of batches of 512; with more than 100 clusters, 100 of 8,192), at least 180, and at
        most those of 50,000 images (1,281,167 with more than 100 clusters).
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

    def plan(self) -> TACPlan:
        """See `Clusterer.plan`."""
        self.check_positive("n_clusters", "n_members", "max_steps")
        return TACPlan(**self.shared(N_MEMBERS), n_neighbors=N_NEIGHBORS, max_steps=self.max_steps)
