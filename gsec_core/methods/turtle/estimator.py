"""TURTLE (Gadetsky et al. 2024, "Let Go of Your Labels with Unsupervised Transfer", https://arxiv.org/abs/2406.07236).

A task encoder, a linear map with a softmax for each space, proposes labels. At every step a new linear classifier for each space learns to
predict them in a few steps of Adam, and the task encoder then moves towards labels that the classifiers predict better. As the same label for
all images would be the easiest to predict, the entropy of the clusters' sizes is rewarded.

On processors that multiply bfloat16, rows, and the factors and results of each matrix product, are rounded to it. Parameters, labels and Adam's moments
are float32.

The last state is used. The paper chooses among learning rates by how well the labels of a run can be predicted; here there is one setting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsec_core import devices
from gsec_core.clustering.features import RADIUS, Features
from gsec_core.clustering.kmeans import Rows
from gsec_core.clustering.linear import random_maps
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import NonlinearModels, Plan, Probe, UnitVectors
from gsec_core.methods.turtle import N_MEMBERS

BLOCK_MEMBERS = 2
"""Number of members that are trained together, so that each matrix product reads the batch only once."""

N_NEIGHBORS = 20

BATCH_ROWS = 10_000
INNER_STEPS = 10
LEARNING_RATE = 1e-3
"""Learning rate of Adam, for both classifiers and task encoder."""

SCALE = RADIUS
"""Norm of a row in each space, for which the learning rates are meant."""

_BETAS, _EPS, _LEAST = (0.9, 0.999), 1e-8, 1e-8
_READ_ROWS = 2048
"""Rows that are read at once."""


def linear(maps: Tensor, z: Tensor) -> Tensor:
    """Logits (members, n_clusters, rows) by ``maps`` (members, n_clusters, d + 1), whose last column is the bias, of ``z`` (rows, d + 1), see `_Reader`.

    The product is computed in the number format of ``z``. Rows are last, since with few clusters torch takes longer for a softmax over the last
    dimension than for the matrix product.
    """
    return (maps.flatten(0, 1).to(z.dtype) @ z.T).to(maps.dtype).view(*maps.shape[:2], -1)


@torch.no_grad()
def learned(start: Tensor, z: Tensor, q: Tensor, steps: int = INNER_STEPS) -> Tensor:
    """Train classifiers of ``z`` (rows, d + 1) from ``start``: ``steps`` of Adam on the cross-entropy with labels ``q`` (members, n_clusters, rows).

    Classifiers are maps as of `linear`. Their logits must be small, as they are after few steps from a random start: no maximum is subtracted.
    """
    maps, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, steps + 1):
        error = linear(maps, z).exp_()
        error.div_(error.sum(1, keepdim=True)).sub_(q)
        gradient = (error.flatten(0, 1).to(z.dtype) @ z).to(maps.dtype).view_as(maps).div_(len(z))
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = square.sqrt().div_((1 - _BETAS[1] ** step) ** 0.5).add_(_EPS)
        maps.addcdiv_(mean, scale, value=-LEARNING_RATE / (1 - _BETAS[0] ** step))
    return maps


def loss(labels: Sequence[Tensor], predictions: Sequence[Tensor], gamma: float) -> Tensor:
    """TURTLE's outer loss (members,), from the labels of a mini-batch and the classifiers' logits, in each space.

    All arrays are (members, n_clusters, rows).
    """
    q = torch.stack(list(labels)).mean(0)
    predicted = torch.stack([-(q * logits.log_softmax(1)).sum(1).mean(1) for logits in predictions]).sum(0)
    sizes = torch.stack([part.mean(2) for part in labels])
    return predicted + gamma * (sizes * sizes.clamp(min=_LEAST).log()).sum((0, 2))


class _TaskEncoder(torch.nn.Module):
    """A linear map for each space and member, whose weights are parametrised by direction and norm of each row."""

    def __init__(self, widths: Sequence[int], n_clusters: int, generator: torch.Generator) -> None:
        super().__init__()
        weights, biases = zip(*(random_maps(BLOCK_MEMBERS, n_clusters, d, generator) for d in widths), strict=True)
        self.directions = torch.nn.ParameterList(weights)
        self.norms = torch.nn.ParameterList([weight.norm(dim=2, keepdim=True) for weight in weights])
        self.biases = torch.nn.ParameterList([bias[..., None] for bias in biases])

    def maps(self) -> list[Tensor]:
        """The maps of each space, as of `linear`."""
        parts = zip(self.directions, self.norms, self.biases, strict=True)
        return [torch.cat([norm * torch.nn.functional.normalize(direction, dim=2), bias], 2) for direction, norm, bias in parts]

    def forward(self, spaces: Sequence[Tensor]) -> list[Tensor]:
        """Labels (members, n_clusters, rows) in each space."""
        return [linear(maps, z).softmax(1) for maps, z in zip(self.maps(), spaces, strict=True)]


class _Reader:
    """Reads rows of the features: (rows, d + 1) in each space, with norm `SCALE` and a last column of ones, as `devices.product_dtype`.

    Each reading overwrites the one before.
    """

    def __init__(self, features: Features, rows: int, device: str) -> None:
        self._features, self._device = features, device
        self._read = [torch.ones(rows, d + 1, device=device, dtype=devices.product_dtype(device)) for d in features.widths]

    def __call__(self, rows: NDArray[np.int64]) -> list[Tensor]:
        for number, z in enumerate(self._read):
            for start in range(0, len(rows), _READ_ROWS):
                part = self._features.half(number, rows[start : start + _READ_ROWS], self._device)
                torch.mul(part, SCALE, out=z[start : start + len(part), :-1])
        return self._read


@dataclass(frozen=True)
class Spaces(NonlinearModels):
    """Members with a linear map for each space as predictors: mean of the labels over the spaces; see `ensemble.Models`."""

    @property
    def n_clusters(self) -> int:
        return int(self.members[0]["bias"].shape[1])

    @property
    def values_a_row(self) -> int:
        return int(max(2 * len(self) * self.members[0]["bias"].size, self.members[0]["weights"].shape[1]))

    def logits(self, features: Features, rows: Rows, device: str) -> Tensor:
        spaces = [SCALE * features.half(number, rows, device) for number in range(len(features.halves))]
        return torch.stack([self._logits(member, spaces) for member in self.members], 1)

    def _logits(self, member: Mapping[str, NDArray[np.float32]], spaces: Sequence[Tensor]) -> Tensor:
        weights = torch.split(torch.from_numpy(member["weights"]), [space.shape[1] for space in spaces], 1)
        parts = zip(weights, torch.from_numpy(member["bias"]), spaces, strict=True)
        labels = [torch.addmm(bias.to(space.device), space, weight.to(space.device).T).log_softmax(1) for weight, bias, space in parts]
        return torch.stack(labels).logsumexp(0)

    def head_start(self, permutations: NDArray[np.int32], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The mean map of all members and spaces: with one space it is that of linear members, with two an approximation."""
        n_spaces = len(self.members[0]["bias"])
        weights, bias = np.zeros((self.n_clusters, dimensions), np.float32), np.zeros(self.n_clusters, np.float32)
        for member, permutation in zip(self.members, permutations, strict=True):
            # In the joined features, the part of a row in each space is shorter by this square root.
            weights[permutation] += member["weights"] / np.float32(len(self) * n_spaces**0.5)
            bias[permutation] += member["bias"].mean(0) / np.float32(len(self))
        return weights, bias


