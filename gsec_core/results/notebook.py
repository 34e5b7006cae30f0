"""A finished run in a notebook: its tables as polars frames, its images and its embeddings. Imports no torch."""

import base64
import html
import io
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from gsec_core.curation import log_of
from gsec_core.errors import Merged, NotFound, Refused
from gsec_core.images.decode import content_hash, decode
from gsec_core.results.frames import Frames, find_run, read
from gsec_core.results.images import listed
from gsec_core.settings import load_config
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings, thumbnails, usable
from gsec_core.stages.encode import encoders_of, fetch
from gsec_core.store import Store
from gsec_core.tables import (
    ASSIGNED_TABLE,
    ASSIGNMENTS,
    ASSIGNMENTS_TABLE,
    CLUSTER_NAMES,
    CLUSTERS,
    DUPLICATES,
    DUPLICATES_TABLE,
    embeddings_schema,
)

T = TypeVar("T")

OUTLYING = 3.0
"""Outlier score above which an image is one of `OpenRun.outliers`."""

CLUSTERS_SHOWN, PICTURES_SHOWN = 30, 3
"""How many clusters the HTML table of a run shows (the largest), and how many pictures of each."""

_SMALL, _LARGE = 56, 96
"""Longest side of a picture in CSS pixels, in the table of a run and in a gallery. Thumbnails are at most `_LARGE` pixels."""


def open_run(store: str | os.PathLike[str] | None = None, run: str | None = None) -> "OpenRun":
    """Open a finished run, to read its clusters, images and embeddings.

    Parameters
    ----------
    store : str or path, optional
        A folder or fsspec URL. By default, as for every command, the one in the environment variable ``GSEC_STORE``, or else ``gsec-store``.
    run : str, optional
        An id, the beginning of one, or ``published/PIPELINE`` for the run that this pipeline publishes. By default the newest finished run.

    Returns
    -------
    OpenRun
        The run. If its clusters were curated, keys and names are the curated ones; the curation is read at the first access.

    Settings that do not change the result, such as ``GSEC_SCRATCH`` and ``GSEC_ENCODE__WORKERS``, are read from the environment. Raises Refused if there
    is no such run, or if it is not finished.
    """
    config = load_config(overrides={} if store is None else {"store": os.path.expanduser(os.fspath(store))})
    found = find_run(Store.open(config.store), run)
    return OpenRun(Context.of(found, config))


def _columns(*known: pa.Schema | Mapping[str, str]) -> Callable[[T], T]:
    """Decorator that adds a section with the meaning of each column to a docstring."""

    def documented(of: T) -> T:
        meanings: dict[str, str] = {}
        for some in known:
            meanings |= some if isinstance(some, Mapping) else {field.name: field.metadata[b"meaning"].decode() for field in some}
        lines = "".join(f"\n        {name} : {meaning}" for name, meaning in meanings.items())
        of.__doc__ = f"{of.__doc__}\n\n        Columns\n        -------{lines}\n        "
        return of

    return documented


_NAMED = {
    "cluster_key": "key of the cluster, which stays the same from run to run; after curation, if clusters were curated",
    "name": "name of the cluster; after curation, if clusters were curated",
}
_CURATED_IMAGES = {
    "hidden": "only if clusters were curated: whether the image or its cluster is hidden",
    "model_cluster_key, model_name": "only if clusters were curated: the model's own cluster of the image",
}
_CURATED_CLUSTERS = {
    "hidden, starred": "only if clusters were curated: whether the cluster is hidden or starred",
    "curated": "only if clusters were curated: whether name, description or images differ from the model's",
    "merged": "only if clusters were curated: keys of the clusters that were merged into it",
    "model_name, model_description, model_size": "only if clusters were curated: the model's own cluster with this key, to which all measures refer",
}


