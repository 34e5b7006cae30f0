"""TEMI (Adaloglou et al. 2023, "Exploring the Limits of Deep Image Clustering using Pretrained Models", https://arxiv.org/abs/2303.17896).

Trains several heads on frozen embeddings, each with a teacher that follows it slowly. A head is trained to give an image and one of its
neighbours the same label, by pointwise mutual information, which takes the clusters' sizes into account. The weight of a pair is decided by all
heads together, so that a neighbour of another class has little weight.

The heads are the members of the outer layer. They are sorted by their mean loss over the last epoch, so that a single member is the one
with which the paper predicts; as there, a head predicts with its teacher. The paper's evaluation then takes the best state by the ground
truth, which is not done here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gsec_core import devices
from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import Rows
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import CIFAR_ROWS, IMAGENET_ROWS, NonlinearModels, Plan, Probe, UnitVectors, published_steps
from gsec_core.methods.temi import N_HEADS

N_NEIGHBORS = 50

HIDDEN, BOTTLENECK = 512, 256
TEMPERATURE = 0.1
TEACHER_MOMENTUM, SIZES_MOMENTUM = 0.996, 0.9
LEARNING_RATE, RATE_ROWS = 1e-4, 256
"""Learning rate of AdamW for a mini-batch of `RATE_ROWS` rows; for other sizes it is scaled in proportion."""
WEIGHT_DECAY = 1e-4

MANY_CLUSTERS = 1000
"""From this number of clusters the schedule is the one that the paper has for ImageNet."""
EPOCHS, LEAST_STEPS = 200, 7200
"""The least number of steps is that of STL-10, the smallest data set of the paper."""

_LEAST = 1e-8


class Schedule(NamedTuple):
    """How long heads are trained, and on what batches."""

    steps: int
    batch: int


def schedule(n: int, n_clusters: int, max_steps: int | None = None) -> Schedule:
    """The schedule for ``n`` images; ``max_steps`` replaces the published epochs."""
    batch, largest = (512, CIFAR_ROWS) if n_clusters < MANY_CLUSTERS else (1024, IMAGENET_ROWS)
    batch = min(batch, n)
    return Schedule(max_steps or published_steps(n, batch, EPOCHS, LEAST_STEPS, largest), batch)


def pair_weights(teachers: Tensor, teachers_of_neighbors: Tensor) -> Tensor:
    """Weight of each pair, (rows,): probability that its images have the same label, mean over heads. Labels are (heads, rows, clusters)."""
    return (teachers * teachers_of_neighbors).sum(2).mean(0)


def losses(students: Tensor, teachers: Tensor, sizes: Tensor, weights: Tensor, beta: float) -> Tensor:
    """TEMI's loss of each head, (heads,), in one direction: ``students`` and ``teachers`` are labels of the two images of each pair.

    Labels are (heads, rows, clusters), ``sizes`` (heads, clusters), ``weights`` (rows,).
    """
    agreement = ((students * teachers).clamp(min=_LEAST**2) ** beta / sizes[:, None].clamp(min=_LEAST)).sum(2)
    return -(weights * agreement.clamp(min=_LEAST).log()).mean(1)


class _Heads(nn.Module):
    """Several perceptrons, computed together: linear, GELU, linear, normalisation, and cosines with the clusters, times a factor for each cluster."""

    def __init__(self, d: int, n_clusters: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.stack([nn.init.trunc_normal_(torch.empty(*shape), std=0.02, generator=generator) for generator in generators]))

        self.first, self.second, self.last = normal(HIDDEN, d), normal(BOTTLENECK, HIDDEN), normal(n_clusters, BOTTLENECK)
        self.first_bias, self.second_bias = (nn.Parameter(torch.zeros(len(generators), width)) for width in (HIDDEN, BOTTLENECK))
        self.factors = nn.Parameter(torch.ones(len(generators), n_clusters, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (heads, rows, n_clusters) of ``x`` (rows, d)."""
        return said(dict(self.named_parameters()), x)


