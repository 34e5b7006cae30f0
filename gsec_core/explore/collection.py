"""One finished run, for exploring."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import product
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.config import PipelineConfig
from gsec_core.curation import Act, Log, replay
from gsec_core.errors import BadRecord, BadShard, Merged, NotFound, Refused
from gsec_core.explore import clusters, queries
from gsec_core.explore.cached import CachedShards
from gsec_core.explore.clusters import View
from gsec_core.explore.columns import Columns, bytes16
from gsec_core.explore.duplicates import MOST_SHOWN, Duplicates
from gsec_core.explore.history import History
from gsec_core.explore.lazy import Lazy
from gsec_core.explore.polygon import Polygon, inside
from gsec_core.explore.rows import ActRow, Acts, ClusterRow, Duplicate, DuplicateGroup, Groups, ImageDetail, ImageRow, Page, Past, Tree
from gsec_core.explore.tree import tree
from gsec_core.explore.vectors import MOST_FOUND, Embeddings, Vectors, release
from gsec_core.results.frames import Frames
from gsec_core.stages import encode
from gsec_core.stages.base import Context
from gsec_core.store import Run, Shards
from gsec_core.store.publications import pipeline_of
from gsec_core.tables import EMBEDDINGS_TABLE, LAYOUT_TABLE, MAP_TABLE, THUMBNAILS_TABLE

if TYPE_CHECKING:
    from gsec_core.explore.second import Model

T = TypeVar("T")

MOST_ROWS = 200
"""Maximal number of rows in one part of a list."""

SORTS = {"confidence": True, "outlier": True, "date": True, "name": False}
"""Sort order of images -> whether it descends by default."""

NEIGHBORS = 12
"""Number of nearest images on an image's page."""

NOWHERE = 0xFFFF
"""Value in `Collection.map_points` in place of the cluster of a hidden image."""

_MODIFIED = r"^(?P<at>\d{16,18}|[1-8]\d{18})-\d+$"
"""Matches a version that begins with nanoseconds since 1970, as those of local files do; see `storage.stat_version`."""


