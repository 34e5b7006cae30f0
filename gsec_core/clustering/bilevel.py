"""GSEC's bilevel training of one block of outer members.

Outside, a task encoder proposes soft labels q of a mini-batch; inside, a BatchEnsemble head on each half of the
features learns to predict them for a few steps; then the task encoder moves towards what the heads could learn.
TURTLE's scheme (Gadetsky et al. 2024, https://arxiv.org/abs/2406.07236) with the losses of GSEC (Li et al. 2026,
https://arxiv.org/abs/2605.12961). Its published training keeps the state that scores best against ground truth; this one
keeps the last, and stops by itself when labels no longer change.

The members of a block see the same mini-batches and share nothing else: losses are summed over them, gradients are
clipped for each alone, and a member that has stopped is kept as it was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gsec_core.clustering.batch_ensemble import BatchEnsembleHeads, linear, uniform
from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import sample_rows

PROBE_ROWS = 4096
"""Rows whose labels tell whether a member still moves."""
PROBE_STEPS = 10


@dataclass(frozen=True)
class Training:
    """Settings of the training; the defaults are those of the published code, the same for all data sets."""

    n_members: int = 1
    block_size: int = 1
    """Members that are trained in one computation."""
    max_steps: int = 6000
    gamma: float = 50.0
    """Weight of the balance term, the entropy of the batch's mean label."""
    weighs_halves: bool = False
    """Whether the text half counts by `text_weight` or just as the image half."""
    batch_rows: int = 1000
    inner_steps: int = 10
    inner_lr: float = 1e-3
    outer_lr: float = 1e-2
    """Falls linearly to ``last_lr`` over ``max_steps``."""
    last_lr: float = 1e-7
    weight_decay: float = 1e-4
    max_norm: float = 1.0
    """Gradients of a member longer than this are cut to it."""
    distillation: float = 0.1
    """Weight of the neighbour's other half as teacher."""
    temperature: float = 2.0
    """Of the distillation."""
    cosine: float = 0.1
    """Weight of the agreement of the halves' logits."""
    entropy: float = -0.01
    """Weight of the entropy of single images' labels. Below 0, as in the published code, it rewards doubt."""


class Member(NamedTuple):
    """A trained task encoder: labels are softmax(z weights^T + bias)."""

    weights: NDArray[np.float32]
    """(n_clusters, dimensions of the features)."""
    bias: NDArray[np.float32]
    """(n_clusters,)."""
    steps: int
    """Outer steps until it stopped."""
    changed: float
    """Share of the probed labels that changed over its last 10 steps; 1 if there were fewer."""
    loss: float
    """Outer loss of its last step."""


class Neighbors(NamedTuple):
    """Row numbers of the neighbours of each row, (n, k), in each half."""

    image: NDArray[np.int32]
    text: NDArray[np.int32] | None


class _Batch(NamedTuple):
    """A mini-batch on the device, each half standardised."""

    halves: list[Tensor]
    """Each (1 + neighbours, rows, d): the rows themselves, then their neighbours in this half."""
    z: Tensor
    """(rows, dimensions): the rows' halves side by side, weighted."""


def train_block(
    features: Features,
    neighbors: Neighbors,
    training: Training,
    *,
    n_clusters: int,
    ensemble_size: int,
    tol: float,
    random_state: int,
    block: int,
    device: str,
    progress: Callable[[int], None],
) -> list[Member]:
    """Train the members ``block * block_size`` and following.

    Depends on nothing but the arguments: a block that was cut is trained again from its start, with an equal result.
    ``tol`` is the share of probed labels that may change over 10 steps for a member to count as settled; 0 = none stops early.
    ``progress`` is told of every outer step.
    """
    generators = [_generator(random_state, block * training.block_size + member) for member in range(training.block_size)]
    encoder = _TaskEncoder(features.dimensions, n_clusters, generators).to(device)
    heads = nn.ModuleList([BatchEnsembleHeads(d, n_clusters, ensemble_size, generators) for d in features.widths]).to(device)
    inner = _optimizer(heads, training.inner_lr, training.weight_decay)
    outer = _optimizer(encoder, training.outer_lr, training.weight_decay)
    probe = sample_rows(len(features), PROBE_ROWS, random_state)
    watch = _Watch(features.rows(probe, device), training.block_size, tol)
    for step in range(training.max_steps):
        outer.param_groups[0]["lr"] = training.outer_lr + (training.last_lr - training.outer_lr) * step / training.max_steps
        random = np.random.default_rng([random_state, block, step])
        batch = _draw(features, neighbors, training, random, device)
        target = encoder(batch.z).softmax(-1).detach()
        for views in _views(batch, training, random):
            logits = [head(view) for head, view in zip(heads, views, strict=True)]
            _descend(inner, inner_losses(logits, target, training, features.weights), training)
        with torch.no_grad():
            prediction = mean_logits([head(half[0]) for head, half in zip(heads, batch.halves, strict=True)], features.weights)
        losses = outer_losses(encoder(batch.z), prediction, training.gamma)
        _descend(outer, losses, training)
        progress(1)
        if (step + 1) % PROBE_STEPS == 0 and watch.look(step + 1, encoder, losses):
            break
    return watch.members(step + 1, encoder, losses)


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The halves' logits, each (rows, members, clusters), as one: their weighted mean."""
    return torch.stack([weight * half for weight, half in zip(weights, logits, strict=True)]).sum(0)


