"""The bilevel training of one block of outer members.

In each outer step, a task encoder proposes soft labels q of a mini-batch; in a few inner steps, a BatchEnsemble head on each
half of the features learns to predict them; then the task encoder moves towards labels that the heads could learn.
The scheme is TURTLE's (Gadetsky et al. 2024, https://arxiv.org/abs/2406.07236), with the heads of GSEC (Li et al. 2026,
https://arxiv.org/abs/2605.12961). Its settings cover two designs. GSEC's design starts at random, its heads teach each other
across halves, and its outer loss rewards clusters of equal size. Our default starts every member from a separate k-means
and instead rewards equal labels of neighbours, with TEMI's loss (Adaloglou et al. 2023,
https://arxiv.org/abs/2303.17896), which lets sizes differ.

No ground truth is used: the published training keeps the state that scores best against it, this one keeps the last.

The members of a block share the mini-batches and nothing else: losses are summed over members, gradients are
clipped for each member separately, and a member that has stopped early is stored as it was then.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import sample_rows
from gsec_core.clustering.linear import BIAS, WEIGHTS, linear, training_dtype
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.clustering.starts import LinearStart, kmeans_starts
from gsec_core.methods.gsec.batch_ensemble import BatchEnsembleHeads, uniform
from gsec_core.methods.plan import PROBE_ROWS, PROBE_STEPS, seed_of

_MARGINAL_DECAY = 0.9

FURTHER_STEPS, FURTHER_LR, HEADS_ALONE = 40, 2e-3, 10
"""For training members further: number of outer steps, learning rate, and number of first steps in which only the heads, which start at random, learn."""


@dataclass(frozen=True)
class Training:
    """Settings of the training; they do not depend on the data set."""

    block_size: int
    """Number of members that are trained together in one computation."""
    from_kmeans: bool
    """Whether members start from k-means, or at random."""
    max_steps: int
    tol: float
    """A member stops when at most this share of the probed labels changed over its last 10 steps; 0 = it never stops early."""
    batch_rows: int
    batch_rows_per_cluster: int
    """A mini-batch has at least this number of rows per cluster, as far as `batch_rows_at_most` allows."""
    batch_rows_at_most: int
    inner_steps: int
    inner_lr: float
    outer_lr: float
    """Falls linearly to ``last_lr`` over ``max_steps``."""
    last_lr: float
    inner_weight_decay: float
    outer_weight_decay: float
    max_norm: float
    """Gradients of a member with a larger norm are clipped to this norm."""
    heads: float
    """Outer loss: weight of the cross-entropy between q and the heads' predictions."""
    balance: float
    """Outer loss: weight of the entropy of the batch's mean label."""
    pairs: float
    """Outer loss: weight of the agreement of neighbours."""
    beta: float
    """Outer loss: exponent of the agreement of neighbours; below 1 keeps labels softer."""
    distillation: float
    """Inner loss: weight of the distillation, whose teacher is the head of the other half on a neighbour."""
    temperature: float
    """Inner loss: temperature of the distillation."""
    cosine: float
    """Inner loss: weight of the agreement of the halves' logits."""
    entropy: float
    """Inner loss: weight of the mean entropy of the predicted labels of single images. Below 0 it rewards uncertainty."""

    def batch(self, n: int, n_clusters: int) -> int:
        """Rows of a mini-batch of ``n``."""
        return min(n, max(self.batch_rows, min(self.batch_rows_per_cluster * n_clusters, self.batch_rows_at_most)))


class _Batch(NamedTuple):
    """A mini-batch on the device, in the number format of the training."""

    halves: list[Tensor]
    """For each half (1 + neighbours, rows, p): the rows themselves, followed by their neighbours in this half if there is distillation."""
    z: Tensor
    """(rows, dimensions): the joined features of the rows; if neighbours are to agree, followed by those of one neighbour of each row."""