@dataclass(frozen=True, kw_only=True)
class TURTLEPlan(UnitVectors, Plan):
    """See `Plan`. A space is a half of the features."""

    max_steps: int
    gamma: float

    @property
    def block_size(self) -> int:
        return BLOCK_MEMBERS

    @property
    def abreast(self) -> int:
        return N_MEMBERS // BLOCK_MEMBERS

    def steps(self, n: int) -> int:
        return self.max_steps

    def batch(self, n: int) -> int:
        return min(n, BATCH_ROWS)

    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        return {"weights": (self.n_clusters, sum(widths)), "bias": (len(widths), self.n_clusters)}

    def models(self, members: Sequence[Member]) -> Spaces:
        return Spaces([member.parameters for member in members])

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        n, batch = len(features), self.batch(len(features))
        generator = torch.Generator().manual_seed(self.seed(block))
        encoder = _TaskEncoder(features.widths, self.n_clusters, generator).to(self.device)
        optimizer = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE, betas=_BETAS, eps=_EPS, fused=True)
        probed_rows = self.probed_rows(n)
        probed = _Reader(features, len(probed_rows), self.device)(probed_rows)
        probe = Probe(self.max_steps, lambda: torch.stack(encoder(probed)).mean(0).argmax(1).T)
        read = _Reader(features, batch, self.device)
        spaces = read(np.arange(batch))
        last = torch.zeros(BLOCK_MEMBERS)
        for step in range(self.max_steps):
            probe.look(step)
            if batch < n:
                spaces = read(np.sort(np.random.default_rng([self.random_state, block, step]).choice(n, batch, replace=False)))
            labels = encoder(spaces)
            q = torch.stack(labels).mean(0).detach()
            starts = (random_maps(BLOCK_MEMBERS, self.n_clusters, d, generator) for d in features.widths)
            cold = [torch.cat([weight, bias[..., None]], 2).to(self.device) for weight, bias in starts]
            predictions = [linear(learned(start, z, q), z) for start, z in zip(cold, spaces, strict=True)]
            found = loss(labels, predictions, self.gamma)
            optimizer.zero_grad()
            found.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            last = found.detach()
            progress(1)
        with torch.no_grad():
            maps = encoder.maps()
            weights = torch.cat([found[..., :-1] for found in maps], 2).cpu().numpy()
            bias = torch.stack([found[..., -1] for found in maps], 1).cpu().numpy()
        parts = zip(weights, bias, probe.changed(), last.tolist(), strict=True)
        return [Member({"weights": w.copy(), "bias": b.copy()}, self.max_steps, float(moved), value) for w, b, moved, value in parts]