def inner_losses(logits: Sequence[Tensor], target: Tensor, training: Training, weights: Sequence[float]) -> Tensor:
    """Loss of the heads of each member, (members,).

    ``logits``: of each half, of the rows and then of a neighbour of each, (2 rows, members, clusters). ``target``: soft
    labels q, (rows, members, clusters).
    """
    rows = len(target)
    own = [half[:rows] for half in logits]
    loss = _cross_entropy(target, mean_logits(own, weights))
    for half in own:
        loss = loss + training.entropy * _entropy(half)
    if len(logits) == 2:
        (image, text), (image_neighbor, text_neighbor) = own, [half[rows:] for half in logits]
        distilled = _distillation(image, text_neighbor, training.temperature) + _distillation(text, image_neighbor, training.temperature)
        cosine = torch.cosine_similarity(image, text, dim=-1).clamp(1e-6, 1)  # opposed logits get no gradient, as published
        loss = loss + training.distillation * distilled - training.cosine * cosine.log().mean(0)
    return loss


def outer_losses(logits: Tensor, prediction: Tensor, gamma: float) -> Tensor:
    """Loss of the task encoder of each member, (members,): what the heads predict, and balance. Arguments (rows, members, clusters)."""
    q = logits.softmax(-1)
    mean = q.mean(0)
    return _cross_entropy(q, prediction) + gamma * torch.xlogy(mean, mean).sum(-1)


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * logits.log_softmax(-1)).sum(-1).mean(0)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean(0)


def _distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton et al. 2015, with gradients through the teacher too."""
    log_s, log_t = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean(0)


class _TaskEncoder(nn.Module):
    """A linear map from features to clusters for each member."""

    def __init__(self, d: int, n_clusters: int, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([uniform((n_clusters, d), d, generator) for generator in generators]))
        self.bias = nn.Parameter(torch.stack([uniform((n_clusters,), d, generator) for generator in generators]))

    def forward(self, z: Tensor) -> Tensor:
        return linear(z, self.weight, self.bias)


class _Watch:
    """Keeps each member as it is when its labels settle."""

    def __init__(self, probe: Tensor, n_members: int, tol: float) -> None:
        self._probe = probe
        self._tol = tol
        self._labels: Tensor | None = None
        self._changed = [1.0] * n_members
        self._settled: dict[int, Member] = {}

    def look(self, step: int, encoder: _TaskEncoder, losses: Tensor) -> bool:
        """After every PROBE_STEPS outer steps. True if every member has settled."""
        with torch.no_grad():
            labels = encoder(self._probe).argmax(-1)
        if self._labels is not None:
            self._changed = (labels != self._labels).float().mean(0).tolist()
        self._labels = labels
        for number, member in enumerate(self.members(step, encoder, losses)):
            if self._tol and member.changed <= self._tol:
                self._settled[number] = member
        return len(self._settled) == len(self._changed)

    def members(self, step: int, encoder: _TaskEncoder, losses: Tensor) -> list[Member]:
        """Every member: those that settled as they were then."""
        weights, bias = (parameter.detach().cpu().numpy() for parameter in (encoder.weight, encoder.bias))
        now = [
            Member(w.copy(), b.copy(), step, changed, float(loss)) for w, b, changed, loss in zip(weights, bias, self._changed, losses.detach(), strict=True)
        ]
        return [self._settled.get(number, member) for number, member in enumerate(now)]


def _draw(features: Features, neighbors: Neighbors, training: Training, random: np.random.Generator, device: str) -> _Batch:
    n = len(features)
    rows = np.sort(random.choice(n, min(training.batch_rows, n), replace=False))  # sorted, so that a file is read forwards
    halves = []
    for number, found in enumerate([neighbors.image] if neighbors.text is None else [neighbors.image, neighbors.text]):
        # Without a text half nobody is taught by neighbours.
        wanted = rows[None] if neighbors.text is None else np.concatenate([rows[None], found[rows].T])
        halves.append(features.half(number, wanted.ravel(), device).view(*wanted.shape, -1))
    return _Batch(halves, features.joined([half[0] for half in halves]))


def _views(batch: _Batch, training: Training, random: np.random.Generator) -> Iterator[list[Tensor]]:
    """For each inner step what each head sees: the rows, and after them one random neighbour of each."""
    rows = batch.halves[0].shape[1]
    for _ in range(training.inner_steps):
        views = []
        for half in batch.halves:
            neighbors = len(half) - 1
            if not neighbors:
                views.append(half[0])
                continue
            picked = torch.from_numpy((1 + random.integers(neighbors, size=rows)) * rows + np.arange(rows)).to(half.device)
            views.append(torch.cat([half[0], half.flatten(0, 1).index_select(0, picked)]))
        yield views


def _descend(optimizer: torch.optim.Optimizer, losses: Tensor, training: Training) -> None:
    """One step down the sum of the members' losses, with each member's gradient cut to ``max_norm`` by itself."""
    optimizer.zero_grad(set_to_none=True)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factors = (training.max_norm / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    optimizer.step()


def _optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def _generator(random_state: int, member: int) -> torch.Generator:
    """A member's own source of random starts, whatever block it is in."""
    seed = np.random.SeedSequence([random_state, member]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> 1))
