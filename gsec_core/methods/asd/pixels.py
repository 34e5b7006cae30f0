"""ASD on pixels: the instance classifier and FixMatch train networks on images of thumbnail size, as in the paper.

See `estimator` for a description of ASD, and for its sample, transitions, groups and loss, which are the same. Here both classifiers are wide
residual networks (Zagoruyko and Komodakis 2016, https://arxiv.org/abs/1605.07146), and views are augmented images, as in FixMatch (Sohn et al.
2020, https://arxiv.org/abs/2001.07685): weak views are flipped and shifted; RandAugment (Cubuk et al. 2019, https://arxiv.org/abs/1909.13719)
and cutout turn them into strong ones. FixMatch's rates, weights and moving average are the published ones; its schedule is shorter.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
import xxhash
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

from gsec_core.checkpoints import Checkpoints
from gsec_core.clustering.kmeans import sample_rows
from gsec_core.devices import threads_of_torch, usable_cores
from gsec_core.methods.asd.estimator import (
    BATCH_ROWS,
    INSTANCE_SHARE,
    LABELLED_ROWS,
    MOST_TRACKED,
    SAMPLES,
    Transitions,
    grouped,
    loss,
    matched,
    sample_size,
)
from gsec_core.methods.clusterer import Estimator
from gsec_core.methods.plan import seed_of

LEAST_SIDE, MOST_SIDE = 8, 96
"""Least and largest side of an image, in pixels."""

RATE, MOMENTUM, DECAY = 0.03, 0.9, 5e-4
"""Parameters of SGD with Nesterov momentum; weight decay does not apply to biases and batch normalisation."""
AVERAGE = 0.999
"""Decay of the moving average of a network's weights, by which clusters are predicted; smaller in the first steps."""

MAX_STEPS = 20_000

CHECKPOINT_STEPS = 100
"""Number of steps between checkpoints."""

_SHIFT = 8
"""A weak view is shifted by at most 1 / `_SHIFT` of a side."""
_SHARED = 16
"""Number of images of a batch that share an operation of RandAugment, or the place of the hole."""
_GREY = 127
_EVAL_ROWS = 512

_NETWORK, _SAMPLE, _TRACKED, _LOOK, _INSTANCE, _UNLABELLED, _LABELLED, _VIEW, _STRONG = range(1, 10)
"""Purposes of random numbers: each purpose has separate ones."""


def network(outputs: int, depth: int, width: int) -> nn.Module:
    """A wide residual network of three stages, for images (rows, 3, height, width) in -1 to 1; logits (rows, outputs)."""
    blocks = (depth - 4) // 6
    found = ResNetV2(
        [blocks] * 3,
        (16 * width, 32 * width, 64 * width),
        num_classes=outputs,
        stem_chs=16,
        basic=True,
        bottle_ratio=1.0,
        act_layer=nn.ReLU,
        norm_layer=BatchNormAct2d,
        conv_layer=create_conv2d,
    )
    found.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False))  # timm's stems are for large images
    return found


def check_depth(depth: int) -> None:
    """Raises ValueError for a depth that `network` cannot have."""
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth = {depth}: it must be 10, 16, 22, 28, and so on by 6.")


class Trained:
    """A network and its optimiser."""

    def __init__(self, outputs: int, depth: int, width: int, seed: int, device: str) -> None:
        with _seeded(seed):
            self.module = network(outputs, depth, width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parameters = dict(self.module.named_parameters())
        plain, decaying = ([p for p in self._parameters.values() if (p.ndim > 1) == decays] for decays in (False, True))
        groups: list[dict[str, Any]] = [{"params": plain}, {"params": decaying, "weight_decay": DECAY}]
        self._optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True)

    def descend(self, found: Tensor, rate: float) -> float:
        """Take an optimiser step on the loss ``found`` with learning rate ``rate``. Returns the loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        found.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(found.detach())

    def state(self) -> dict[str, NDArray[Any]]:
        """Weights, statistics of batch normalisation, and momentum."""
        momentum = {name: self._optimizer.state[p]["momentum_buffer"] for name, p in self._parameters.items() if p in self._optimizer.state}
        return _arrays("network", self.module.state_dict()) | _arrays("momentum", momentum)

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore a result of `state`."""
        _restore("network", self.module.state_dict(), state)
        momentum = {name: torch.zeros_like(p) for name, p in self._parameters.items() if f"momentum.{name}" in state}
        _restore("momentum", momentum, state)
        for name, values in momentum.items():
            self._optimizer.state[self._parameters[name]]["momentum_buffer"] = values


