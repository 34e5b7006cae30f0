"""The steps of a method, with checked parameters: the estimator runs them in sequence, the pipeline in separate stages."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event
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
"""State of a training: arrays by name, with which it can resume with identical results."""


def seed_of(*numbers: int) -> int:
    """A seed of random numbers that depends on all of ``numbers``."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


CIFAR_ROWS, IMAGENET_ROWS = 50_000, 1_281_167
"""Images of the largest data set of the papers with few clusters, and of the one with many; see `published_steps`."""


def published_steps(n: int, batch: int, epochs: int, smallest: int, largest: int) -> int:
    """The steps of a paper's ``epochs`` of batches of ``batch`` rows on ``n`` images.

    They are at least those on its smallest data set, of ``smallest`` steps, and at most those on its largest, of ``largest`` images: how long a
    training takes to converge is a number of steps, which hardly depends on the number of images.
    """
    return max(epochs * (min(n, largest) // batch), smallest)


class Leg(NamedTuple):
    """A part of a block's training."""

    block: int
    state: State | None
    """State at the beginning of the part; None for the start of the training."""
    step: int
    """Number of steps done at the end of the part."""


class PseudoLabels(NamedTuple):
    """Labels that a method gave to a sample of the images itself, to learn from them."""

    images: NDArray[np.int64]
    """(labelled,): row numbers of the labelled images, ascending."""
    classes: NDArray[np.int64]
    """(labelled,): the class of each."""
    groups: NDArray[np.int64]
    """(classes,): the cluster of each class, as the member numbers clusters."""
    transitions: NDArray[np.int32]
    """(classes, classes): number of changes of images from the class of the row to that of the column."""


@dataclass(frozen=True)
class Start:
    """A fitted clustering that another one continues, on rows most of which are the same."""

    before: NDArray[np.int32]
    """(n,): previous cluster of each row; -1 for a new row."""
    members: Sequence[Member] = ()
    """Members that are trained further; if empty, all members are trained from the beginning."""
    permutations: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 0), np.int32))
    """(members, clusters): the consensus cluster of each cluster of each of ``members``."""


