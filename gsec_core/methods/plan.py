"""What a method does, step by step, with parameters that are checked: its estimator takes the steps in a row, the pipeline each in a stage."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsec_core.clustering.ensemble import Consensus, Ensemble, Head, Models
from gsec_core.clustering.features import Features, Half, UnitFeatures, unscaled
from gsec_core.clustering.kmeans import sample_rows
from gsec_core.clustering.linear import LinearModels, linear_shapes
from gsec_core.clustering.members import Member
from gsec_core.clustering.neighbors import Built, NeighborIndex, Neighbors
from gsec_core.clustering.smoothing import Allocate
from gsec_core.devices import threads_of_torch

Item = TypeVar("Item")
Result = TypeVar("Result")

State = Mapping[str, NDArray[Any]]
"""Arrays by name: all that a training needs to go on as if it had never stopped."""

_FROM_THE_START: Mapping[int, State] = MappingProxyType({})


class Leg(NamedTuple):
    """A part of a block's training."""

    block: int
    state: State | None
    """Where it begins; None: at the start."""
    step: int
    """Where it ends: so many steps are done then."""


class PseudoLabels(NamedTuple):
    """Labels that a method gave a sample of the images, to learn from them."""

    images: NDArray[np.int64]
    """(labelled,): their rows, ascending."""
    classes: NDArray[np.int64]
    """(labelled,): the class of each."""
    groups: NDArray[np.int64]
    """(classes,): the cluster of each class, in the member's own numbers."""
    transitions: NDArray[np.int32]
    """(classes, classes): how often images changed from the class of the row to that of the column."""