class OpenRun:
    """A finished run. At the end of a notebook cell it is displayed as a table of its clusters, with pictures.

    Tables are polars data frames, read at the first access and kept. If clusters were curated, names and keys are the curated ones,
    as in the files of `gsec export`. All raise BadShard if a table is damaged, Unreachable if the store does not answer.

    Attributes
    ----------
    id : str
        32 hex digits.
    pipeline : str
        The pipeline that its clustering is published under.
    """

    def __init__(self, context: Context) -> None:
        """Raises Refused if the run is not finished."""
        self.id = context.run.id
        self.pipeline = log_of(context).pipeline
        self._context = context
        self._frames = Frames(context)
        context.run.table(ASSIGNMENTS_TABLE if context.of_run is None else ASSIGNED_TABLE)
        _ = self._frames.model_clusters

    def __len__(self) -> int:
        """Number of images that have a cluster."""
        return len(self.assignments)

    def __repr__(self) -> str:
        return f"<gsec run {self.id}: {len(self):,} images in {len(self.clusters):,} clusters>"

    @property
    @_columns(ASSIGNMENTS, _NAMED, _CURATED_IMAGES)
    def assignments(self) -> pl.DataFrame:
        """One row for each image that has a cluster, in the order of `embeddings`."""
        return self._frames.assignments

    @property
    @_columns(CLUSTER_NAMES, CLUSTERS, {"cluster_key": _NAMED["cluster_key"]}, _CURATED_CLUSTERS)
    def clusters(self) -> pl.DataFrame:
        """One row for each cluster."""
        return self._frames.clusters

    @property
    def outliers(self) -> pl.DataFrame:
        """The rows of `assignments` with an outlier score above `OUTLYING` standard deviations, by descending score; without hidden images."""
        return self._frames.shown.filter(pl.col("outlier") > OUTLYING).sort("outlier", descending=True, maintain_order=True)

    @property
    @_columns(DUPLICATES)
    def duplicates(self) -> pl.DataFrame:
        """One row for each image that has a copy or a near-copy, group by group. Raises Refused if the run has no such table."""
        found = self._frames.duplicates
        if found is None:
            raise Refused(f"run {self.id} has no table {DUPLICATES_TABLE}: it assigns images to the clusters of another run, or an older gsec made it.")
        return found

    @property
    @_columns(pa.schema([field for field in ASSIGNMENTS if field.name == "uri"]), pa.schema(list(embeddings_schema(1, None))[-2:]))
    def unusable(self) -> pl.DataFrame:
        """One row for each image that has no cluster: rejected, or missing from the source when it was read."""
        return self._frames.unusable

    @cached_property
    def embeddings(self) -> NDArray[np.float16]:
        """The unit vectors of the images, (n, dim), in the order of `assignments`. Read-only.

        The array is a memory map of a temporary file in the folder ``GSEC_SCRATCH``, or the system's: it takes 2 bytes a value there, and little memory. The
        first access reads the whole table from the store. If the run has two encoders, the vectors are those of the first.
        """
        vectors = load_embeddings(self._context).view()
        vectors.flags.writeable = False
        return vectors

    def table(self, name: str) -> pl.DataFrame:
        """Any table of the run as it is in the store, such as ``map``, ``hierarchy`` or ``representative_captions``.

        ``docs/reference/tables.md`` lists the tables and their columns. Raises NotFound if the run has no table of this name.
        """
        if name not in self._frames.tables:
            raise NotFound(f"run {self.id} has no table {name}; it has {', '.join(sorted(self._frames.tables))}.")
        return read(self._context.run, name)

    def images(self, cluster: int | str, hidden: bool = False) -> pl.DataFrame:
        """The rows of `assignments` of one cluster, given its key or its name, by descending confidence. ``hidden=True`` includes hidden images.

        Raises NotFound if there is no such cluster, Refused if several clusters have the name.
        """
        rows = self.assignments if hidden else self._frames.shown
        return rows.filter(pl.col("cluster_key") == self._key(cluster)).sort("confidence", descending=True, maintain_order=True)

    def thumbnails(self, images: Any) -> list[Image.Image | None]:
        """Thumbnails of images from the store, at most 96 pixels wide and high; None for an image without one. Does not need the source.

        ``images`` are rows of `assignments`, or of any frame with a column ``image_id``, polars' or pandas'. Images of few clusters or shards are read fastest.
        """
        return [None if data is None else Image.open(io.BytesIO(data)) for data in self._jpegs(pl.DataFrame(images))]

    def read(self, uri: str) -> bytes:
        """The bytes of an image's file, from its source. ``uri`` is as in `assignments`.

        Raises NotFound if the run has no such image, or if the source no longer has it as it was clustered; Unreachable if the source does not answer.
        """
        row = self._listed.filter(pl.col("uri") == uri)
        if not len(row):
            raise NotFound(f"{uri}: run {self.id} has no image of this URI. run.assignments has all of them.")
        try:
            data = fetch(self._source, ImageRef(*row.select(ImageRef._fields).row(0)))
        except (MissingImage, RejectedImage) as error:
            raise NotFound(f"{uri}: the source no longer has it ({error}). run.thumbnails has a thumbnail of it.") from None
        if content_hash(data) != row["content_hash"][0]:
            raise NotFound(f"{uri}: the file has changed since it was clustered. run.thumbnails has a thumbnail of the earlier image.")
        return data

    def open(self, uri: str) -> Image.Image:
        """The picture of an image, from its source: 8-bit RGB, upright. Raises as `read` does."""
        return decode(self.read(uri))

    def gallery(self, images: Any, most: int = 24) -> "Gallery":
        """A gallery of the thumbnails of the first ``most`` images, to display at the end of a cell. ``images`` are as for `thumbnails`."""
        images = pl.DataFrame(images)
        shown = images.head(most)
        figures = "".join(_figure(row, jpeg) for row, jpeg in zip(shown.iter_rows(named=True), self._jpegs(shown), strict=True))
        more = f"<p>and {len(images) - len(shown):,} more</p>" if len(images) > len(shown) else ""
        return Gallery(f'<div style="display:flex;flex-wrap:wrap;gap:8px">{figures}</div>{more}')

    def _repr_html_(self) -> str:
        """HTML table of the largest clusters with their most confident images. It embeds all pictures and contains no script."""
        frames, shown = self._frames, self._frames.shown
        sizes = shown.group_by("cluster_key").agg(images=pl.len(), confidence=pl.col("confidence").mean())
        clusters = frames.shown_clusters.select("cluster_key", "name").join(sizes, on="cluster_key", how="left")
        clusters = clusters.with_columns(pl.col("images").fill_null(0)).sort("images", "cluster_key", descending=[True, False])
        listed = clusters.head(CLUSTERS_SHOWN)
        surest = shown.filter(pl.col("cluster_key").is_in(listed["cluster_key"].to_list())).sort("confidence", descending=True, maintain_order=True)
        surest = surest.group_by("cluster_key", maintain_order=True).head(PICTURES_SHOWN)
        pictures: dict[int, str] = {}
        for key, jpeg in zip(surest["cluster_key"], self._jpegs(surest), strict=True):
            pictures[key] = pictures.get(key, "") + _picture(jpeg, _SMALL)
        rows = "".join(
            f"<tr><td>{row['cluster_key']}</td><td>{html.escape(row['name'])}</td><td>{row['images']:,}</td>"
            f"<td>{'' if row['confidence'] is None else format(row['confidence'], '.2f')}</td><td>{pictures.get(row['cluster_key'], '')}</td></tr>"
            for row in listed.iter_rows(named=True)
        )
        head = "".join(f"<th>{name}</th>" for name in ("key", "name", "images", "confidence", "surest images"))
        more = f"<p>and {len(clusters) - len(listed):,} smaller clusters</p>" if len(clusters) > len(listed) else ""
        return f"<div><p>{self._about()}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}</div>"

    def _about(self) -> str:
        newest = Store(self._context.run.files).publications.newest(self.pipeline)
        published = ", published" if newest is not None and newest.run_id == self.id else ""
        unusable, hidden = usable(self._context).live - len(self), len(self) - len(self._frames.shown)
        said = [f"{len(self):,} images in {len(self.clusters):,} clusters"]
        said += [f"{count:,} {what}" for count, what in ((hidden, "hidden"), (unusable, "unusable")) if count]
        said += [f"method {html.escape(self._context.config.method)}", f"encoder {html.escape(encoders_of(self._context.run))}"]
        return f"<b>{html.escape(self.pipeline)}</b>{published}, run {self.id}<br>{', '.join(said)}"

    @cached_property
    def _listed(self) -> pl.DataFrame:
        return listed(self._context, self.assignments.select("image_id", "uri", "content_hash"))

    @cached_property
    def _source(self) -> Source:
        return self._context.open_source()

    def _key(self, cluster: int | str) -> int:
        clusters = self.clusters
        if isinstance(cluster, str):
            keys = clusters.filter(pl.col("name") == cluster)["cluster_key"].to_list()
            if len(keys) > 1:
                raise Refused(f"cluster {cluster}: {len(keys)} clusters have this name. Give the key of one: {', '.join(map(str, keys))}.")
            if not keys:
                raise NotFound(f"cluster {cluster}: run {self.id} has no cluster of this name. run.clusters has all of them.")
            return int(keys[0])
        key = operator.index(cluster)
        if key not in clusters["cluster_key"]:
            found = self._frames.curation
            if found is not None and key in found.into:
                raise Merged(key, found.into[key])
            raise NotFound(f"cluster {key}: run {self.id} has no cluster of this key. run.clusters has all of them.")
        return key

    def _jpegs(self, images: pl.DataFrame) -> Sequence[bytes | None]:
        if "image_id" not in images.columns:
            raise Refused("the frame has no column image_id: give rows of run.assignments, run.images, run.outliers or run.duplicates.")
        found = dict(thumbnails(self._context, images["image_id"].to_list()))
        return [found.get(id) for id in images["image_id"]]


class Gallery:
    """Pictures that a notebook displays, as HTML with the pictures embedded."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def _repr_html_(self) -> str:
        return self._shown


def _figure(row: Mapping[str, Any], jpeg: bytes | None) -> str:
    uri, confidence = str(row.get("uri", "")), row.get("confidence")
    said = [html.escape(uri.rpartition("/")[2])]
    if row.get("name") is not None:
        said.append(html.escape(row["name"]))
    if confidence is not None:
        said.append(f"{confidence:.2f}")
    style = "margin:0;width:100px;font-size:smaller;overflow-wrap:anywhere"
    return f'<figure style="{style}" title="{html.escape(uri)}">{_picture(jpeg, _LARGE)}<figcaption>{"<br>".join(said)}</figcaption></figure>'


def _picture(jpeg: bytes | None, side: int) -> str:
    if jpeg is None:
        return ""
    style = f"display:inline;max-width:{side}px;max-height:{side}px;margin:1px"
    return f'<img alt="" style="{style}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'
