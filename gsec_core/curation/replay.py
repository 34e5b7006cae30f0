"""Apply the acts of a log to a run's clusters. The result depends on these two alone.

Acts are applied in the order of the log, each to the result of the ones before it. The model's own clustering does not change; all acts are applied
again to the clusters of every run, by cluster key. An act whose cluster or images are missing is *open*: it is reported with the reason, the other acts
count, and it applies again as soon as they are back.

=====================  =============================================================================================================================
act                    does
=====================  =============================================================================================================================
rename, describe KEY   sets the name or description of the cluster; a later act replaces it
merge KEY KEYS         moves the images of KEYS to KEY, which keeps its name, description, star and whether it is hidden. From then on KEYS do not exist, not
                       even for later acts. If some of KEYS are missing, the act is open, and the others are merged. Merged clusters may be merged again;
                       a cycle is impossible, because a cluster that does not exist cannot be merged
split KEY              puts every image of KEY into the part with the nearest of the centres that the act holds, in later runs too. The first part keeps KEY
                       with its name, description and marks; the others are named after it, and are hidden if it is
move KEY IMAGES        moves the images to KEY, wherever they are. If some are missing or have other bytes now, the act is open, and the others are moved.
                       If KEY is split later, a moved image is split like the others; an image moved after the split stays in its part
hide, show             a cluster with all images that are in it in the end, or single images, wherever they are
star, unstar           a cluster, or single images
undo NUMBER            cancels that act, as if it had never been added; later acts that need it become open. An undo can be undone itself: then the act
                       counts again
=====================  =============================================================================================================================
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import cosines, unit_rows
from gsec_core.curation.log import DESCRIBE, HIDE, MERGE, MOVE, RENAME, SHOW, SPLIT, STAR, UNDO, UNSTAR, Act

_AT_ONCE = 65_536
"""Number of images whose embeddings are in memory at once."""


class Named(NamedTuple):
    """A cluster of a model."""

    key: int
    name: str
    description: str | None


@dataclass(frozen=True, eq=False)
class Model:
    """The clustering of a run before curation, as far as acts need it: n images in canonical order."""

    image_ids: pa.Array
    """binary(16); empty, as ``content_hashes``, if acts on single images are not about these images."""
    content_hashes: pa.Array
    """binary(16)."""
    keys: NDArray[np.int32]
    """(n,): key of each image's cluster."""
    clusters: tuple[Named, ...]
    """In the order of their numbers."""
    encoder: str
    embeddings: Callable[[NDArray[np.int64]], NDArray[Any]]
    """Returns the embeddings by ``encoder`` of rows (m,), (m, dim). Only splits call it."""


class Cluster(NamedTuple):
    """A cluster as people have curated it."""

    key: int
    name: str
    description: str | None
    size: int
    """Number of images, with hidden ones."""
    hidden: bool
    starred: bool
    curated: bool
    """Whether an act set its name or description, moved images into it or out of it, merged clusters into it, or split it."""
    merged: tuple[int, ...]
    """Keys of the clusters that were merged into it."""
    model_name: str | None
    """The model's name for it; None for a cluster that a split made."""


class Open(NamedTuple):
    """An act that could not be applied, or only to some of its clusters or images."""

    act: Act
    why: str


@dataclass(frozen=True, eq=False)
class Curated:
    """The curated clustering of a run: n images in canonical order."""

    keys: NDArray[np.int32]
    """(n,): key of each image's cluster."""
    hidden: NDArray[np.bool_]
    """(n,): whether the image or its cluster is hidden."""
    starred: NDArray[np.bool_]
    """(n,): whether the image itself is starred."""
    clusters: tuple[Cluster, ...]
    """The model's clusters in the order of their numbers, then those that splits made."""
    open: tuple[Open, ...]
    """Open acts in the order of the log, without undone ones."""
    undone: Mapping[int, int]
    """Number of an undone act -> number of the undo."""
    acts: int
    """Number of acts in the log."""
    last: int
    """Number of the log's last act; 0 if there is none."""
    into: Mapping[int, int]
    """Key of a merged cluster -> key of the cluster that it is part of now."""

    def of_model(self, key: int) -> Cluster:
        """The curated cluster of a cluster of the model: itself, or the one that it was merged into."""
        return self.by_key[self.into.get(key, key)]

    @cached_property
    def by_key(self) -> Mapping[int, Cluster]:
        """Key -> cluster, without merged ones."""
        return {cluster.key: cluster for cluster in self.clusters}


