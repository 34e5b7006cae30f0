"""ASD (Duan et al. 2025, "An Adaptor for Triggering Semi-Supervised Learning to Out-of-Box Serve Deep Image Clustering", https://arxiv.org/abs/2509.20976).

A semi-supervised learner needs some labelled images. ASD makes them: it draws a sample large enough to contain every cluster, and trains a
classifier with one class for each image. During training, the predicted classes of other images change. Classes between which
images change often are similar, and similar classes form one cluster. Each drawn image is then labelled with the cluster of its class.

There is no published code, and the paper trains networks on pixels. This module applies its mechanism to frozen embeddings: both classifiers
are linear, dropout of features replaces augmentation, and the learner is FixMatch (Sohn et al. 2020, https://arxiv.org/abs/2001.07685).
Classes are grouped by spectral clustering, where the authors' earlier code (SoC, AAAI 2024) uses k-medoids. The last state is used.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import betaln
from scipy.stats import hypergeom
from sklearn.cluster import SpectralClustering
from torch import Tensor
from torch.nn import functional as F

from gsec_core.clustering.features import RADIUS, Features
from gsec_core.clustering.kmeans import Rows, sample_rows
from gsec_core.clustering.linear import BIAS, WEIGHTS
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Neighbors
from gsec_core.methods.asd import N_MEMBERS
from gsec_core.methods.clusterer import Clusterer
from gsec_core.methods.plan import Leg, LinearMembers, Probe, PseudoLabels, ResumablePlan, State, UnitVectors

MAX_STEPS = 1600

N_NEIGHBORS = 20

SURE = 0.999
"""Probability that a sample hits every cluster, if clusters are of equal size."""
IMAGES_PER_CLUSTER, MOST_IMAGES = 12, 4096
"""Least number of sampled images per cluster, and largest number in all, which takes precedence."""

INSTANCE_SHARE = 3 / 8
"""Share of all steps that train the instance classifier."""
SAMPLES = 10
"""Number of samples that the instance classifier learns, one after the other."""
INSTANCE_RATE, INSTANCE_DROPOUT, LOOK_DROPOUT = 1e-2, 0.3, 0.1

MOST_TRACKED = 16_384
"""Largest number of images whose changes of class are counted. If they were a million, each would be seen only once and none would change."""

BATCH_ROWS, LABELLED_ROWS = 448, 64
"""Numbers of unlabelled and labelled images in a step of FixMatch: seven to one."""
THRESHOLD = 0.95
"""Least confidence at which FixMatch uses its own prediction as the label of an image."""
RATE, WEAK_DROPOUT, STRONG_DROPOUT = 1e-3, 0.1, 0.3

_LEAST_AFFINITY = 1e-6
_HOPELESS = 10.0


def chance_of_all(n: int, n_clusters: int, n_drawn: int) -> float:
    """Probability, to 1e-4, that ``n_drawn`` of ``n`` images, drawn without replacement, hit every one of ``n_clusters`` clusters of equal size.

    By inclusion-exclusion over the missed clusters: the sum over i of (-1)^i C(K, i) C(n - i n / K, n_drawn) / C(n, n_drawn).
    """
    missed = np.arange(n_clusters + 1)
    binomials = -betaln(n_clusters - missed + 1, missed + 1) - np.log(n_clusters + 1)
    logs = binomials + hypergeom.logpmf(0, n, np.rint(missed * n / n_clusters), n_drawn)
    if logs[1] > np.log(_HOPELESS):  # expected number of missed clusters: the probability is at most exp(-10), and the sum would suffer from cancellation
        return 0.0
    return float(np.clip((np.exp(logs) * (-1.0) ** missed).sum(), 0, 1))


def sample_size(n: int, n_clusters: int) -> int:
    """Size of a sample of ``n`` images: enough to hit every cluster, and twelve per cluster; at most n / 4 and 4,096, but at least one per cluster."""
    least = bisect_left(range(n), SURE, lo=1, key=lambda n_drawn: chance_of_all(n, n_clusters, n_drawn))
    return max(n_clusters, min(max(least, IMAGES_PER_CLUSTER * n_clusters), n // 4, MOST_IMAGES))


def matched(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """The image that takes over each class, (n_classes,): the one-to-one assignment with the largest sum of ``logits`` (images, classes) (Hungarian)."""
    images, classes = linear_sum_assignment(logits, maximize=True)
    found: NDArray[np.int64] = images[np.argsort(classes)]
    return found


class Transitions:
    """Counts how often images change from class to class between two predictions.

    Attributes
    ----------
    last : int64 (n_images,), class of each image at its last prediction, -1 before the first
    counts : int32 (n_classes, n_classes), number of changes from row to column
    """

    def __init__(self, n_images: int, n_classes: int) -> None:
        self.last = np.full(n_images, -1, np.int64)
        self.counts = np.zeros((n_classes, n_classes), np.int32)

    def see(self, images: NDArray[np.int64], classes: NDArray[np.int64]) -> None:
        """Record new predictions ``classes`` of ``images``, which must be distinct."""
        before = self.last[images]
        changed = (before >= 0) & (before != classes)
        np.add.at(self.counts, (before[changed], classes[changed]), 1)
        self.last[images] = classes


def grouped(transitions: NDArray[np.number[Any]], n_clusters: int) -> NDArray[np.int64]:
    """The cluster of each class, (n_classes,), by spectral clustering of ``transitions`` (n_classes, n_classes) in both directions.

    Normalised cut; clusters are derived from the eigenvectors by pivoted QR (Damle et al. 2019), which needs no random start.
    """
    if len(transitions) == n_clusters:
        return np.arange(n_clusters)
    affinity = (transitions + transitions.T) / 2 + _LEAST_AFFINITY
    found = SpectralClustering(n_clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=0).fit_predict(affinity)
    return np.asarray(found, np.int64)


def loss(labelled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """FixMatch's loss: cross-entropy of ``labelled`` with ``labels``, and of ``strong`` with the prediction of ``weak`` where that is confident.

    All but ``labels`` (rows,) are logits (rows, n_clusters), the last two of the same images; no gradient flows through ``weak``.
    """
    confidence, pseudo = weak.detach().softmax(1).max(1)
    return F.cross_entropy(labelled, labels) + (F.cross_entropy(strong, pseudo, reduction="none") * (confidence >= threshold)).mean()


CLASS_OF, TRANSITIONS = "class_of", "transitions"
"""Names of arrays in a state: class of each image, -1 if it was not drawn; and counts of changes between classes."""


@dataclass(frozen=True, kw_only=True)
class SelfLabellingPlan(UnitVectors, ResumablePlan):
    """Base of the plans of both forms of ASD: one member per block; first labels for a sample, then FixMatch. See `Plan`."""

    max_steps: int

    @property
    def instance_steps(self) -> int:
        """Number of steps of the instance classifier."""
        return int(self.max_steps * INSTANCE_SHARE)

    def steps(self, n: int) -> int:
        return self.max_steps

    def batch(self, n: int) -> int:
        return min(n, BATCH_ROWS)

    def labelled_at(self, block: int) -> int | None:
        return self.instance_steps

    def pseudo_labels(self, block: int, state: State) -> PseudoLabels:
        images = np.flatnonzero(state[CLASS_OF] >= 0)
        transitions = state[TRANSITIONS]
        return PseudoLabels(images, state[CLASS_OF][images], grouped(transitions, self.n_clusters), transitions)


@dataclass(frozen=True, kw_only=True)
class ASDPlan(LinearMembers, SelfLabellingPlan):
    """See `Plan`. A member is a linear map of the image half; its weights for the text half are 0."""

    @property
    def abreast(self) -> int:
        return N_MEMBERS

    def checkpoints(self, n: int, block: int) -> Sequence[int]:
        return [self.instance_steps]

    def advance(self, features: Features, neighbors: Neighbors, leg: Leg, progress: Callable[[int], None]) -> State:
        generator = torch.Generator(self.device).manual_seed(self.seed(leg.block))
        labelled = self._labelled(features, leg.block, leg.step, generator, progress)
        return {**labelled, "generator": generator.get_state().numpy()}

    def finish(self, features: Features, neighbors: Neighbors, block: int, state: State | None, progress: Callable[[int], None]) -> list[Member]:
        state = state or self.advance(features, neighbors, Leg(block, None, self.instance_steps), progress)
        generator = torch.Generator(self.device).manual_seed(self.seed(block))
        kept = torch.from_numpy(state["generator"])
        if len(kept) == len(generator.get_state()):  # otherwise it is that of another kind of device, whose draws are others anyway
            generator.set_state(kept)
        found = self.pseudo_labels(block, state)
        return [self._fixmatch(features, block, found.images, found.groups[found.classes], generator, progress)]

    def _labelled(self, features: Features, block: int, steps: int, generator: torch.Generator, progress: Callable[[int], None]) -> State:
        n, size = len(features), sample_size(len(features), self.n_clusters)
        tracked = sample_rows(n, MOST_TRACKED, self.seed(block))
        transitions = Transitions(len(tracked), size)
        looks = self.mini_batches(len(tracked), block, steps)
        samples = self._samples(n, size, block)
        weight, bias, optimizer = self._linear(size, features.widths[0], INSTANCE_RATE)
        classes = torch.arange(size, device=self.device)
        class_of = np.full(n, -1, np.int64)
        sample = next(samples)
        class_of[sample] = np.arange(size)
        x = self._images(features, sample)
        for step, look in enumerate(looks):
            if step and step % -(-steps // SAMPLES) == 0:
                sample = next(samples)
                x = self._images(features, sample)
                with torch.no_grad():
                    order = matched(F.linear(x, weight, bias).log_softmax(1).cpu().numpy())
                sample, x = sample[order], x[torch.from_numpy(order).to(self.device)]
                class_of[sample] = np.arange(size)
            found = F.cross_entropy(F.linear(_dropped(x, INSTANCE_DROPOUT, generator), weight, bias), classes)
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                seen = _dropped(self._images(features, tracked[look]), LOOK_DROPOUT, generator)
                transitions.see(look, F.linear(seen, weight, bias).argmax(1).cpu().numpy())
            progress(1)
        return {CLASS_OF: class_of, TRANSITIONS: transitions.counts}

    def _fixmatch(
        self,
        features: Features,
        block: int,
        drawn: NDArray[np.int64],
        labels: NDArray[np.int64],
        generator: torch.Generator,
        progress: Callable[[int], None],
    ) -> Member:
        n, steps, (image_width, *text_widths) = len(features), self.max_steps - self.instance_steps, features.widths
        weight, bias, optimizer = self._linear(self.n_clusters, image_width, RATE)
        probed, last = self._images(features, self.probed_rows(n)), torch.zeros(())
        probe = Probe(steps, lambda: F.linear(probed, weight, bias).argmax(1))
        for step, rows in enumerate(self.mini_batches(n, block, steps)):
            probe.look(step)
            picked = np.random.default_rng([self.random_state, block, step, 2]).integers(len(drawn), size=LABELLED_ROWS)
            x = self._images(features, rows)
            views = [(self._images(features, drawn[picked]), WEAK_DROPOUT), (x, WEAK_DROPOUT), (x, STRONG_DROPOUT)]
            labelled, weak, strong = (F.linear(_dropped(images, share, generator), weight, bias) for images, share in views)
            found = loss(labelled, torch.from_numpy(labels[picked]).to(self.device), weak, strong)
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            last = found.detach()
            progress(1)
        images = weight.detach().cpu().numpy() * np.float32(len(features.halves) ** 0.5)  # rows of the joined features are shorter by this factor in each half
        weights = np.hstack([images, np.zeros((self.n_clusters, sum(text_widths)), np.float32)])
        return Member({WEIGHTS: weights, BIAS: bias.detach().cpu().numpy()}, self.max_steps, float(probe.changed()), float(last))

    def _samples(self, n: int, size: int, block: int) -> Iterator[NDArray[np.int64]]:
        """Samples without replacement until all images were drawn, except a rest smaller than a sample; then again in a new order."""
        for epoch in count():
            order = np.random.default_rng([self.random_state, block, epoch, 1]).permutation(n)
            yield from (order[start : start + size] for start in range(0, n - size + 1, size))

    def _images(self, features: Features, rows: Rows) -> Tensor:
        return RADIUS * features.half(0, rows, self.device)

    def _linear(self, outputs: int, d: int, rate: float) -> tuple[Tensor, Tensor, torch.optim.Optimizer]:
        """Weight and bias of a linear map, all zeros, with their Adam optimiser."""
        weight, bias = (torch.zeros(*shape, device=self.device, requires_grad=True) for shape in ((outputs, d), (outputs,)))
        return weight, bias, torch.optim.Adam([weight, bias], lr=rate, fused=True)


def _dropped(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Dropout of a share of the values, with the given random generator."""
    return x * torch.empty_like(x).bernoulli_(1 - share, generator=generator) / (1 - share)


