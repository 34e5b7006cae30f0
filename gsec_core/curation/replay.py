"""What the acts of a log make of a run's clusters: a function of both and of nothing else.

Acts apply in the order of the log, each to what the ones before it have left. The model's own clustering stays what it is; every night's clusters go
through all acts again, by their keys. An act that does not find what it is about is *open*: it is told with the reason, the others count, and it applies
again as soon as that is back.

=====================  =============================================================================================================================
act                    does
=====================  =============================================================================================================================
rename, describe KEY   the cluster has this name, or description, from here on; of two the later counts
merge KEY KEYS         the images of KEYS come to KEY, which keeps its name, description, star and whether it is hidden; KEYS are gone from here on, for every
                       later act too. If some of KEYS are not there, the act is open, and the others are merged. Merged clusters may be merged again;
                       a cycle is impossible, as a cluster that is gone is merged into nothing
split KEY              every image of KEY goes to the nearest of the centres that the act holds: so do images of later nights. The first part keeps KEY with
                       all that was said of it; the others are called after it, and are hidden if it is
move KEY IMAGES        the images come to KEY, wherever they are. Images that are not there any more, or hold other bytes, are open; the others move.
                       Before a split of KEY a moved image is split like the others; after it, it stays in the part that it was moved to
hide, show             a cluster with all images that are in it in the end, or single images, wherever they are
star, unstar           a cluster, or single images
undo NUMBER            that act counts no more, as if it never was said; later acts that need it become open. Undone itself, it counts no more either, and the
                       act is back
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
"""Images whose embeddings are in memory at once."""


class Named(NamedTuple):
    """A cluster of a model."""

    key: int
    name: str
    description: str | None


@dataclass(frozen=True, eq=False)
class Model:
    """What a run found, as far as acts are about it: n images in canonical order."""

    image_ids: pa.Array
    """binary(16)."""
    content_hashes: pa.Array
    """binary(16)."""
    keys: NDArray[np.int32]
    """(n,): of each image the key of its cluster."""
    clusters: tuple[Named, ...]
    """By their numbers."""
    encoder: str
    embeddings: Callable[[NDArray[np.int64]], NDArray[Any]]
    """Of rows (m,) their embeddings by ``encoder``, (m, dim). Asked for splits alone."""


class Cluster(NamedTuple):
    """A cluster as people have curated it."""

    key: int
    name: str
    description: str | None
    size: int
    """Images, hidden ones included."""
    hidden: bool
    starred: bool
    curated: bool
    """Whether an act gave it its name or description, or images that the model did not put there, or split it."""
    merged: tuple[int, ...]
    """The clusters that are part of it."""
    model_name: str | None
    """What the model calls it; None of a part that a split made."""


class Open(NamedTuple):
    """An act that could not be applied, or not to all that it is about."""

    act: Act
    why: str


@dataclass(frozen=True, eq=False)
class Curated:
    """The curated clustering of a run: n images in canonical order."""

    keys: NDArray[np.int32]
    """(n,): of each image the key of its cluster."""
    hidden: NDArray[np.bool_]
    """(n,): whether the image, or its cluster, is hidden."""
    starred: NDArray[np.bool_]
    """(n,): whether the image itself is starred."""
    clusters: tuple[Cluster, ...]
    """The model's by their numbers, then those that splits made."""
    open: tuple[Open, ...]
    """In the order of the log. An act that is undone is not among them."""
    undone: Mapping[int, int]
    """The acts that count no more, each with the undo that says so."""
    acts: int
    """How many the log has."""
    last: int
    """Number of its last act; 0 if there is none."""
    into: Mapping[int, int]
    """Each key that is gone because it was merged, and the one that its images have now."""

    def of_model(self, key: int) -> Cluster:
        """What became of a cluster of the model: itself, or the one that it is part of."""
        return self.by_key[self.into.get(key, key)]

    @cached_property
    def by_key(self) -> Mapping[int, Cluster]:
        return {cluster.key: cluster for cluster in self.clusters}


def replay(acts: Sequence[Act], model: Model) -> Curated:
    """Apply the acts, in order, to what the model found."""
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
    """The acts that count no more, each with the last undo that says so and counts itself."""
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
    """Numbers of the groups of images that it has."""
    hidden: bool = False
    starred: bool = False
    curated: bool = False
    merged: list[int] = field(default_factory=list)