def said(heads: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits (heads, rows, n_clusters) of ``x`` (rows, d), by heads with the given arrays.

    The first two products are in the number format of ``x``. The third is not, since its results are divided by a small temperature.
    """
    n_heads, dtype = len(heads["first"]), x.dtype
    first, first_bias, second, second_bias = (heads[name].to(dtype) for name in ("first", "first_bias", "second", "second_bias"))
    hidden = torch.addmm(first_bias.flatten(), x, first.flatten(0, 1).T)  # the first layers of all heads are one product
    hidden = nn.functional.gelu(hidden).view(len(x), n_heads, -1).transpose(0, 1)
    inner = torch.baddbmm(second_bias[:, None], hidden, second.transpose(1, 2))
    inner = nn.functional.normalize(inner.to(heads["last"].dtype), dim=2)
    clusters = heads["factors"] * nn.functional.normalize(heads["last"], dim=2)
    return torch.bmm(inner, clusters.transpose(1, 2)) / TEMPERATURE


@dataclass(frozen=True)
class Teachers(NonlinearModels):
    """The teachers of several heads as predictors; see `ensemble.Models`."""

    @property
    def n_clusters(self) -> int:
        return len(self.members[0]["last"])

    @property
    def values_a_row(self) -> int:
        return len(self) * (self.n_clusters + 2 * HIDDEN)

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        x = features.half(0, rows, device)
        heads = {name: torch.from_numpy(np.stack([member[name] for member in self.members])).to(device) for name in self.members[0]}
        return said(heads, x).transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class TEMIPlan(UnitVectors, Plan):
    """See `Plan`."""

    max_steps: int | None
    beta: float

    @property
    def block_size(self) -> int:
        return N_HEADS

    def steps(self, n: int) -> int:
        return schedule(n, self.n_clusters, self.max_steps).steps

    def batch(self, n: int) -> int:
        return schedule(n, self.n_clusters).batch

    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        return {
            "first": (HIDDEN, widths[0]),
            "first_bias": (HIDDEN,),
            "second": (BOTTLENECK, HIDDEN),
            "second_bias": (BOTTLENECK,),
            "last": (self.n_clusters, BOTTLENECK),
            "factors": (self.n_clusters, 1),
        }

    def models(self, members: Sequence[Member]) -> Teachers:
        return Teachers([member.parameters for member in members])

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        n, (steps, batch) = len(features), schedule(len(features), self.n_clusters, self.max_steps)
        seeds = np.random.SeedSequence([self.random_state, block]).generate_state(N_HEADS, np.uint64) >> 1
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        students, teachers = (_Heads(features.widths[0], self.n_clusters, generators).to(self.device) for _ in range(2))
        teachers.load_state_dict(students.state_dict())
        teachers.requires_grad_(False)
        matrices = [value for name, value in students.named_parameters() if not name.endswith("bias") and name != "factors"]
        others = [value for name, value in students.named_parameters() if name.endswith("bias") or name == "factors"]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY, fused=True)
        epoch_steps = n // batch
        rate, warm_up = LEARNING_RATE * batch / RATE_ROWS, max(1, steps // 10)
        sizes = torch.full((N_HEADS, self.n_clusters), 1 / self.n_clusters, device=self.device)
        dtype = devices.product_dtype(self.device)
        probed = features.half(0, self.probed_rows(n), self.device)
        probe = Probe(steps, lambda: teachers(probed).argmax(2).T)
        total, counted = torch.zeros(N_HEADS, device=self.device), 0
        for step, rows in enumerate(self.mini_batches(n, block, steps)):
            probe.look(step)
            near = np.random.default_rng([self.random_state, block, step, 1]).integers(neighbors.image.shape[1], size=batch)
            x = torch.cat([features.half(0, which, self.device) for which in (rows, neighbors.image[rows, near].astype(np.int64))]).to(dtype)
            with torch.no_grad():
                taught = teachers(x).softmax(2)
                sizes.lerp_(taught.mean(1), 1 - SIZES_MOMENTUM)
                t, t_near = taught.split(batch, 1)
                weights = pair_weights(t, t_near)
            s, s_near = students(x).softmax(2).split(batch, 1)
            found = (losses(s_near, t, sizes, weights, self.beta) + losses(s, t_near, sizes, weights, self.beta)) / 2
            optimizer.zero_grad()
            found.mean().backward()  # type: ignore[no-untyped-call]
            if step < epoch_steps < steps:  # the last layer is frozen in the first epoch
                students.last.grad = students.factors.grad = None
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / warm_up)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(list(teachers.parameters()), list(students.parameters()), 1 - TEACHER_MOMENTUM)
            if step >= steps - epoch_steps:
                total, counted = total + found.detach(), counted + 1
            progress(1)
        changed, mean = probe.changed(), (total / counted).cpu().numpy()
        arrays = {name: value.detach().cpu().numpy() for name, value in teachers.named_parameters()}
        return [
            Member({name: array[head].copy() for name, array in arrays.items()}, steps, float(changed[head]), float(mean[head]))
            for head in np.argsort(mean, kind="stable")
        ]


class TEMI(Clusterer):
    """Clusters images by heads that give an image and its neighbours the same label.

    Adaloglou et al. 2023, https://arxiv.org/abs/2303.17896. The heads of one training are the members; the outer layer makes their
    consensus. Texts are used only for smoothing the consensus. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_members : int or None
        Outer members; None = 4, the heads of one training; 1 = TEMI as published, the head with the smallest loss.
    max_steps : int or None
        Steps of the heads; None = the published epochs (200 of batches of 512; from 1,000 clusters, of 1,024), at least 7,200, and at most
        those of 50,000 images (1,281,167 from 1,000 clusters).
    beta : float
        Exponent of the agreement, above .5. At 1 cluster sizes are free; smaller values make sizes more equal and labels softer.
    random_state : int
        Seed. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.
    """

    def __init__(
        self,
        n_clusters: int = 10,
        *,
        n_members: int | None = None,
        max_steps: int | None = None,
        beta: float = 0.6,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.n_members = n_members
        self.max_steps = max_steps
        self.beta = beta
        self.random_state = random_state
        self.device = device

    def plan(self) -> TEMIPlan:
        self.check_positive("n_clusters", "n_members", "max_steps")
        if not (self.lies("beta", 0.5, 1) and self.beta > 0.5):
            raise ValueError(f"beta = {self.beta!r}: it must be above 0.5, where one label for all images would be as good as any, and at most 1.")
        return TEMIPlan(**self.shared(N_HEADS), n_neighbors=N_NEIGHBORS, max_steps=self.max_steps, beta=self.beta)