class ASD(Clusterer):
    """Clusters images by FixMatch, trained on a sample that ASD labels without supervision.

    A reimplementation of Duan et al. 2025, https://arxiv.org/abs/2509.20976, who published no code, on frozen embeddings. The paper learns
    features from pixels; on embeddings that separate the classes, k-means may be better. With more than 340 clusters
    there are fewer than twelve sampled images per cluster, and labels become poor. Each member is ASD with a different seed; the outer layer
    makes their consensus. Texts are used only for smoothing the consensus. Attributes are those of `Clusterer`.

    Parameters
    ----------
    n_clusters : int
        Number of clusters.
    n_members : int or None
        Outer members; None = 4; 1 = one ASD, without an outer layer.
    max_steps : int or None
        Steps of a member: three eighths for the instance classifier, the others for FixMatch. None = 1,600, on pixels 20,000.
    pixels : bool
        Whether members are networks on pixels, see `networks`. Only for runs of the pipeline, which have thumbnails: `fit` gets embeddings
        alone and raises ValueError. To cluster an array of images, use `pixels.ASDPixels`.
    side : int
        With pixels: side of the square to which each image is resized, 8 to 96 pixels.
    depth, width : int
        With pixels: depth and width of the wide residual network; the depth is 6 times an integer, plus 4.
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
        pixels: bool = False,
        side: int = 32,
        depth: int = 10,
        width: int = 1,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.n_members = n_members
        self.max_steps = max_steps
        self.pixels = pixels
        self.side = side
        self.depth = depth
        self.width = width
        self.random_state = random_state
        self.device = device

    def plan(self) -> SelfLabellingPlan:
        self.check_positive("n_clusters", "n_members", "max_steps")
        shared = {**self.shared(N_MEMBERS), "n_neighbors": N_NEIGHBORS}
        if not self.pixels:
            return ASDPlan(**shared, max_steps=self.max_steps or MAX_STEPS)
        from gsec_core.methods.asd import networks, pixels  # torchvision takes seconds to import

        self.check_positive("depth", "side", "width")
        pixels.check_depth(self.depth)
        if not pixels.LEAST_SIDE <= self.side <= pixels.MOST_SIDE:
            raise ValueError(f"side = {self.side}: it must be {pixels.LEAST_SIDE} to {pixels.MOST_SIDE}.")
        return networks.NetworkPlan(**shared, max_steps=self.max_steps or pixels.MAX_STEPS, side=self.side, depth=self.depth, width=self.width)