class State:
    """Clusters, and which images they have, after some acts.

    Images are in *groups*: one a cluster of the model, one a part that a split made, one a move. A cluster is a list of groups, so that to merge clusters
    touches no image.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.clusters = {named.key: _Cluster(*named, named.name, [number]) for number, named in enumerate(model.clusters)}
        self.names = Counter(named.name for named in model.clusters)
        self._group = _places([named.key for named in model.clusters], model.keys)
        self._rows: dict[int, NDArray[np.int64]] = {}
        """Of each group that an act made its images; some may have left it since."""
        self._by_group: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._count = len(model.clusters)
        self._hidden = np.zeros(len(model.keys), bool)
        self._starred = np.zeros(len(model.keys), bool)
        self._places: dict[str, tuple[int, str]] = {}
        """Of the images that acts name and that are there: row and content hash."""
        self._asked: set[str] = set()
        self._gone: dict[int, tuple[int, int]] = {}
        """Merged key -> the one that it was merged into, and by which act."""
        self._made: dict[int, int] = {}
        """Key of a part -> the split that makes it, whether it counts or not."""

    def prepare(self, acts: Sequence[Act]) -> None:
        """Look at acts that may be applied: at the images that they name, of many acts at once."""
        self._made |= {key: act.number for act in acts if act.kind == SPLIT for key in act.keys}
        wanted = {image.id for act in acts for image in act.images} - self._asked
        self._asked |= wanted
        ids = sorted(wanted)
        rows = pc.index_in(pa.array([bytes.fromhex(id) for id in ids], pa.binary(16)), value_set=self.model.image_ids)
        hashes = self.model.content_hashes.take(rows)
        there = zip(ids, rows.to_pylist(), hashes.to_pylist(), strict=True)
        self._places.update({id: (row, content.hex()) for id, row, content in there if row is not None})

    def row(self, id: str) -> int | None:
        """Of an image that was prepared for; None if it is not there."""
        return self._places[id][0] if id in self._places else None

    def is_hidden_with(self, row: int) -> int | None:
        """The cluster that an image is in, if that is hidden."""
        group = self._group[row]
        return next((cluster.key for cluster in self.clusters.values() if cluster.hidden and group in cluster.groups), None)

    def apply(self, act: Act) -> str | None:
        """Apply an act that is no undo. Returns why it could not be, or not to all of it, in a sentence."""
        if act.unknown:
            return f"a newer gsec wrote it, and this version does not know {_what(act)}."
        if act.key is not None and act.key not in self.clusters:
            return self.absent(act.key)
        return _APPLY[act.kind](self, act)

    def absent(self, key: int) -> str:
        """Why there is no cluster of this key."""
        if key in self._gone:
            into, by = self._gone[key]
            return f"cluster {key} is part of cluster {into} since act {by}."
        if key in self._made:
            return f"there is no cluster {key}, as act {self._made[key]}, which makes it, is undone or open."
        return f"there is no cluster {key} in this run."

    def rows_of(self, key: int) -> NDArray[np.int64]:
        """The images of a cluster, (m,), ascending."""
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
        """hide, show, star and unstar."""
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
        """The first of ``name (2)``, ``name (3)`` that no cluster has."""
        number = 2
        while self.names[f"{name} ({number})"] > 0:
            number += 1
        return f"{name} ({number})"

    def _images(self, act: Act) -> tuple[NDArray[np.int64], str | None]:
        """Rows of the images of an act that are as they were, and what is wrong with the others."""
        rows, gone, changed = [], 0, 0
        for id, content_hash in act.images:
            row, now = self._places.get(id, (None, None))
            if row is None:
                gone += 1
            elif now != content_hash:
                changed += 1
            else:
                rows.append(row)
        found = {"are not in this run": gone, "hold other bytes now": changed}
        why = ", and ".join(f"{count} of its {len(act.images)} images {what}" for what, count in found.items() if count)
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
        """What there is now."""
        clusters = list(self.clusters.values())
        place = np.zeros(self._count, np.int64)
        for number, cluster in enumerate(clusters):
            place[cluster.groups] = number
        places = place[self._group]
        sizes = np.bincount(places, minlength=len(clusters)).tolist()
        rows = tuple(
            Cluster(one.key, one.name, one.description, size, one.hidden, one.starred, one.curated, tuple(one.merged), one.model_name)
            for one, size in zip(clusters, sizes, strict=True)
        )
        return Curated(
            keys=np.array([cluster.key for cluster in rows], np.int32)[places],
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
    """Of each of ``rows`` (m,) the place of the nearest of ``centres`` (k, dim) by cosine, (m,). None if they are of another length than the embeddings."""
    directions, found = unit_rows(centres), [np.empty(0, np.int64)]
    for start in range(0, len(rows), _AT_ONCE):
        X = model.embeddings(rows[start : start + _AT_ONCE])
        if X.shape[1] != directions.shape[1]:
            return None
        found += [block.argmax(axis=1) for block in cosines(X, directions)]
    return np.concatenate(found)


def _places(keys: Sequence[int], of: NDArray[np.int32]) -> NDArray[np.int64]:
    """Of each of ``of`` its place among ``keys``, all of which it is one of."""
    order = np.argsort(keys)
    found: NDArray[np.int64] = order[np.searchsorted(np.asarray(keys)[order], of)]
    return found


def _what(act: Act) -> str:
    return f"the kind {act.kind}" if act.unknown == ("kind",) else f"{' and '.join(act.unknown)} of a {act.kind}"