def train_block(
    features: Features,
    neighbors: Neighbors,
    training: Training,
    *,
    n_clusters: int,
    ensemble_size: int,
    random_state: int,
    block: int,
    device: str,
    progress: Callable[[int], None],
    start: Sequence[Member] = (),
) -> list[Member]:
    """Train the `block_size` members from number ``block * block_size``, or train the members ``start`` further.

    The result depends on the arguments alone: training an interrupted block again gives the same members.
    ``progress`` is called with 1 after every outer step.
    """
    # A seed belongs to the member, whichever block it is in.
    seeds = [seed_of(random_state, block * training.block_size + member) for member in range(len(start) or training.block_size)]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    probe = sample_rows(len(features), PROBE_ROWS, random_state)
    alone = 0  # number of first steps in which only the heads learn
    if start:
        training, alone = replace(training, max_steps=FURTHER_STEPS, outer_lr=FURTHER_LR, last_lr=0.0, tol=0.0), HEADS_ALONE
        starts = [_as_trained(member, features.rows(probe)) for member in start]
    elif training.from_kmeans:
        starts = kmeans_starts(features, n_clusters, [seed % 2**31 for seed in seeds])
    else:
        starts = [_random_start(features.dimensions, n_clusters, generator) for generator in generators]
    encoder = _TaskEncoder(starts).to(device)
    heads = nn.ModuleList([BatchEnsembleHeads(p, n_clusters, ensemble_size, generators) for p in features.widths]).to(device)
    inner = _optimizer(heads, training.inner_lr, training.inner_weight_decay)
    outer = _optimizer(encoder, training.outer_lr, training.outer_weight_decay)
    watch = _Watch(features.rows(probe, device), len(seeds), training.tol)
    rows = training.batch(len(features), n_clusters)
    dtype = training_dtype(n_clusters, device) if training.from_kmeans else torch.float32  # as published
    for step in range(training.max_steps):
        outer.param_groups[0]["lr"] = training.outer_lr + (training.last_lr - training.outer_lr) * step / training.max_steps
        random = np.random.default_rng([random_state, block, step])
        batch = _draw(features, neighbors, training, rows, random, device, dtype)
        proposed = encoder(batch.z)
        target = proposed[:rows].detach().softmax(-1)
        for views in _views(batch, training, random):
            logits = [head(view) for head, view in zip(heads, views, strict=True)]
            _descend(inner, inner_losses(logits, target, training, features.weights), training)
        with torch.no_grad():
            prediction = mean_logits([head(half[0]) for head, half in zip(heads, batch.halves, strict=True)], features.weights)
        losses = outer_losses(proposed, prediction, training, encoder.marginal)
        if step >= alone:
            _descend(outer, losses, training)
        progress(1)
        if (step + 1) % PROBE_STEPS == 0 and watch.look(step + 1, encoder, losses):
            break
    return watch.members(step + 1, encoder, losses)


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean of the halves' logits, each (rows, members, clusters)."""
    mean = weights[0] * logits[0]
    for weight, half in zip(weights[1:], logits[1:], strict=True):
        mean = mean.add(half, alpha=weight)
    return mean


def inner_losses(logits: Sequence[Tensor], target: Tensor, training: Training, weights: Sequence[float]) -> Tensor:
    """Inner loss, i.e. that of the heads, for each member, (members,).

    ``logits``: for each half, logits of the rows and, if there is distillation, then of one neighbour of each row,
    (rows or 2 rows, members, clusters). ``target``: soft labels q, (rows, members, clusters).
    """
    rows = len(target)
    parts = [_parts(half, rows) for half in logits]
    own = [part[0] for part in parts]
    loss = _cross_entropy(target, mean_logits(own, weights))
    if training.entropy:
        for half in own:
            loss = loss + training.entropy * _entropy(half)
    if len(logits) == 2 and training.distillation:
        (image, image_neighbor), (text, text_neighbor) = parts
        distilled = _distillation(image, text_neighbor, training.temperature) + _distillation(text, image_neighbor, training.temperature)
        loss = loss + training.distillation * distilled
    if len(logits) == 2 and training.cosine:
        cosine = torch.cosine_similarity(own[0], own[1], dim=-1).clamp(1e-6, 1)  # opposed logits get no gradient, as published
        loss = loss - training.cosine * cosine.log().mean(0)
    return loss


def outer_losses(logits: Tensor, prediction: Tensor, training: Training, marginal: Tensor) -> Tensor:
    """Outer loss, i.e. that of the task encoder, for each member, (members,).

    ``logits``: logits of the rows and, if neighbours are to agree, then of one neighbour of each row, (rows or 2 rows,
    members, clusters). ``prediction``: the heads' logits, (rows, members, clusters). ``marginal``: running mean of the labels,
    (members, clusters), which this function updates with the batch.
    """
    rows = len(prediction)
    log_q, *log_neighbor = _parts(logits.log_softmax(-1), rows)
    q = log_q.exp()
    loss = training.heads * _cross_entropy(q, prediction)
    if training.balance:
        mean = q.mean(0)
        loss = loss + training.balance * torch.xlogy(mean, mean).sum(-1)
    if training.pairs:
        with torch.no_grad():
            marginal.lerp_(q.mean(0), 1 - _MARGINAL_DECAY)
        loss = loss + training.pairs * pair_losses(log_q, log_neighbor[0], marginal, training.beta)
    return loss


def pair_losses(log_q: Tensor, log_neighbor: Tensor, marginal: Tensor, beta: float) -> Tensor:
    """TEMI's loss of each member, (members,): -mean_i w_i log sum_c (q_ic q_jc)^beta / p_c for a neighbour j of i.

    The weight w_i = sum_c q_ic q_jc, without gradient, is the member's own probability that both have the same label.
    ``log_q``, ``log_neighbor``: log labels, (rows, members, clusters). ``marginal``: p, (members, clusters).
    """
    both = log_q + log_neighbor
    with torch.no_grad():
        weight = both.exp().sum(-1)
    return -(weight * (beta * both - marginal.clamp(min=1e-8).log()).logsumexp(-1)).mean(0)


