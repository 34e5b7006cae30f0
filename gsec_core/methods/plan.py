"""What a method does, step by step, with parameters that are checked: its estimator takes the steps in a row, the pipeline each in a stage."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsec_core.clustering.ensemble import Ensemble, Head, Models
from gsec_core.clustering.features import Features, Half, UnitFeatures, unscaled
from gsec_core.clustering.kmeans import sample_rows
from gsec_core.clustering.linear import LinearModels, linear_shapes
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import NeighborIndex, Neighbors
from gsec_core.clustering.smoothing import Allocate, Posteriors
from gsec_core.devices import threads_of_torch


@dataclass(frozen=True, kw_only=True)
class OuterLayer(ABC):
    """What becomes of members, whatever trained them. Neighbours, alignment and consensus are the same for all."""

    n_clusters: int
    n_members: int
    """Outer members."""
    smoothing: int
    """Rounds in which posteriors are averaged with those of neighbours."""
    random_state: int
    device: str

    @property
    @abstractmethod
    def blocks(self) -> Sequence[int]:
        """Numbers of the blocks that the members are in, as they are trained. More members add blocks and change none."""

    @abstractmethod
    def numbers(self, block: int) -> range:
        """Those of a block's members among all."""

    @abstractmethod
    def total_steps(self, n: int, blocks: Sequence[int]) -> int:
        """Steps of the training of ``blocks`` on ``n`` rows, at most: units of progress."""

    @abstractmethod
    def neighbor_count(self, n: int) -> int:
        """Neighbours of a row of ``n`` in each half."""

    @abstractmethod
    def halves(self, matrices: Sequence[NDArray[Any]]) -> list[Half]:
        """What puts the image half and, where there is one, the text half, (n, d) each, on its scale; of several methods one after the other."""

    @abstractmethod
    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> Features:
        """The halves of ``matrices``, (n, d) each, as training sees them."""

    @abstractmethod
    def arrays(self, halves: Sequence[Half], block: int) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the arrays that a member of a block is made of, by name; ``halves`` as `halves` has them."""

    @abstractmethod
    def trained(
        self, features: Features, neighbors: Neighbors, blocks: Sequence[int], progress: Callable[[int], None] = lambda steps: None
    ) -> Iterator[list[Member]]:
        """All members of each of ``blocks``, in their order, wanted or not; ``progress`` is told of every step."""

    @abstractmethod
    def models(self, members: Sequence[Member]) -> Models:
        """What the members say of rows."""

    @abstractmethod
    def batch(self, n: int) -> int:
        """Rows of a mini-batch of ``n``, by which the head is distilled too."""

    def wanted(self, trained: Iterable[Sequence[Member]]) -> list[Member]:
        """The first `n_members`, by their numbers, of the members of `blocks`."""
        blocks = zip(self.blocks, trained, strict=True)
        by_number = {number: member for block, members in blocks for number, member in zip(self.numbers(block), members, strict=True)}
        return [by_number[number] for number in range(self.n_members)]

    def neighbor_index(self, features: Features, half: int) -> NeighborIndex:
        """Of all rows in one half, by cosine."""
        return NeighborIndex(lambda rows: features.half(half, rows).numpy(), len(features), n_threads=torch.get_num_threads())

    def neighbors(self, features: Features) -> Neighbors:
        """Of every row in each half."""
        n = len(features)
        found = [self.neighbor_index(features, half).search(0, n, self.neighbor_count(n)) for half in range(len(features.halves))]
        return Neighbors(found[0], found[1] if len(found) > 1 else None)

    def align(self, features: Features, neighbors: Neighbors, members: Sequence[Member], allocate: Allocate = np.empty) -> tuple[Ensemble, Posteriors, Head]:
        """The members with one label space, the consensus of all rows, and the head that stands for it; cluster 0 is the largest."""
        ensemble = Ensemble.aligned(self.models(members), features, random_state=self.random_state, device=self.device)
        consensus = self.consensus(features, neighbors, ensemble, allocate)
        ensemble = ensemble.by_size(consensus).calibrated(features, consensus, random_state=self.random_state, device=self.device)
        rows = self.batch(len(features))
        return ensemble, consensus, ensemble.head(features, consensus, batch_rows=rows, random_state=self.random_state, device=self.device)

    def consensus(self, features: Features, neighbors: Neighbors, ensemble: Ensemble, allocate: Allocate = np.empty) -> Posteriors:
        """See `Ensemble.consensus`."""
        return ensemble.consensus(features, neighbors, self.smoothing, self.device, allocate)


@dataclass(frozen=True, kw_only=True)
class Plan(OuterLayer):
    """The steps of one method. It gives features, members and what members say."""

    n_neighbors: int
    """Of a row in each half."""
    rows_per_neighbor: int
    """Few rows have fewer neighbours: one for so many, at least one."""

    @property
    @abstractmethod
    def block_size(self) -> int:
        """Members that are trained in one computation, a unit of training: a block that was cut is trained again from its start."""

    @abstractmethod
    def steps(self, n: int) -> int:
        """Steps of a block's training on ``n`` rows, at most."""

    @abstractmethod
    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        """The arrays that a member is made of, by name, where the halves have ``widths`` dimensions."""

    @abstractmethod
    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        """All members of a block, wanted or not, which depend on its number and the parameters alone; ``progress`` is told of every step."""

    @property
    def abreast(self) -> int:
        """Blocks that are trained side by side, where there are as many threads. It does not depend on how many members are wanted."""
        return 1

    def seed(self, block: int) -> int:
        """Of a block's random numbers."""
        return int(np.random.SeedSequence([self.random_state, block]).generate_state(1, np.uint64)[0] >> 1)

    def mini_batches(self, n: int, block: int, steps: int) -> Iterator[NDArray[np.int64]]:
        """Of each step the rows, epoch by epoch; of an epoch what is left, fewer than a batch, is left out."""
        batch = self.batch(n)
        for step in range(steps):
            epoch, place = divmod(step, n // batch)
            if not place:
                order = np.random.default_rng([self.random_state, block, epoch]).permutation(n)
            yield np.sort(order[place * batch : (place + 1) * batch])  # sorted, so that a file is read forwards

    def probed_rows(self, n: int) -> NDArray[np.int64]:
        """Of ``n`` rows those that `Probe` watches, the same for all members."""
        return sample_rows(n, PROBE_ROWS, self.random_state)

    @property
    def n_blocks(self) -> int:
        """Blocks of members."""
        return -(-self.n_members // self.block_size)

    @property
    def blocks(self) -> range:
        return range(self.n_blocks)

    def numbers(self, block: int) -> range:
        return range(block * self.block_size, (block + 1) * self.block_size)

    def total_steps(self, n: int, blocks: Sequence[int]) -> int:
        return self.steps(n) * len(blocks)

    def arrays(self, halves: Sequence[Half], block: int) -> Mapping[str, tuple[int, ...]]:
        return self.shapes([len(half.scale) for half in halves])

    def neighbor_count(self, n: int) -> int:
        return max(1, min(self.n_neighbors, n // self.rows_per_neighbor, n - 1))

    def trained(
        self, features: Features, neighbors: Neighbors, blocks: Sequence[int], progress: Callable[[int], None] = lambda steps: None
    ) -> Iterator[list[Member]]:
        """See `OuterLayer.trained`.

        On a CPU blocks are trained side by side, each with its share of the threads. Threads that share a small step wait for each other at
        every operation: that takes time, and one neighbour who wants a core stops them all.
        """
        if self.device != "cpu":
            yield from (self.train(features, neighbors, block, progress) for block in blocks)
            return
        threads = torch.get_num_threads()
        lanes = min(threads, self.abreast)
        share = threads // lanes
        told: SimpleQueue[int] = SimpleQueue()  # progress is told by the thread that asked
        with threads_of_torch(share), ThreadPoolExecutor(lanes, thread_name_prefix="train", initializer=torch.set_num_threads, initargs=(share,)) as pool:
            futures = [pool.submit(self.train, features, neighbors, block, told.put) for block in blocks]
            try:
                for future in futures:
                    future.add_done_callback(lambda _: told.put(0))
                    while not future.done():
                        progress(told.get())
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        while not told.empty():
            progress(told.get())


PROBE_ROWS, PROBE_STEPS = 4096, 10
"""Rows whose labels tell whether a member still moves, and over how many steps."""


class Probe:
    """How many labels change over the last steps of a training.

    Parameters
    ----------
    steps : of the training
    labels : those of `Plan.probed_rows` as they are now, (rows,) or (rows, members)
    """

    def __init__(self, steps: int, labels: Callable[[], Tensor]) -> None:
        self._last, self._labels = steps - PROBE_STEPS, torch.no_grad()(labels)
        self._before: Tensor | None = None

    def look(self, step: int) -> None:
        """Before each step."""
        if step == self._last:
            self._before = self._labels()

    def changed(self) -> NDArray[np.float64]:
        """After the last: the share of the rows whose label is another, () or (members,); 1 if there were too few steps."""
        labels = self._labels()
        if self._before is None:
            return np.ones(labels.shape[1:])
        found: NDArray[np.float64] = (labels != self._before).double().mean(0).cpu().numpy()
        return found


class UnitVectors:
    """The part of a plan that takes images and texts as the unit vectors that they are."""

    def halves(self, matrices: Sequence[NDArray[Any]]) -> list[Half]:
        """See `Plan.halves`."""
        return [unscaled(matrix.shape[1]) for matrix in matrices]

    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> Features:
        """See `Plan.features`."""
        return UnitFeatures(matrices)


class LinearMembers:
    """The part of a plan the members of which are linear maps of the features."""

    n_clusters: int

    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        """See `Plan.shapes`."""
        return linear_shapes(self.n_clusters, widths)

    def models(self, members: Sequence[Member]) -> Models:
        """See `Plan.models`."""
        return LinearModels.of(members)


@dataclass(frozen=True)
class NonlinearModels:
    """The part of `ensemble.Models` that members have in common which are no linear maps of the features."""

    members: Sequence[Mapping[str, NDArray[np.float32]]]
    """The arrays of each."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    @abstractmethod
    def n_clusters(self) -> int:
        """See `ensemble.Models`."""

    def head_start(self, permutations: NDArray[np.int32], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `ensemble.Models`."""
        return np.zeros((self.n_clusters, dimensions), np.float32), np.zeros(self.n_clusters, np.float32)