@dataclass(frozen=True, kw_only=True)
class OuterLayer(ABC):
    """Base of all plans: neighbours, alignment and consensus, which are the same for members of every method."""

    n_clusters: int
    n_members: int
    """Outer members."""
    smoothing: int
    """Number of rounds in which posteriors are averaged with those of neighbours."""
    random_state: int
    device: str

    @property
    @abstractmethod
    def blocks(self) -> Sequence[int]:
        """Numbers of the blocks in which members are trained. More members add blocks and do not change the others."""

    @abstractmethod
    def numbers(self, block: int) -> range:
        """Numbers of the members in a block, among all members."""

    @property
    def goes_on(self) -> bool:
        """Whether trained members can be trained further; otherwise a clustering is continued with new members."""
        return False

    @property
    def is_own_head(self) -> bool:
        """Whether the only member, a linear map, is the head itself: without smoothing there is nothing else to predict."""
        return False

    @abstractmethod
    def total_steps(self, n: int, blocks: Sequence[int], further: bool = False) -> int:
        """Largest number of steps, the units of progress, for training ``blocks`` on ``n`` rows, or for training them ``further``."""

    @abstractmethod
    def neighbor_count(self, n: int) -> int:
        """Number of neighbours of each of ``n`` rows in each half."""

    def prepared_by_clusters(self, n: int) -> bool:
        """Whether `halves` or `neighbor_count` of ``n`` rows depend on the number of clusters, which is then part of their fingerprint."""
        return False

    @abstractmethod
    def halves(self, matrices: Sequence[NDArray[Any]]) -> list[Half]:
        """Fit the scaling of ``matrices``: image half and, where there is one, text half, (n, d) each. A mixture lists the halves of its methods in turn."""

    @abstractmethod
    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> Features:
        """The features for training: ``matrices`` (n, d) each, scaled by ``halves``."""

    @abstractmethod
    def arrays(self, halves: Sequence[Half], block: int) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the arrays of a member in a block, by name; ``halves`` is a result of `halves`."""

    @abstractmethod
    def trained(
        self,
        features: Features,
        neighbors: Neighbors,
        blocks: Sequence[int],
        progress: Callable[[int], None] = lambda steps: None,
        states: Mapping[int, State] = MappingProxyType({}),
        start: Sequence[Member] = (),
    ) -> Iterator[list[Member]]:
        """Train ``blocks`` and yield all members of each, in order, even beyond `n_members`; ``progress`` is called with the number of steps done since.

        ``states`` are those of blocks at one of their `checkpoints`, from which training resumes with the same result.
        To train members further, ``start`` lists all `n_members` members by number; then there are no others.
        """

    def checkpoints(self, n: int, block: int) -> Sequence[int]:
        """Steps, ascending, after which the state of a block's training on ``n`` rows is stored. Without any, an interrupted block starts again."""
        return ()

    def advanced(self, features: Features, neighbors: Neighbors, legs: Sequence[Leg], progress: Callable[[int], None] = lambda steps: None) -> Iterator[State]:
        """Yield the state at the end of each of ``legs``, in order. The legs are of different blocks, each up to one of its `checkpoints`."""
        return iter(())

    def labelled_at(self, block: int) -> int | None:
        """The checkpoint of a block that contains its pseudo-labels; None if the block uses none."""
        return None

    def pseudo_labels(self, block: int, state: State) -> PseudoLabels:
        """The pseudo-labels of a block, from its state at `labelled_at`."""
        raise NotImplementedError(f"{type(self).__name__} learns from no pseudo-labels")

    @property
    def pixel_side(self) -> int:
        """Side in pixels of the square images that members use beside the features; 0 if they use none."""
        return 0

    @abstractmethod
    def models(self, members: Sequence[Member]) -> Models:
        """The members as predictors."""

    @abstractmethod
    def batch(self, n: int) -> int:
        """Rows in a mini-batch, out of ``n`` rows; used for distilling the head, too."""

    def wanted(self, trained: Iterable[Sequence[Member]]) -> list[Member]:
        """The first `n_members` members by number; ``trained`` lists the members of each of `blocks`."""
        blocks = zip(self.blocks, trained, strict=True)
        by_number = {number: member for block, members in blocks for number, member in zip(self.numbers(block), members, strict=False)}
        return [by_number[number] for number in range(self.n_members)]

    def neighbor_index(self, features: Features, half: int, built: Built | None = None) -> NeighborIndex:
        """Index of all rows in one half, by cosine; from ``built`` if given."""
        n = len(features)
        return NeighborIndex(lambda rows: features.half(half, rows).numpy(), n, k=self.neighbor_count(n), n_threads=torch.get_num_threads(), built=built)

    def neighbors(self, features: Features) -> Neighbors:
        """The neighbours of every row in each half."""
        n = len(features)
        return Neighbors(*(self.neighbor_index(features, half).search(0, n, self.neighbor_count(n)) for half in range(len(features.halves))))

    def align(
        self, features: Features, neighbors: Neighbors, members: Sequence[Member], allocate: Allocate = np.empty, start: Start | None = None
    ) -> tuple[Ensemble, Consensus, Head]:
        """Returns the aligned members, the consensus of all rows, and the head that predicts it.

        Cluster 0 is the largest; with a ``start`` clusters keep their numbers.
        """
        if start is not None and start.members:
            ensemble = Ensemble(self.models(members), start.permutations)
        else:
            ensemble = Ensemble.aligned(self.models(members), features, random_state=self.random_state, device=self.device)
        consensus = self.consensus(features, neighbors, ensemble, allocate, from_scratch=start is None)
        posteriors = consensus.posteriors
        if start is None:
            ensemble = ensemble.by_size(posteriors)
        else:
            ensemble = ensemble if start.members else ensemble.as_before(posteriors, start.before)
            posteriors.leaning(start.before)
        ensemble = ensemble.calibrated(consensus, random_state=self.random_state)
        if self.is_own_head:
            return ensemble, consensus, Head(*ensemble.models.head_start(ensemble.permutations, features.dimensions))
        rows = self.batch(len(features))
        return ensemble, consensus, ensemble.head(features, consensus, batch_rows=rows, random_state=self.random_state, device=self.device)

    def consensus(
        self,
        features: Features,
        neighbors: Neighbors,
        ensemble: Ensemble,
        allocate: Allocate = np.empty,
        *,
        from_scratch: bool = True,
        before: NDArray[np.int32] | None = None,
    ) -> Consensus:
        """See `Ensemble.consensus`. A clustering that continues another one may have empty clusters, as clusters keep their meaning."""
        return ensemble.consensus(features, neighbors, self.smoothing, self.device, allocate, refilled=from_scratch, before=before)