def _parts(logits: Tensor, rows: int) -> Sequence[Tensor]:
    """Split ``logits`` into rows and, if present, neighbours. Slices would get gradients of full size, and so would splitting where there are no neighbours."""
    return torch.split(logits, rows) if len(logits) > rows else [logits]


def _cross_entropy(target: Tensor, logits: Tensor) -> Tensor:
    return -(target * logits.log_softmax(-1)).sum(-1).mean(0)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean(0)


def _distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distillation loss (Hinton et al. 2015), with gradients through the teacher, too."""
    log_s, log_t = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(-1).mean(0)


class _TaskEncoder(nn.Module):
    """A linear map from features to clusters for each member of a block."""

    marginal: Tensor
    """(members, clusters): running mean of each member's labels."""

    def __init__(self, starts: Sequence[LinearStart]) -> None:
        super().__init__()
        weights, biases, sizes = zip(*starts, strict=True)
        self.weight, self.bias = nn.Parameter(torch.stack(weights)), nn.Parameter(torch.stack(biases))
        self.register_buffer("marginal", torch.stack(sizes))

    def forward(self, z: Tensor) -> Tensor:
        return linear(z, self.weight, self.bias)


class _Watch:
    """Stores each member in the state at which its labels have settled."""

    def __init__(self, probe: Tensor, n_members: int, tol: float) -> None:
        self._probe = probe
        self._tol = tol
        self._labels: Tensor | None = None
        self._changed = [1.0] * n_members
        self._settled: dict[int, Member] = {}

    def look(self, step: int, encoder: _TaskEncoder, losses: Tensor) -> bool:
        """To be called after every PROBE_STEPS outer steps. Returns whether all members have settled."""
        with torch.no_grad():
            labels = encoder(self._probe).argmax(-1)
        if self._labels is not None:
            self._changed = (labels != self._labels).float().mean(0).tolist()
        self._labels = labels
        if self._tol:
            self._settled |= {number: member for number, member in enumerate(self.members(step, encoder, losses)) if member.changed <= self._tol}
        return len(self._settled) == len(self._changed)

    def members(self, step: int, encoder: _TaskEncoder, losses: Tensor) -> list[Member]:
        """All members; those that have settled are returned as they were then."""
        weights, bias = (parameter.detach().cpu().numpy() for parameter in (encoder.weight, encoder.bias))
        now = [
            Member({WEIGHTS: w.copy(), BIAS: b.copy()}, step, changed, float(loss))
            for w, b, changed, loss in zip(weights, bias, self._changed, losses.detach(), strict=True)
        ]
        return [self._settled.get(number, member) for number, member in enumerate(now)]


def _draw(features: Features, neighbors: Neighbors, training: Training, count: int, random: np.random.Generator, device: str, dtype: torch.dtype) -> _Batch:
    n = len(features)
    rows = np.sort(random.choice(n, count, replace=False))  # sorted, so that a memory map is read forwards
    halves = []
    taught = bool(training.distillation) and neighbors.text is not None  # distillation is between halves
    for number, found in enumerate(neighbors.halves):
        wanted = np.concatenate([rows[None], found[rows].T]) if taught else rows[None]
        halves.append(features.half(number, wanted.ravel(), device).view(*wanted.shape, -1))
    z = features.joined([half[0] for half in halves])
    if training.pairs:
        # The half from which the neighbour is taken is drawn with the halves' weights as probabilities.
        kind = random.random(count) < features.weights[0]
        column = random.integers(neighbors.image.shape[1], size=count)
        pairs = np.where(kind, neighbors.image[rows, column], neighbors.halves[-1][rows, column])
        z = torch.cat([z, features.rows(pairs.astype(np.int64), device)])
    return _Batch([half.to(dtype) for half in halves], z.to(dtype))


def _views(batch: _Batch, training: Training, random: np.random.Generator) -> Iterator[list[Tensor]]:
    """The inputs of the heads for each inner step: the rows and, if there is distillation, then one random neighbour of each row."""
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
    """Take an optimiser step on the sum of the members' losses, with each member's gradient clipped to ``max_norm`` separately."""
    optimizer.zero_grad()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    if math.isfinite(training.max_norm):
        _clip(optimizer, training.max_norm)
    optimizer.step()


def _clip(optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factors = (max_norm / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


def _optimizer(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def _as_trained(member: Member, rows: Tensor) -> LinearStart:
    """A member as a start; the sizes are its mean soft label over ``rows`` (rows, dimensions)."""
    weight, bias = (torch.from_numpy(member.parameters[name].copy()) for name in (WEIGHTS, BIAS))
    return LinearStart(weight, bias, torch.addmm(bias, rows, weight.T).softmax(1).mean(0))


def _random_start(dimensions: int, n_clusters: int, generator: torch.Generator) -> LinearStart:
    weight, bias = uniform((n_clusters, dimensions), dimensions, generator), uniform((n_clusters,), dimensions, generator)
    return LinearStart(weight, bias, torch.full((n_clusters,), 1 / n_clusters))