class TURTLE(Clusterer):
    """Clusters images by the labels that linear classifiers on their embeddings learn most easily.

    Gadetsky et al. 2024, https://arxiv.org/abs/2406.07236. With ``text``, which may be any second space of the same images, such as
    the embeddings of another encoder, the labels must be easy to learn in both. Each member is TURTLE with a different seed; the outer layer
    makes their consensus. Favours clusters of equal size; for unequal sizes, see ``gamma``. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_members : int or None
        Outer members; None = 4; 1 = TURTLE as published, without an outer layer.
    max_steps : int
        Outer steps of a member.
    gamma : float
        Weight of the entropy of the clusters' sizes. With 0, clusters die out.
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
        max_steps: int = 6000,
        gamma: float = 10.0,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.n_members = n_members
        self.max_steps = max_steps
        self.gamma = gamma
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: object = None, *, text: Any = None, **others: Any) -> "TURTLE":
        """See `Clusterer.fit`. ``X`` may also be a list of two spaces, (n_samples, d) each; the second is then used as ``text``."""
        X, text = _spaces(X, text, others.get("nouns"))
        return super().fit(X, text=text, **others)

    def _posteriors(self, X: Any, text: Any, joint: Any) -> Iterator[NDArray[np.float32]]:
        """See `Clusterer._posteriors`. ``X`` may be a list of two spaces, as in `fit`."""
        return super()._posteriors(*_spaces(X, text, joint), joint)

    def plan(self) -> TURTLEPlan:
        self.check_positive("n_clusters", "n_members", "max_steps")
        if not self.lies("gamma", 0):
            raise ValueError(f"gamma = {self.gamma!r}: it must be at least 0.")
        return TURTLEPlan(**self.shared(N_MEMBERS), n_neighbors=N_NEIGHBORS, max_steps=self.max_steps, gamma=self.gamma)


def _spaces(X: Any, text: Any, nouns: Any) -> tuple[Any, Any]:
    """``X`` and ``text``, from a list of two spaces if ``X`` is one. Raises ValueError if texts are given beside it."""
    if not (isinstance(X, list | tuple) and X and np.ndim(X[0]) == 2):
        return X, text
    if len(X) != 2:
        raise ValueError(f"X: it is a list of {len(X)} matrices. Give a matrix, or a list of two.")
    if text is not None or nouns is not None:
        raise ValueError("X: it has two spaces; do not give text or nouns as well.")
    return X[0], X[1]