@dataclass(frozen=True, kw_only=True)
class Plan(OuterLayer):
    """The steps of one method, which defines features, members and their predictions."""

    n_neighbors: int
    """Number of neighbours of a row in each half."""
    rows_per_neighbor: int
    """Least number of rows per neighbour: with few rows there are fewer neighbours, but at least one."""

    @property
    def block_size(self) -> int:
        """Number of members that are trained together in one computation. An interrupted block is trained again from its start."""
        return 1

    @abstractmethod
    def steps(self, n: int) -> int:
        """Largest number of training steps of a block on ``n`` rows."""

    @abstractmethod
    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        """Shapes of a member's arrays, by name, if the halves have ``widths`` dimensions."""

    @abstractmethod
    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        """Train all members of a block, even beyond `n_members`; they depend on its number and the parameters alone. ``progress`` counts the steps."""

    def finish(self, features: Features, neighbors: Neighbors, block: int, state: State | None, progress: Callable[[int], None]) -> list[Member]:
        """As `train`, but from ``state``, one of a block's `checkpoints`; None: from the start."""
        return self.train(features, neighbors, block, progress)

    def further(self, features: Features, neighbors: Neighbors, block: int, members: Sequence[Member], progress: Callable[[int], None]) -> list[Member]:
        """Train the ``members`` of a block further, with fewer steps and a smaller learning rate. Raises NotImplementedError unless `goes_on`."""
        raise NotImplementedError(f"{type(self).__name__}: goes_on is False, so its members cannot be trained further. Train new ones.")

    @property
    def abreast(self) -> int:
        """Number of blocks that are trained in parallel, given enough threads. It does not depend on `n_members`."""
        return 1

    def seed(self, block: int) -> int:
        """Seed of a block's random numbers."""
        return seed_of(self.random_state, block)

    def mini_batches(self, n: int, block: int, steps: int) -> Iterator[NDArray[np.int64]]:
        """The rows of each step's mini-batch, epoch by epoch; an incomplete batch at the end of an epoch is dropped."""
        batch = self.batch(n)
        for step in range(steps):
            epoch, place = divmod(step, n // batch)
            if not place:
                order = np.random.default_rng([self.random_state, block, epoch]).permutation(n)
            yield np.sort(order[place * batch : (place + 1) * batch])  # sorted, so that a memory map is read forwards

    def probed_rows(self, n: int) -> NDArray[np.int64]:
        """The rows out of ``n`` whose labels `Probe` watches, the same for all members."""
        return sample_rows(n, PROBE_ROWS, self.random_state)

    @property
    def blocks(self) -> range:
        return range(-(-self.n_members // self.block_size))

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
        states: Mapping[int, State] = MappingProxyType({}),
        start: Sequence[Member] = (),
    ) -> Iterator[list[Member]]:
        """See `OuterLayer.trained`."""

        def members(block: int, told: Callable[[int], None]) -> list[Member]:
            if start:
                numbers = self.numbers(block)
                return self.further(features, neighbors, block, start[numbers.start : numbers.stop], told)
            return self.finish(features, neighbors, block, states.get(block), told)

        return self.side_by_side(members, blocks, progress)

    def side_by_side(self, work: Callable[[Item, Callable[[int], None]], Result], items: Sequence[Item], progress: Callable[[int], None]) -> Iterator[Result]:
        """Yield the results of ``work`` for ``items`` of different blocks, in order; ``work`` gets an item and a callback for its steps.

        On a CPU, `abreast` blocks run in parallel, each with its share of the threads. Threads that share a small step wait for each other at
        every operation: that takes time, and another process on one core stops them all.
        """
        if self.device != "cpu":
            yield from (work(item, progress) for item in items)
            return
        threads = torch.get_num_threads()
        lanes = min(threads, self.abreast)
        share = threads // lanes
        told: SimpleQueue[int] = SimpleQueue()  # progress is called in the caller's thread
        stopped = Event()

        def tell(steps: int) -> None:
            if stopped.is_set():  # otherwise Ctrl-C would wait for the end of the training
                raise CancelledError
            told.put(steps)

        with threads_of_torch(share), ThreadPoolExecutor(lanes, thread_name_prefix="train", initializer=torch.set_num_threads, initargs=(share,)) as pool:
            futures = [pool.submit(work, item, tell) for item in items]
            try:
                for future in futures:
                    future.add_done_callback(lambda _: told.put(0))
                    while not future.done():
                        progress(told.get())
                    yield future.result()
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)
        while not told.empty():
            progress(told.get())


@dataclass(frozen=True, kw_only=True)
class ResumablePlan(Plan):
    """A plan whose training can resume from its `checkpoints`, with the same result."""

    @abstractmethod
    def checkpoints(self, n: int, block: int) -> Sequence[int]:
        """See `OuterLayer.checkpoints`."""

    @abstractmethod
    def advance(self, features: Features, neighbors: Neighbors, leg: Leg, progress: Callable[[int], None]) -> State:
        """Train to the end of ``leg``. Returns the state there."""

    @abstractmethod
    def finish(self, features: Features, neighbors: Neighbors, block: int, state: State | None, progress: Callable[[int], None]) -> list[Member]:
        """See `Plan.finish`."""

    def train(self, features: Features, neighbors: Neighbors, block: int, progress: Callable[[int], None] = lambda steps: None) -> list[Member]:
        return self.finish(features, neighbors, block, None, progress)

    def advanced(self, features: Features, neighbors: Neighbors, legs: Sequence[Leg], progress: Callable[[int], None] = lambda steps: None) -> Iterator[State]:
        return self.side_by_side(lambda leg, told: self.advance(features, neighbors, leg, told), legs, progress)


PROBE_ROWS, PROBE_STEPS = 4096, 10
"""Number of rows whose labels show whether a member still changes, and number of steps over which they are compared."""


class Probe:
    """Measures how many labels change over the last steps of a training.

    Parameters
    ----------
    steps : number of steps of the training
    labels : returns the current labels of `Plan.probed_rows`, (rows,) or (rows, members)
    """

    def __init__(self, steps: int, labels: Callable[[], Tensor]) -> None:
        self._last, self._labels = steps - PROBE_STEPS, torch.no_grad()(labels)
        self._before: Tensor | None = None

    def look(self, step: int) -> None:
        """To be called before each step."""
        if step == self._last:
            self._before = self._labels()

    def changed(self) -> NDArray[np.float64]:
        """To be called after the last step: share of rows with a changed label, () or (members,); 1 if there were too few steps."""
        labels = self._labels()
        if self._before is None:
            return np.ones(labels.shape[1:])
        found: NDArray[np.float64] = (labels != self._before).double().mean(0).cpu().numpy()
        return found


class UnitVectors:
    """Mixin for plans that use images and texts as unit vectors, without scaling."""

    def halves(self, matrices: Sequence[NDArray[Any]]) -> list[Half]:
        """See `Plan.halves`."""
        return [unscaled(matrix.shape[1]) for matrix in matrices]

    def features(self, matrices: Sequence[NDArray[Any]], halves: Sequence[Half], text_weight: float, allocate: Allocate = np.empty) -> Features:
        """See `Plan.features`."""
        return UnitFeatures(matrices)


class LinearMembers:
    """Mixin for plans whose members are linear maps of the features."""

    n_clusters: int
    n_members: int
    smoothing: int

    @property
    def is_own_head(self) -> bool:
        """See `OuterLayer.is_own_head`."""
        return self.n_members == 1 and not self.smoothing

    def shapes(self, widths: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
        """See `Plan.shapes`."""
        return linear_shapes(self.n_clusters, widths)

    def models(self, members: Sequence[Member]) -> Models:
        """See `Plan.models`."""
        return LinearModels.of(members)


@dataclass(frozen=True, eq=False)
class NonlinearModels:
    """Base of `ensemble.Models` for members that are not linear maps of the features."""

    members: Sequence[Mapping[str, NDArray[np.float32]]]
    """The arrays of each member."""

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