@dataclass(frozen=True)
class Start:
    """A fitted clustering that another one continues, on rows most of which are the same."""

    before: NDArray[np.int32]
    """(n,): the cluster that each row had; -1 of a new row."""
    members: Sequence[Member]
    """Those that are trained further; none: all are trained from the beginning."""
    permutations: NDArray[np.int32]
    """(members, clusters): the cluster of each member's each cluster."""


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

    @property
    def revision(self) -> int:
        """Raised where these settings train other members than an earlier version of gsec did. Part of the fingerprint."""
        return 1

    @property
    def goes_on(self) -> bool:
        """Whether members that were trained can be trained further; else a clustering is continued with others."""
        return False

    @abstractmethod
    def total_steps(self, n: int, blocks: Sequence[int], further: bool = False) -> int:
        """Steps of the training of ``blocks`` on ``n`` rows, at most, or of training them further: units of progress."""

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
        self,
        features: Features,
        neighbors: Neighbors,
        blocks: Sequence[int],
        progress: Callable[[int], None] = lambda steps: None,
        states: Mapping[int, State] = _FROM_THE_START,
        start: Sequence[Member] = (),
    ) -> Iterator[list[Member]]:
        """All members of each of ``blocks``, in their order, wanted or not; ``progress`` is told of every step.

        ``states`` are those of blocks that have been trained up to one of their `checkpoints`; they make no difference to the members.
        Where members are trained further, ``start`` has all that are wanted, by their numbers, and there are no others.
        """

    def checkpoints(self, n: int, block: int) -> Sequence[int]:
        """Steps of a block's training on ``n`` rows, ascending, after which its state is kept. Without any a block that was cut starts again."""
        return ()

    def advanced(self, features: Features, neighbors: Neighbors, legs: Sequence[Leg], progress: Callable[[int], None] = lambda steps: None) -> Iterator[State]:
        """The state at the end of each of ``legs``, in their order; of different blocks, each from one of its `checkpoints` to a later one."""
        return iter(())

    def labelled_at(self, block: int) -> int | None:
        """Which of its `checkpoints` tells a block's pseudo-labels; None if it learns from none."""
        return None

    def pseudo_labels(self, block: int, state: State) -> PseudoLabels:
        """Those that a block learns from, by its state at `labelled_at`."""
        raise NotImplementedError(f"{type(self).__name__} learns from no pseudo-labels")

    @property
    def pixel_side(self) -> int:
        """Members look at square images beside the features, of so many pixels a side; 0: they look at none."""
        return 0

    @abstractmethod
    def models(self, members: Sequence[Member]) -> Models:
        """What the members say of rows."""

    @abstractmethod
    def batch(self, n: int) -> int:
        """Rows of a mini-batch of ``n``, by which the head is distilled too."""

    def wanted(self, trained: Iterable[Sequence[Member]]) -> list[Member]:
        """The first `n_members`, by their numbers, of the members of `blocks`."""
        blocks = zip(self.blocks, trained, strict=True)
        by_number = {number: member for block, members in blocks for number, member in zip(self.numbers(block), members, strict=False)}
        return [by_number[number] for number in range(self.n_members)]

    def neighbor_index(self, features: Features, half: int, built: Built | None = None) -> NeighborIndex:
        """Of all rows in one half, by cosine."""
        return NeighborIndex(lambda rows: features.half(half, rows).numpy(), len(features), n_threads=torch.get_num_threads(), built=built)

    def neighbors(self, features: Features) -> Neighbors:
        """Of every row in each half."""
        n = len(features)
        found = [self.neighbor_index(features, half).search(0, n, self.neighbor_count(n)) for half in range(len(features.halves))]
        return Neighbors(found[0], found[1] if len(found) > 1 else None)

    def align(
        self, features: Features, neighbors: Neighbors, members: Sequence[Member], allocate: Allocate = np.empty, start: Start | None = None
    ) -> tuple[Ensemble, Consensus, Head]:
        """The members with one label space, the consensus of all rows, and the head that stands for it.

        Cluster 0 is the largest; with a ``start`` clusters are called as they were.
        """
        if start is not None and start.members:
            ensemble = Ensemble(self.models(members), start.permutations)
        else:
            ensemble = Ensemble.aligned(self.models(members), features, random_state=self.random_state, device=self.device)
        consensus = self.consensus(features, neighbors, ensemble, allocate)
        posteriors = consensus.posteriors
        if start is None:
            ensemble = ensemble.by_size(posteriors)
        else:
            ensemble = ensemble if start.members else ensemble.as_before(posteriors, start.before)
            posteriors.leaning(start.before)
        ensemble = ensemble.calibrated(consensus, random_state=self.random_state)
        rows = self.batch(len(features))
        return ensemble, consensus, ensemble.head(features, posteriors, batch_rows=rows, random_state=self.random_state, device=self.device)

    def consensus(
        self, features: Features, neighbors: Neighbors, ensemble: Ensemble, allocate: Allocate = np.empty, before: NDArray[np.int32] | None = None
    ) -> Consensus:
        """See `Ensemble.consensus`."""
        return ensemble.consensus(features, neighbors, self.smoothing, self.device, allocate, before)


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

    def total_steps(self, n: int, blocks: Sequence[int], further: bool = False) -> int:
        return self.steps(n) * len(blocks)

    def arrays(self, halves: Sequence[Half], block: int) -> Mapping[str, tuple[int, ...]]:
        return self.shapes([len(half.scale) for half in halves])

    def neighbor_count(self, n: int) -> int:
        return max(1, min(self.n_neighbors, n // self.rows_per_neighbor, n - 1))

    def trained(
        self,
        features: Features,
        neighbors: Neighbors,
        blocks: Sequence[int],
        progress: Callable[[int], None] = lambda steps: None,
        states: Mapping[int, State] = _FROM_THE_START,
        start: Sequence[Member] = (),
    ) -> Iterator[list[Member]]:
        """See `OuterLayer.trained`."""
        return self.side_by_side(lambda block, told: self.train(features, neighbors, block, told), blocks, progress)

    def side_by_side(self, work: Callable[[Item, Callable[[int], None]], Result], items: Sequence[Item], progress: Callable[[int], None]) -> Iterator[Result]:
        """What ``work``, given an item and whom to tell of steps, comes to for each of ``items``, which are of different blocks.

        On a CPU blocks are trained side by side, each with its share of the threads. Threads that share a small step wait for each other at
        every operation: that takes time, and one neighbour who wants a core stops them all.
        """
        if self.device != "cpu":
            yield from (work(item, progress) for item in items)
            return
        threads = torch.get_num_threads()
        lanes = min(threads, self.abreast)
        share = threads // lanes
        told: SimpleQueue[int] = SimpleQueue()  # progress is told by the thread that asked
        with threads_of_torch(share), ThreadPoolExecutor(lanes, thread_name_prefix="train", initializer=torch.set_num_threads, initargs=(share,)) as pool:
            futures = [pool.submit(work, item, told.put) for item in items]
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


@dataclass(frozen=True, kw_only=True)
class OngoingPlan(Plan):
    """A plan the members of which can be trained further when they have been trained."""

    @abstractmethod
    def further_steps(self, n: int) -> int:
        """Steps of a block's further training on ``n`` rows."""

    @abstractmethod
    def further(self, features: Features, neighbors: Neighbors, block: int, members: Sequence[Member], progress: Callable[[int], None]) -> list[Member]:
        """The ``members`` of a block, trained further: fewer steps at a smaller rate."""

    @property
    def goes_on(self) -> bool:
        return True

    def total_steps(self, n: int, blocks: Sequence[int], further: bool = False) -> int:
        return self.further_steps(n) * len(blocks) if further else super().total_steps(n, blocks)

    def trained(
        self,
        features: Features,
        neighbors: Neighbors,
        blocks: Sequence[int],
        progress: Callable[[int], None] = lambda steps: None,
        states: Mapping[int, State] = _FROM_THE_START,
        start: Sequence[Member] = (),
    ) -> Iterator[list[Member]]:
        if not start:
            return super().trained(features, neighbors, blocks, progress, states)

        def further(block: int, told: Callable[[int], None]) -> list[Member]:
            numbers = self.numbers(block)
            return self.further(features, neighbors, block, start[numbers.start : numbers.stop], told)

        return self.side_by_side(further, blocks, progress)


@dataclass(frozen=True, kw_only=True)
class ResumablePlan(Plan):
    """A plan the training of which goes on from its `checkpoints`, with equal members."""

    @abstractmethod
    def checkpoints(self, n: int, block: int) -> Sequence[int]:
        """See `OuterLayer.checkpoints`."""

    @abstractmethod
    def advance(self, features: Features, neighbors: Neighbors, leg: Leg, progress: Callable[[int], None]) -> State:
        """The state at the end of ``leg``."""

    @abstractmethod
    def finish(self, features: Features, neighbors: Neighbors, block: int, state: State | None, progress: Callable[[int], None]) -> list[Member]:
        """The members of a block by what is left of its training after ``state``; None: all of it."""

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        return self.finish(features, neighbors, block, None, progress)

    def trained(
        self,
        features: Features,
        neighbors: Neighbors,
        blocks: Sequence[int],
        progress: Callable[[int], None] = lambda steps: None,
        states: Mapping[int, State] = _FROM_THE_START,
        start: Sequence[Member] = (),
    ) -> Iterator[list[Member]]:
        return self.side_by_side(lambda block, told: self.finish(features, neighbors, block, states.get(block), told), blocks, progress)

    def advanced(self, features: Features, neighbors: Neighbors, legs: Sequence[Leg], progress: Callable[[int], None] = lambda steps: None) -> Iterator[State]:
        return self.side_by_side(lambda leg, told: self.advance(features, neighbors, leg, told), legs, progress)


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


@dataclass(frozen=True, eq=False)
class NonlinearModels:
    """The part of `ensemble.Models` that members have in common which are no linear maps of the features."""

    members: Sequence[Mapping[str, NDArray[np.float32]]]
    """The arrays of each."""

    of_features = True

    def __len__(self) -> int:
        return len(self.members)

    @property
    @abstractmethod
    def n_clusters(self) -> int:
        """See `ensemble.Models`."""

    def head_start(self, permutations: NDArray[np.int32], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `ensemble.Models`."""
        return np.zeros((self.n_clusters, dimensions), np.float32), np.zeros(self.n_clusters, np.float32)