class Collection:
    """A finished run with clusters of its own. Read-only and thread-safe. A method reads what it needs at its first call.

    Every method raises Refused with a message for users if a key or an id does not exist, a part of a list is invalid, or the run is not finished;
    BadShard for a damaged table, and Unreachable or OSError if the store does not answer.
    """

    def __init__(self, run: Run, config: PipelineConfig | None = None) -> None:
        """``config`` gives threads, device and scratch folder. Raises Refused if the run assigns images to another run's clusters."""
        self.run = run
        self.context = Context.of(run, config or PipelineConfig())
        if self.context.of_run is not None:
            raise Refused(f"run {run.id} assigns images to the clusters of run {self.context.of_run.run.id} and has none of its own. Explore that run.")
        self.pipeline = pipeline_of(self.context.config, self.context.corpus.name)
        self._columns = Lazy(lambda: Columns(run))
        self._made = Lazy(lambda: clusters.made(run))
        self._log = Log(run.files, self.pipeline)
        self._replayed = Lazy(lambda: clusters.model(self._columns(), self._made(), self.context.config.encode.encoder, self._embedded))
        self._viewing = Lock()
        self._seen: View | None = None
        self._places = Lazy(self._load_places)
        self._points = Lazy(self._load_points)
        self._thumbnails = Lazy(lambda: CachedShards(self._encoded(THUMBNAILS_TABLE)))
        self._embeddings = {stage.name: Lazy(partial(self._load_embeddings, stage.name)) for stage in encode.stages_of(run)}
        self._indexes: dict[tuple[str, str], Lazy[Vectors]] = {}
        self._model = Lazy(self._load_model)
        self._duplicates = Lazy(lambda: Duplicates(run, self._columns()))
        self._history = History(run.files, self.pipeline)
        self._captions: Lazy[dict[bytes, str]] = Lazy(lambda: dict(Frames(self.context).descriptions.iter_rows()))
        self._orders = {order: Lazy(partial(self._sort, *order)) for order in product(SORTS, (True, False))}

    def __len__(self) -> int:
        """Number of images, with hidden ones."""
        return len(self._columns())

    @property
    def images_in_memory(self) -> int:
        """Number of images whose columns are in memory."""
        columns = self._columns.made
        return 0 if columns is None else len(columns)

    @property
    def version(self) -> str:
        """Version of all answers: it depends on the run, whose tables never change, and on the curation log. Takes one directory listing."""
        curated = self._view().curated
        return f"{self.run.id}-{curated.acts}-{curated.last}"

    def clusters(self, hidden: bool = False) -> tuple[ClusterRow, ...]:
        """All clusters, the largest first; with ``hidden`` also the hidden ones."""
        return tuple(row for row in self._view().rows if hidden or not row.hidden)

    def cluster(self, key: int) -> ClusterRow:
        """One cluster, hidden or not."""
        return self._cluster(self._view(), key)

    def images(
        self,
        key: int | None = None,
        sort: str = "confidence",
        descending: bool | None = None,
        within: Polygon | None = None,
        hidden: bool = False,
        offset: int = 0,
        limit: int = 50,
    ) -> Page:
        """Images of a cluster, or of all clusters, sorted.

        ``within`` is a polygon on the map, in the unit square. ``sort`` is confidence, outlier, date (when the file was changed, if the source gives
        that for all images; else when it came into the corpus) or name.
        """
        _check_part(offset, limit)
        if sort not in SORTS:
            raise Refused(f"sort = {sort[:40]}: there are {', '.join(SORTS)}.")
        view = self._view()
        descending = SORTS[sort] if descending is None else descending
        if key is not None:
            self._cluster(view, key)
            rows = view.images(key)
            if sort != "confidence" or not descending:
                rows = rows[np.argsort(self._orders[sort, descending]()[1][rows])]
        else:
            rows = self._orders[sort, descending]()[0]
        if not hidden:
            rows = rows[~view.hidden[rows]]
        if within is not None:
            x, y = self._points()
            rows = rows[inside(x[rows], y[rows], within)]
        note = f"Sorted by when {self.dated}." if sort == "date" else None
        return Page(tuple(self._rows(view, rows[offset : offset + limit])), len(rows), offset, limit, note)

    def image(self, id: str, wait: float = 0.2) -> ImageDetail:
        """Everything known about one image. Waits at most ``wait`` seconds for values that another thread computes; see `ImageDetail.pending`."""
        view, columns = self._view(), self._columns()
        row = columns.row(id)
        made = self._made()[columns.cluster[row]]
        until = time.monotonic() + wait
        notes: list[str] = []
        found: dict[str, Any] | None = None
        with _told(notes):
            found = self._embeddings[encode.STAGE.name]().of(row)
        near = None if found is None else self._soon(self._vectors(encode.STAGE.name, "embedding"), until, notes)
        model = None if found is None else self._soon(self._model, until, notes)
        neighbors: list[ImageRow] = []
        second = None
        if found is not None and near is not None:
            neighbors = self._rows(view, *near.search(found["embedding"], NEIGHBORS, self._out(view, row)))
        if found is not None and model is not None:
            second = self._second(view, row, model, found)
        pending = not notes and (near is None or model is None)
        history: list[Past] = []
        with _told(notes):
            history = self._history.of(bytes.fromhex(id))
        copies = self._duplicates().rows[self._duplicates().of(row)]
        # The table has the cosines to the image to keep, which need not be this one.
        alike = None if found is None or near is None or not len(copies) else near.to_each(found["embedding"], copies)
        return ImageDetail(
            row=self._rows(view, np.array([row]))[0],
            caption=self._captions().get(columns.hashes[row].tobytes()),
            width=None if found is None else found["width"],
            height=None if found is None else found["height"],
            model_key=made.key,
            model_name=made.name,
            second=second,
            neighbors=tuple(neighbors),
            duplicates=tuple(self._rows(view, copies, alike)),
            history=tuple(history),
            pending=pending,
            note=" ".join(notes) or None,
        )

    def thumbnail(self, id: str) -> bytes | None:
        """The thumbnail of an image as JPEG; None if the store has none."""
        row = self._columns().row(id)
        try:
            table = self._thumbnails().read(self.context.generation.shard_names[self._places()[0][row]])
        except FileNotFoundError:
            return None
        place = np.flatnonzero(bytes16(table["image_id"]) == self._columns().ids[row])
        return table["thumbnail"][int(place[0])].as_py() if len(place) else None

    def by_words(self, text: str, offset: int = 0, limit: int = 50) -> Page:
        """Images that match words or a sentence, the most similar first: at most `vectors.MOST_FOUND`, without hidden ones.

        The first search loads the encoder, and reads all embeddings once. Raises Refused if none of the run's encoders reads words.
        """
        _check_part(offset, limit)
        return self._search(queries.words(self.context, text), None, offset, limit)

    def like(self, id: str, offset: int = 0, limit: int = 50) -> Page:
        """Images that look like the image with this id, without that image itself; see `by_words`."""
        _check_part(offset, limit)
        row = self._columns().row(id)
        vector = self._embeddings[encode.STAGE.name]().of(row)["embedding"]
        return self._search(queries.Query(encode.STAGE.name, "embedding", vector), row, offset, limit)

    def like_upload(self, data: bytes, offset: int = 0, limit: int = 50) -> Page:
        """Images that look like an uploaded one, given as the bytes of its file, which are not kept; see `by_words`. Raises Refused if it is not an image."""
        _check_part(offset, limit)
        return self._search(queries.image(self.context, data), None, offset, limit)

    def duplicates(self, offset: int = 0, limit: int = 50) -> Groups:
        """Groups of equal or nearly equal images, the largest first, with hidden images."""
        _check_part(offset, limit)
        view, all = self._view(), self._duplicates()
        groups = []
        for number in range(offset, min(offset + limit, len(all))):
            start, stop = (int(bound) for bound in all.starts[number : number + 2])
            part = slice(start, min(stop, start + MOST_SHOWN))
            rows = self._rows(view, all.rows[part], all.cosine[part])
            images = (Duplicate(*one) for one in zip(rows, all.exact[part].tolist(), all.keep[part].tolist(), strict=True))
            groups.append(DuplicateGroup(number, stop - start, int(all.exact[start:stop].sum()), tuple(images)))
        return Groups(tuple(groups), len(all), len(all.rows), offset, limit, all.note)

    def tree(self, groups: int | None = None) -> Tree:
        """The tree of the clusters, and its cut into ``groups`` groups. Raises Refused if the run has no tree, or if ``groups`` is not from 1 to the number
        of clusters."""
        return tree(self.run, self._made(), groups)

    def map_points(self) -> bytes:
        """The images on the map in canonical order, 6 bytes each: x, y (0 to 65,535) and the index of its cluster in `clusters`.

        All values are little-endian uint16. The third is `NOWHERE` for a hidden image. A run with a table `map` has all images on the map, a run of an
        older gsec only the sample that its report shows.
        """
        view = self._view()
        x, y = self._points()
        placed = np.flatnonzero(~np.isnan(x))
        place_of = {row.key: place for place, row in enumerate(row for row in view.rows if not row.hidden)}
        keys, at = np.unique(view.keys[placed], return_inverse=True)
        places = np.array([min(place_of.get(int(key), NOWHERE), NOWHERE) for key in keys], np.uint16)[at]
        places[view.hidden[placed]] = NOWHERE
        block = np.empty((len(placed), 3), "<u2")
        block[:, 0], block[:, 1], block[:, 2] = *(np.rint(values[placed] * 65_535) for values in (x, y)), places
        return block.tobytes()

    def map_point(self, place: int) -> ImageRow:
        """The image of a point, given its index in `map_points`. Raises Refused if there is no such point."""
        placed = np.flatnonzero(~np.isnan(self._points()[0]))
        if not 0 <= place < len(placed):
            raise Refused(f"point {place}: the map has {len(placed):,} points.")
        return self._rows(self._view(), placed[place : place + 1])[0]

    @property
    def dated(self) -> str:
        """The meaning of the sort order date in `images`, in words."""
        return "the file was changed" if self._places()[2] else "the image came into the corpus"

    def curation(self, offset: int = 0, limit: int = 50) -> Acts:
        """The acts in the curation log of the pipeline, newest first, each with the reason if it could not be applied to this run."""
        _check_part(offset, limit)
        curated, acts = self._view().curated, self._log.read()
        why = {one.act.number: one.why for one in curated.open}
        rows = (act_row(act, why.get(act.number), curated.undone.get(act.number)) for act in acts[::-1][offset : offset + limit])
        return Acts(tuple(rows), len(acts), offset, limit)

    def _view(self) -> View:
        """The clusters as they are curated now. Takes one directory listing; the log is read and replayed only if it has changed."""
        numbers = self._log.numbers()
        state = len(numbers), max(numbers, default=0)
        with self._viewing:
            view = self._seen
            if view is None or (view.curated.acts, view.curated.last) != state:
                view = self._seen = View(self._columns(), self._made(), replay(self._log.read(), self._replayed()))
            return view

    @staticmethod
    def _cluster(view: View, key: int) -> ClusterRow:
        if key not in view.by_key:
            if key in view.curated.into:
                raise Merged(key, view.curated.into[key])
            raise NotFound(f"cluster {key}: the run has no cluster of this key.")
        return view.by_key[key]

    def _search(self, query: queries.Query, itself: int | None, offset: int, limit: int) -> Page:
        view = self._view()
        out = self._out(view, itself)
        total = min(MOST_FOUND, int((~out).sum()))
        rows: list[ImageRow] = []
        note = query.note
        if total > offset:
            # Always the whole list: of images with equal cosines, as copies have, a search for fewer finds others, and pages would overlap.
            found = self._vectors(query.stage, query.column)().search(query.vector, total, out)
            part = slice(offset, offset + limit)
            rows = self._rows(view, found.rows[part], found.cosines[part])
            if found.cosines[0] < query.least:
                note = f"Even the nearest images are not very similar, so they may show anything. {note}"
        return Page(tuple(rows), total, offset, limit, note)

    @staticmethod
    def _out(view: View, row: int | None) -> NDArray[np.bool_]:
        """Mask (n,) of images that a search must not find: hidden ones, and the image ``row`` that it starts from."""
        if row is None:
            return view.hidden
        out = view.hidden.copy()
        out[row] = True
        return out

    def _vectors(self, stage: str, column: str) -> Lazy[Vectors]:
        return self._indexes.setdefault((stage, column), Lazy(lambda: Vectors(self._embeddings[stage](), column, len(self), self.context.config)))

    def _soon(self, lazy: Lazy[T], until: float, notes: list[str]) -> T | None:
        """The value if it is ready at time ``until``, else None, while another thread computes it. Its errors are added to ``notes``."""
        value: T | None = None
        with _told(notes), suppress(TimeoutError):
            value = lazy.future().result(max(0, until - time.monotonic()))
        return value

    def _second(self, view: View, row: int, model: "Model", found: Mapping[str, Any]) -> tuple[int, str] | None:
        made = self._made()
        if len(made) < 2:
            return None
        other = None if encode.SECOND not in encode.stages_of(self.run) else self._embeddings[encode.SECOND.name]().of(row)["embedding"]
        posteriors = model.posteriors(found["embedding"], found.get("joint", found["embedding"]), other)
        posteriors[self._columns().cluster[row]] = -1
        now = [view.curated.of_model(one.key) for one in made]
        posteriors[np.array([one.key for one in now]) == view.keys[row]] = -1  # clusters that were merged into the image's own do not count
        likely = int(posteriors.argmax())
        return None if posteriors[likely] < 0 else (now[likely].key, now[likely].name)

    def _load_model(self) -> "Model":
        from gsec_core.explore.second import Model  # imported here, because it imports torch

        return Model(self.context)

    def _rows(self, view: View, rows: NDArray[np.integer[Any]], cosines: NDArray[np.float32] | None = None) -> list[ImageRow]:
        columns = self._columns()
        return [
            ImageRow(
                id, uri, int(key), view.names[int(key)], float(confidence), None if np.isnan(outlier) else float(outlier), bool(starred), bool(hidden), cosine
            )
            for id, uri, key, confidence, outlier, starred, hidden, cosine in zip(
                columns.hexes(rows),
                columns.names(rows),
                view.keys[rows],
                columns.confidence[rows],
                columns.outlier[rows],
                view.starred[rows],
                view.hidden[rows],
                [None] * len(rows) if cosines is None else cosines.astype(float).tolist(),
                strict=True,
            )
        ]

    def _sort(self, sort: str, descending: bool) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All rows in this order, with ties in canonical order, and the rank of each row."""
        columns = self._columns()
        if sort == "name":
            order = pc.sort_indices(pa.table({"uri": columns.uris}), [("uri", "descending" if descending else "ascending")]).to_numpy().astype(np.int64)
        else:
            values = self._places()[1] if sort == "date" else getattr(columns, sort)
            order = np.argsort(-values if descending else values, kind="stable")  # without a value last, either way
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        return order, rank

    def _load_places(self) -> tuple[NDArray[np.int32], NDArray[np.float64], bool]:
        """For each image the number of its `images` shard and a time; and whether the times are those of the files' last changes."""
        generation, columns = self.context.generation, self._columns()
        shards, times, modified = np.full(len(columns), -1, np.int32), np.zeros(len(columns)), True
        images = self.context.corpus.images.read_each(generation.shard_names, ["image_id", "version"])
        for number, (_, table) in enumerate(images):  # the newest row of an image counts, and comes last
            rows = columns.rows(bytes16(table["image_id"]))
            there = rows >= 0
            shards[rows[there]] = number
            if modified:
                found = pc.struct_field(pc.extract_regex(table["version"], pattern=_MODIFIED), "at")
                modified = found.null_count == 0
                times[rows[there]] = (pc.cast(pc.fill_null(found, "0"), pa.int64()).to_numpy() / 1e9)[there]
        release()
        if not modified:
            times = np.array([shard.generation for shard in generation.shards], np.float64)[shards]
        return shards, times, modified

    def _embedded(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The embeddings of rows (m,), (m, d), for acts that split a cluster. The first call reads all embeddings once."""
        from gsec_core.stages.canonical import load_embeddings

        return load_embeddings(self.context)[rows]

    def _load_points(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """x and y of each image on the map, (n,) each; NaN for images that are not on it."""
        columns, wanted = self._columns(), ["image_id", "x", "y"]
        try:
            table = self.run.read_table(MAP_TABLE, wanted)
        except Refused:  # of an older gsec: the sample that the report shows
            table = self.run.read_table(LAYOUT_TABLE, wanted)
        rows = columns.rows(bytes16(table["image_id"]))
        points = np.full((2, len(columns)), np.nan, np.float32)
        for values, name in zip(points, ("x", "y"), strict=True):
            values[rows[rows >= 0]] = table[name].to_numpy()[rows >= 0]
        return points[0], points[1]

    def _load_embeddings(self, stage: str) -> Embeddings:
        return Embeddings(self._encoded(EMBEDDINGS_TABLE, stage), self.context.generation.shard_names, self._columns(), self._places()[0])

    def _encoded(self, table: str, stage: str = encode.STAGE.name) -> Shards:
        """A table of an encoder's stage, complete or not."""
        record = self.run.stage(stage)
        if record is None:
            raise Refused(f"run {self.run.id} has no stage {stage}.")
        return self.run.place(record).table(table, record["fingerprint"])


@contextmanager
def _told(notes: list[str]) -> Iterator[None]:
    """Context manager that turns an error about one part of an image's details into a note, so that the other parts are still shown."""
    try:
        yield
    except (Refused, BadShard, BadRecord) as error:
        notes.append(str(error))


def act_row(act: Act, open: str | None = None, undone: int | None = None) -> ActRow:
    """An act as a row of a list, with at most `MOST_ROWS` of its images."""
    images = tuple(image.id for image in act.images[:MOST_ROWS])
    return ActRow(act.number, act.kind, act.who, act.at, act.why, act.key, act.keys, act.text, images, len(act.images), act.undoes, undone, open)


def _check_part(offset: int, limit: int) -> None:
    if offset < 0:
        raise Refused(f"offset = {offset}: give 0 or more.")
    if not 1 <= limit <= MOST_ROWS:
        raise Refused(f"limit = {limit}: give 1 to {MOST_ROWS}.")