def replay(acts: Sequence[Act], model: Model) -> Curated:
    """Apply the acts, in order, to the clustering of the model."""
    state = State(model)
    undone = undoings(acts)
    state.prepare(acts)
    found: list[Open] = []
    there = {act.number for act in acts}
    for act in acts:
        if act.number in undone:
            continue
        if act.kind == UNDO and not act.unknown:
            why = None if act.undoes in there and act.undoes < act.number else f"there is no act {act.undoes} before it."
        else:
            why = state.apply(act)
        if why is not None:
            found.append(Open(act, why))
    return state.curated(found, undone, acts)


def undoings(acts: Sequence[Act]) -> dict[int, int]:
    """Number of each undone act -> number of the last undo of it that is not undone itself."""
    undone: dict[int, int] = {}
    for act in reversed(acts):
        if act.kind == UNDO and act.undoes is not None and act.number not in undone and act.undoes < act.number:
            undone.setdefault(act.undoes, act.number)
    return undone


@dataclass
class _Cluster:
    key: int
    name: str
    description: str | None
    model_name: str | None
    groups: list[int]
    """Numbers of its groups of images (see `State`)."""
    hidden: bool = False
    starred: bool = False
    curated: bool = False
    merged: list[int] = field(default_factory=list)


class State:
    """The clusters and their images after some acts.

    Images are in *groups*: one for each cluster of the model, each part that a split made, and each move. A cluster is a list of groups, so that merging
    clusters touches no image.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.clusters = {named.key: _Cluster(*named, named.name, [number]) for number, named in enumerate(model.clusters)}
        self.names = Counter(named.name for named in model.clusters)
        self._group = _places([named.key for named in model.clusters], model.keys)
        self._rows: dict[int, NDArray[np.int64]] = {}
        """Group that an act made -> rows of its images; some of them may be in other groups since."""
        self._by_group: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._count = len(model.clusters)
        self._hidden = np.zeros(len(model.keys), bool)
        self._starred = np.zeros(len(model.keys), bool)
        self._places: dict[str, tuple[int, str]] = {}
        """Id of an image that acts name and that exists -> its row and content hash."""
        self._asked: set[str] = set()
        self._gone: dict[int, tuple[int, int]] = {}
        """Merged key -> the key it was merged into, and the number of the act."""
        self._made: dict[int, int] = {}
        """Key of a part -> number of the split that makes it, even if the split is undone or open."""

    def prepare(self, acts: Sequence[Act]) -> None:
        """Look up the images of all acts at once. Must be called before the acts are applied."""
        self._made |= {key: act.number for act in acts if act.kind == SPLIT for key in act.keys}
        wanted = {image.id for act in acts for image in act.images} - self._asked
        self._asked |= wanted
        ids = sorted(wanted)
        rows = pc.index_in(pa.array([bytes.fromhex(id) for id in ids], pa.binary(16)), value_set=self.model.image_ids)
        hashes = self.model.content_hashes.take(rows)
        there = zip(ids, rows.to_pylist(), hashes.to_pylist(), strict=True)
        self._places.update({id: (row, content.hex()) for id, row, content in there if row is not None})

    def row(self, id: str) -> int | None:
        """The row of an image that a prepared act names; None if the image does not exist."""
        return self._places[id][0] if id in self._places else None

    def is_hidden_with(self, row: int) -> int | None:
        """Key of the image's cluster if the cluster is hidden, else None."""
        group = self._group[row]
        return next((cluster.key for cluster in self.clusters.values() if cluster.hidden and group in cluster.groups), None)

    def apply(self, act: Act) -> str | None:
        """Apply an act that is not an undo. Returns None, or a sentence that tells why it could not be applied, or only in part."""
        if act.unknown:
            return f"a newer gsec wrote it, and this version does not know {_what(act)}."
        if act.key is not None and act.key not in self.clusters:
            return self.absent(act.key)
        return _APPLY[act.kind](self, act)

    def absent(self, key: int) -> str:
        """A sentence that tells why there is no cluster with this key."""
        if key in self._gone:
            into, by = self._gone[key]
            while into in self._gone:
                into, by = self._gone[into]
            return f"cluster {key} is part of cluster {into} since act {by}."
        if key in self._made:
            return f"there is no cluster {key}, as act {self._made[key]}, which makes it, is undone or open."
        return f"there is no cluster {key} in this run."

    def rows_of(self, key: int) -> NDArray[np.int64]:
        """Rows of the images of a cluster, (m,), ascending."""
        return np.sort(np.concatenate([np.empty(0, np.int64), *(self._rows_of_group(number) for number in self.clusters[key].groups)]))

    def _rename(self, act: Act) -> None:
        cluster = self._about(act)
        self._call(cluster, str(act.text))
        cluster.curated = True

    def _describe(self, act: Act) -> None:
        cluster = self._about(act)
        cluster.description, cluster.curated = act.text, True

    def _merge(self, act: Act) -> str | None:
        into, found = self._about(act), []
        for key in act.keys:
            if key == into.key:
                found.append("a cluster cannot be merged with itself.")
            elif key not in self.clusters:
                found.append(self.absent(key))
            else:
                cluster = self.clusters.pop(key)
                into.groups += cluster.groups
                into.merged += [key, *cluster.merged]
                into.curated = True
                self.names[cluster.name] -= 1
                self._gone[key] = into.key, act.number
        return " ".join(found) or None

    def _split(self, act: Act) -> str | None:
        if act.encoder != self.model.encoder:
            return f"it was split with encoder {act.encoder}, and the run's is {self.model.encoder}."
        if taken := [key for key in act.keys if key in self.clusters]:
            return f"there is a cluster {taken[0]} already."
        rows = self.rows_of(self._about(act).key)
        parts = nearest(self.model, rows, act.directions)
        if parts is None:
            return f"its centres are not of the length of this run's embeddings, though its encoder is also {act.encoder}."
        whole = self._about(act)
        for number, key in enumerate(act.keys, 1):
            part = _Cluster(key, "", whole.description, None, [self._new_group(rows[parts == number])], whole.hidden, curated=True)
            self._call(part, self._after(whole.name))
            self.clusters[key] = part
        whole.curated = True
        return None

    def _move(self, act: Act) -> str | None:
        rows, why = self._images(act)
        cluster = self._about(act)
        if len(rows):
            cluster.groups.append(self._new_group(rows))
            cluster.curated = True
        return why

    def _mark(self, act: Act) -> str | None:
        """Apply hide, show, star and unstar."""
        what, value = ("hidden" if act.kind in (HIDE, SHOW) else "starred"), act.kind in (HIDE, STAR)
        if act.key is not None:
            setattr(self._about(act), what, value)
            return None
        rows, why = self._images(act)
        (self._hidden if what == "hidden" else self._starred)[rows] = value
        return why

    def _about(self, act: Act) -> _Cluster:
        assert act.key is not None, "an act that needs a key has one"
        return self.clusters[act.key]

    def _call(self, cluster: _Cluster, name: str) -> None:
        self.names[cluster.name] -= 1
        self.names[name] += 1
        cluster.name = name

    def _after(self, name: str) -> str:
        """The first of ``name (2)``, ``name (3)`` and so on that no cluster has."""
        number = 2
        while self.names[f"{name} ({number})"] > 0:
            number += 1
        return f"{name} ({number})"

    def _images(self, act: Act) -> tuple[NDArray[np.int64], str | None]:
        """Rows of the images of an act that still exist unchanged, and a sentence about the others."""
        rows, gone, changed = [], 0, 0
        for id, content_hash in act.images:
            row, now = self._places.get(id, (None, None))
            if row is None:
                gone += 1
            elif now != content_hash:
                changed += 1
            else:
                rows.append(row)
        found = ((gone, "is", "are", "not in this run (deleted or renamed)"), (changed, "has", "have", "other bytes now"))
        why = ", and ".join(f"{count} of its {len(act.images)} images {one if count == 1 else many} {what}" for count, one, many, what in found if count)
        return np.asarray(rows, np.int64), f"{why}." if why else None

    def _new_group(self, rows: NDArray[np.int64]) -> int:
        self._group[rows] = self._count
        self._rows[self._count] = rows
        self._count += 1
        return self._count - 1

    def _rows_of_group(self, number: int) -> NDArray[np.int64]:
        rows: NDArray[np.int64]
        if number < len(self.model.clusters):
            if self._by_group is None:
                codes = _places([named.key for named in self.model.clusters], self.model.keys)
                self._by_group = np.argsort(codes, kind="stable"), np.searchsorted(np.sort(codes), np.arange(len(self.model.clusters) + 1))
            order, starts = self._by_group
            rows = order[starts[number] : starts[number + 1]]
        else:
            rows = self._rows[number]
        still: NDArray[np.int64] = rows[self._group[rows] == number]
        return still

    def curated(self, found: Sequence[Open], undone: Mapping[int, int], acts: Sequence[Act]) -> Curated:
        """The curated clustering that results; the arguments are its ``open`` and ``undone``, and all acts."""
        clusters = list(self.clusters.values())
        place = np.zeros(self._count, np.int64)
        for number, cluster in enumerate(clusters):
            place[cluster.groups] = number
        places = place[self._group]
        sizes = np.bincount(places, minlength=len(clusters)).tolist()
        keys = np.array([cluster.key for cluster in clusters], np.int32)[places]
        left = set(self.model.keys[keys != self.model.keys].tolist())  # clusters that lost images
        rows = tuple(
            Cluster(one.key, one.name, one.description, size, one.hidden, one.starred, one.curated or one.key in left, tuple(one.merged), one.model_name)
            for one, size in zip(clusters, sizes, strict=True)
        )
        return Curated(
            keys=keys,
            hidden=self._hidden | np.array([cluster.hidden for cluster in rows], bool)[places],
            starred=self._starred,
            clusters=rows,
            open=tuple(found),
            undone=dict(undone),
            acts=len(acts),
            last=acts[-1].number if acts else 0,
            into={key: cluster.key for cluster in rows for key in cluster.merged},
        )