class Learner:
    """Training of ASD: first the instance classifier, then FixMatch on its sample. A step depends on the state, its number, the seed and the images alone.

    Parameters
    ----------
    images : uint8 (n, height, width, 3)
    n_clusters : int
        Number of clusters.
    max_steps : number of steps, three eighths of them for the instance classifier
    depth, width : depth and width of the network, as in WRN-28-2
    random_state : seed
    device : cpu, cuda or cuda:N
    """

    def __init__(
        self, images: NDArray[np.uint8], n_clusters: int, *, max_steps: int, depth: int = 28, width: int = 2, random_state: int = 0, device: str = "cpu"
    ) -> None:
        self.images, self.n_clusters, self.max_steps = images, n_clusters, max_steps
        self.depth, self.width, self.random_state, self.device = depth, width, random_state, device
        self.step = 0
        self.instance_steps = int(max_steps * INSTANCE_SHARE)
        self.size = sample_size(len(images), n_clusters)
        self._tracked = sample_rows(len(images), MOST_TRACKED, self._seed(_TRACKED))
        self.transitions = Transitions(len(self._tracked), self.size)
        self.sample = self._batch(len(images), self.size, 0, _SAMPLE).copy()
        """The image of each class, (size,)."""
        self.class_of = np.full(len(images), -1, np.int64)
        """The class of each image, -1 if it was not drawn yet, (n,)."""
        self.class_of[self.sample] = np.arange(self.size)
        self.drawn, self.labels = np.empty(0, np.int64), np.empty(0, np.int64)
        """The labelled images of FixMatch, and their labels."""
        self._trained = self._network(0, self.size)
        self._average: AveragedModel | None = None

    def train(self) -> Iterator[float]:
        """Train up to ``max_steps``; yields the loss after each step."""
        while self.step < self.max_steps:
            yield self.learn()

    def learn(self) -> float:
        """Take one training step. Returns its loss."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            if self.step < self.instance_steps:
                found = self._instance_step()
            else:
                if self._average is None:
                    self._label()
                    self._start_fixmatch()
                found = self._fixmatch_step(self.step - self.instance_steps)
        self.step += 1
        return found

    @property
    def averaged(self) -> nn.Module:
        """The network with averaged weights, which predicts clusters. Raises ValueError before the first step of FixMatch."""
        if self._average is None:
            raise ValueError(f"step = {self.step}: there are no clusters before step {self.instance_steps + 1}.")
        found: nn.Module = self._average.module
        return found

    def _instance_step(self) -> float:
        if self.step and self.step % -(-self.instance_steps // SAMPLES) == 0:
            self._draw(self.step // -(-self.instance_steps // SAMPLES))
        classes = self._batch(self.size, min(self.size, BATCH_ROWS), self.step, _INSTANCE)
        logits = self._trained.module.train()(_scaled(self._weak(self.sample[classes], _INSTANCE)))
        found = self._trained.descend(F.cross_entropy(logits, torch.from_numpy(classes).to(self.device)), RATE)
        look = self._batch(len(self._tracked), min(len(self._tracked), BATCH_ROWS), self.step, _LOOK)
        with torch.no_grad():
            logits = self._trained.module(_scaled(self._weak(self._tracked[look], _LOOK)))
        self.transitions.see(look, logits.argmax(1).cpu().numpy())
        return found

    def _draw(self, number: int) -> None:
        """Draw the next sample, whose images take over the classes."""
        sample = self._batch(len(self.images), self.size, number, _SAMPLE)
        logits = np.concatenate(list(log_posteriors(self._trained.module, self.images, sample, self.device)))
        self.sample = sample[matched(logits)]
        self.class_of[self.sample] = np.arange(self.size)

    def _label(self) -> None:
        self.drawn = np.flatnonzero(self.class_of >= 0)
        self.labels = grouped(self.transitions.counts, self.n_clusters)[self.class_of[self.drawn]]

    def _start_fixmatch(self) -> None:
        self._trained = self._network(1, self.n_clusters)
        self._average = AveragedModel(self._trained.module, avg_fn=_average, use_buffers=True)

    def _fixmatch_step(self, step: int) -> float:
        assert self._average is not None
        picked = self._batch(len(self.drawn), min(len(self.drawn), LABELLED_ROWS), step, _LABELLED)
        rows = self._batch(len(self.images), min(len(self.images), BATCH_ROWS), step, _UNLABELLED)
        module = self._trained.module.train()
        with torch.no_grad():
            weak = module(_scaled(self._weak(rows, _UNLABELLED)))
        strong = strong_views(self._weak(rows, _STRONG), self._seed(_STRONG, self.step))
        logits = module(_scaled(torch.cat([self._weak(self.drawn[picked], _LABELLED), strong])))
        labels = torch.from_numpy(self.labels[picked]).to(self.device)
        share = step / (self.max_steps - self.instance_steps)
        found = self._trained.descend(loss(logits[: len(picked)], labels, weak, logits[len(picked) :]), RATE * float(np.cos(7 * np.pi * share / 16)))
        self._average.update_parameters(module)
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        """State with which training can resume with identical results."""
        found = {"step": np.array(self.step), **self._trained.state()}
        if self._average is None:
            return found | {name: value.copy() for name, value in self._instances().items()}
        return found | {"drawn": self.drawn, "labels": self.labels} | _arrays("average", self._average.state_dict())

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Resume in a new learner, of the same images and parameters, from a result of `state`."""
        self.step = int(state["step"])
        if self.step > self.instance_steps:
            self.drawn, self.labels = state["drawn"], state["labels"]
            self._start_fixmatch()
            assert self._average is not None
            _restore("average", self._average.state_dict(), state)
        else:
            for name, values in self._instances().items():
                values[...] = state[name]
        self._trained.restore(state)

    def _instances(self) -> dict[str, NDArray[Any]]:
        """State of the instance classifier beside its network."""
        return {"sample": self.sample, "class_of": self.class_of, "last": self.transitions.last, "transitions": self.transitions.counts}

    def _network(self, number: int, outputs: int) -> Trained:
        return Trained(outputs, self.depth, self.width, self._seed(_NETWORK, number), self.device)

    def _weak(self, rows: NDArray[np.int64], purpose: int) -> Tensor:
        views = weak_views(self.images, rows, np.random.default_rng([self.random_state, _VIEW, purpose, self.step]))
        return torch.from_numpy(views).to(self.device).permute(0, 3, 1, 2)

    def _batch(self, n: int, rows: int, number: int, purpose: int) -> NDArray[np.int64]:
        """Batch ``number`` of ``rows`` out of ``n``, epoch by epoch; an incomplete batch at the end of an epoch is dropped."""
        epoch, place = divmod(number, n // rows)
        return _permutation(n, self.random_state, purpose, epoch)[place * rows : (place + 1) * rows]

    def _seed(self, purpose: int, number: int = 0) -> int:
        return seed_of(self.random_state, purpose, number)


def weak_views(images: NDArray[np.uint8], rows: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.uint8]:
    """Weak views of ``rows`` of images (n, height, width, 3): randomly flipped, and shifted by up to an eighth of a side, with reflected borders."""
    heights, widths = (_shifted(side, len(rows), random) for side in images.shape[1:3])
    widths = np.where(random.random((len(rows), 1)) < 0.5, widths, widths[:, ::-1])
    found: NDArray[np.uint8] = images[rows[:, None, None], heights[:, :, None], widths[:, None, :]]
    return found


def _shifted(side: int, n: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Pixel indices along a side after random shifts, (n, side)."""
    most = side // _SHIFT
    along = np.abs(np.arange(side) + random.integers(-most, most, size=(n, 1), endpoint=True))
    found: NDArray[np.int64] = side - 1 - np.abs(side - 1 - along)
    return found


_STRONG_STEPS = [
    v2.RandAugment(num_ops=1, fill=_GREY),
    v2.RandAugment(num_ops=1, fill=_GREY),
    v2.RandomErasing(p=1.0, scale=(0.0, 0.25), ratio=(1.0, 1.0), value=_GREY),
]


def strong_views(images: Tensor, seed: int) -> Tensor:
    """Strong views of uint8 images (rows, 3, height, width): two operations of RandAugment, then a square hole of up to half a side.

    torchvision treats all images of one call in the same way: in each of the three steps, random groups of 16 images share the random choice.
    """
    with _seeded(seed):
        for step in _STRONG_STEPS:
            order = torch.randperm(len(images))
            place = order.argsort().to(images.device)
            images = torch.cat([step(images[part.to(images.device)]) for part in torch.split(order, _SHARED)])[place]
    return images


@torch.no_grad()
def log_posteriors(module: nn.Module, images: NDArray[np.uint8], rows: NDArray[np.int64], device: str) -> Iterator[NDArray[np.float32]]:
    """Log-posteriors by a network of ``rows`` of images, (rows, outputs), block by block."""
    module.eval()
    for start in range(0, len(rows), _EVAL_ROWS):
        pixels = torch.from_numpy(images[rows[start : start + _EVAL_ROWS]]).to(device).permute(0, 3, 1, 2)
        yield module(_scaled(pixels)).log_softmax(1).cpu().numpy()


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator, the only one that torchvision and initialisers use, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@lru_cache(maxsize=8)
def _permutation(n: int, *key: int) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.random.default_rng(key).permutation(n)
    return found


def _average(average: Tensor, now: Tensor, steps: Tensor | int) -> Tensor:
    """Moving average that forgets its start quickly: the old average has weight at most (1 + steps) / (10 + steps)."""
    return average + (now - average) * (1 - min(AVERAGE, (1 + int(steps)) / (10 + int(steps))))


def _arrays(of: str, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {f"{of}.{name}": values.detach().cpu().numpy().copy() for name, values in tensors.items()}


def _restore(of: str, tensors: Mapping[str, Tensor], state: Mapping[str, NDArray[Any]]) -> None:
    with torch.no_grad():
        for name, values in tensors.items():
            values.copy_(torch.from_numpy(state[f"{of}.{name}"]))


class ASDPixels(Estimator):
    """Clusters small images with a network trained on their pixels; needs no embeddings.

    A reimplementation of Duan et al. 2025, https://arxiv.org/abs/2509.20976, who published no code.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    max_steps : int
        Number of steps: three eighths for the instance classifier, the others for FixMatch.
    depth, width : int
        Depth and width of the wide residual network; the depth is 6 times an integer, plus 4. FixMatch has 28 and 2 for images of 32 x 32.
    random_state : int
        Seed. Equal seeds, versions, processors and thread counts give equal labels.
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:N``.

    Attributes
    ----------
    labels_ : int32 (n_samples,), cluster 0 is the largest
    confidence_ : float32 (n_samples,), the label's posterior
    network_ : `torch.nn.Module`, with averaged weights
    order_ : int64 (n_clusters,), the output of the network for each cluster
    """

    def __init__(
        self, n_clusters: int = 10, *, max_steps: int = MAX_STEPS, depth: int = 28, width: int = 2, random_state: int = 0, device: str = "auto"
    ) -> None:
        self.n_clusters = n_clusters
        self.max_steps = max_steps
        self.depth = depth
        self.width = width
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        images: ArrayLike,
        y: object = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Callable[[int], None] = lambda steps: None,
    ) -> Self:
        """Fit on ``images``, uint8 (n_samples, height, width, 3), RGB, sides of 8 to 96 pixels.

        The folder ``checkpoint`` stores the state every 100 steps and at the end: an interrupted fit resumes from there, with the same result.
        ``progress`` is called with 1 after every step, and first with the number of steps that the checkpoint has done.

        Raises ValueError naming the parameter and its value, also if the checkpoint belongs to other images or parameters.
        """
        self.check_positive("n_clusters", "max_steps", "depth", "width")
        check_depth(self.depth)
        pixels = self._validated(images)
        if len(pixels) < max(2, self.n_clusters):
            raise ValueError(f"n_clusters = {self.n_clusters}: n_samples = {len(pixels)} is too few. Give at least n_clusters samples, and at least two.")
        parameters = {name: value for name, value in self.get_params().items() if name != "device"}
        device = self.resolved_device()
        with threads_of_torch(usable_cores()):
            learner = Learner(pixels, **parameters, device=device)
            kept = None if checkpoint is None else Checkpoints(checkpoint, parameters | {"images": _digest(pixels)})
            state = kept.latest() if kept else None
            if state is not None:
                learner.restore(state)
                progress(learner.step)
            for _ in learner.train():
                progress(1)
                if kept and (learner.step % CHECKPOINT_STEPS == 0 or learner.step == self.max_steps):
                    kept.save(learner.step, learner.state())
            self.network_ = learner.averaged
            found = _posteriors(self.network_, pixels, device)
        self.side_ = pixels.shape[1:3]
        self.order_ = np.argsort(-np.bincount(found.argmax(1), minlength=self.n_clusters), kind="stable")
        self.labels_, self.confidence_ = found[:, self.order_].argmax(1).astype(np.int32), found.max(1)
        return self

    def predict(self, images: ArrayLike) -> NDArray[np.int32]:
        """The cluster of each of ``images``, which must have the size of those in `fit`."""
        labels: NDArray[np.int32] = self.predict_proba(images).argmax(1).astype(np.int32)
        return labels

    def predict_proba(self, images: ArrayLike) -> NDArray[np.float32]:
        """Posteriors, (n_samples, n_clusters); arguments as of `predict`."""
        check_is_fitted(self)
        pixels = self._validated(images)
        if pixels.shape[1:3] != self.side_:
            raise ValueError(f"images: {_size(pixels.shape)} pixels, and it was fitted on {_size((0, *self.side_))}.")
        device = self.resolved_device()
        with threads_of_torch(usable_cores()):
            found = _posteriors(self.network_.to(device), pixels, device)
        return found[:, self.order_]

    def _validated(self, images: ArrayLike) -> NDArray[np.uint8]:
        pixels = np.asarray(images)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise ValueError(f"images: {pixels.dtype} {pixels.shape}: give uint8 (n_samples, height, width, 3).")
        if not len(pixels):
            raise ValueError("images: there are none.")
        if not all(LEAST_SIDE <= side <= MOST_SIDE for side in pixels.shape[1:3]):
            raise ValueError(f"images: {_size(pixels.shape)} pixels: each side must have {LEAST_SIDE} to {MOST_SIDE}. Resize them.")
        return pixels


def _posteriors(module: nn.Module, images: NDArray[np.uint8], device: str) -> NDArray[np.float32]:
    """Posteriors of all images."""
    found: NDArray[np.float32] = np.exp(np.concatenate(list(log_posteriors(module, images, np.arange(len(images)), device))))
    return found


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[2]}"


def _digest(pixels: NDArray[np.uint8]) -> str:
    """Digest of the images and their shape."""
    digest = xxhash.xxh3_128(str(pixels.shape).encode())
    for start in range(0, len(pixels), 4096):
        digest.update(np.ascontiguousarray(pixels[start : start + 4096]).data)
    return digest.hexdigest()