_APPLY: Mapping[str, Callable[[State, Act], str | None]] = {
    RENAME: State._rename,
    DESCRIBE: State._describe,
    MERGE: State._merge,
    SPLIT: State._split,
    MOVE: State._move,
    **dict.fromkeys((HIDE, SHOW, STAR, UNSTAR), State._mark),
}


def nearest(model: Model, rows: NDArray[np.int64], centres: NDArray[np.float32]) -> NDArray[np.int64] | None:
    """Index of the nearest of ``centres`` (k, dim) by cosine for each of ``rows`` (m,), (m,). None if the embeddings have another length."""
    directions, found = unit_rows(centres), [np.empty(0, np.int64)]
    for start in range(0, len(rows), _AT_ONCE):
        X = model.embeddings(rows[start : start + _AT_ONCE])
        if X.shape[1] != directions.shape[1]:
            return None
        found += [block.argmax(axis=1) for block in cosines(X, directions)]
    return np.concatenate(found)


def _places(keys: Sequence[int], of: NDArray[np.int32]) -> NDArray[np.int64]:
    """Index in ``keys`` of each value of ``of``, all of which must be in ``keys``."""
    order = np.argsort(keys)
    found: NDArray[np.int64] = order[np.searchsorted(np.asarray(keys)[order], of)]
    return found


def _what(act: Act) -> str:
    return f"the kind {act.kind}" if act.unknown == ("kind",) else f"{' and '.join(act.unknown)} of a {act.kind}"
