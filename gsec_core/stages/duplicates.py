"""duplicates: finds images that have an exact copy (equal bytes) or a near copy.

Reads `embeddings`, `thumbnails` and the neighbours of `prepare`; writes `duplicates` (one row for each image that has a copy). If a model is kept, the
neighbours are those of the model's run; those of new images are searched here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.clustering.duplicates import SIDE, Likeness, grouped
from gsec_core.clustering.neighbors import NeighborIndex, neighbor_count, neighbors_of
from gsec_core.config import AUTO, PipelineConfig
from gsec_core.devices import set_threads
from gsec_core.errors import Refused
from gsec_core.stages import encode, prepare
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import all_images, load_embeddings, load_thumbnails, usable, usable_rows
from gsec_core.store.arrays import to_matrix
from gsec_core.tables import ASSIGNMENTS_TABLE, DUPLICATES, DUPLICATES_TABLE, EMBEDDINGS_TABLE, NEIGHBORS_TABLE

THRESHOLDS = {"lite": 0.87}
"""Cosine threshold of an encoder family, at which precision and recall on photographs are both above .95 (`benchmarks.duplicates`)."""

THRESHOLD = 0.95
"""Cosine threshold of every other encoder, not measured."""

CANDIDATES = 20
"""Number of neighbours that an image is compared with, at least. Where `prepare` found fewer, they are searched here."""

FEW = 4096
"""Up to this number of distinct images, neighbours are searched here exactly."""

MANY = 16_384
"""With more images than this without neighbours, an index is built and all distinct images are searched in it."""


def threshold_of(config: PipelineConfig) -> float:
    """The least cosine of two embeddings at which they may be of the same picture; by the settings or the encoder's family."""
    threshold = config.duplicates.threshold
    return THRESHOLDS.get(config.encode.encoder.partition(":")[0], THRESHOLD) if isinstance(threshold, str) else threshold


def find(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Find all duplicates. Images of equal bytes, which are adjacent in canonical order, count as one; then near neighbours are compared."""
    set_threads(context.config.threads)
    near = _prepared(context)
    rows = usable(context).rows
    same_bytes = _first_of_equal(rows["content_hash"])
    like = Likeness(load_embeddings(context), load_thumbnails(context, SIDE)[0], threshold_of(context.config), context.config.threads)
    frame = pl.DataFrame(rows.select(["image_id", "uri"])).with_columns(of=pl.Series(same_bytes), pixels=pl.Series(_pixels(context)))
    order = frame.select(pl.arg_sort_by(-pl.col("pixels"), pl.col("uri").min().over("of"))).to_series().to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first, cosine = grouped(like, _candidates(context, same_bytes, near), lambda some: some[_searched(context, some, np.arange(len(some)))[1]], rank)
    progress(rows.num_rows)
    table = _table(frame.with_columns(first=pl.Series(first[same_bytes]), cosine=pl.Series(cosine[same_bytes])))
    yield Finished("all", (table,), {"groups": int(table["keep"].to_numpy(zero_copy_only=False).sum()), "duplicates": table.num_rows})


def _table(frame: pl.DataFrame) -> pa.Table:
    """The rows of ``frame`` (image_id, uri, of, first, cosine of all images) that share their group with others; schema DUPLICATES."""
    grouped = frame.filter(pl.len().over("first") > 1).with_columns(exact=pl.col("of") == pl.col("first"))
    kept = grouped.filter("exact").group_by("first").agg(pl.col("uri").min().alias("kept"))
    sizes = grouped.group_by("first").len().join(kept, on="first").sort("len", "kept", descending=[True, False]).with_row_index("group")
    found = grouped.join(sizes, on="first").with_columns(keep=pl.col("uri") == pl.col("kept"))
    found = found.sort("group", "keep", "cosine", "uri", descending=[False, True, True, False])
    return found.select(DUPLICATES.names).to_arrow().cast(DUPLICATES)


def _pixels(context: Context) -> NDArray[np.int64]:
    """Width by height of all usable images in canonical order, (n,)."""
    found = np.zeros(len(usable(context)), np.int64)
    for here in usable_rows(context, EMBEDDINGS_TABLE, ["image_id", "width", "height"]):
        found[here["position"].to_numpy()] = here["width"].to_numpy().astype(np.int64) * here["height"].to_numpy()
    return found


def _first_of_equal(hashes: pa.ChunkedArray) -> NDArray[np.int64]:
    """For each row in canonical order, the number of the first row with the same content hash, (n,)."""
    starts = pl.Series(hashes).is_first_distinct().to_numpy()
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))


def _prepared(context: Context) -> NDArray[np.int32] | None:
    """The neighbours of all images from `prepare`, (n, k), -1 for none.

    With a kept model, they come from its run: images that it was not fitted on have none. None if a table of that run is no longer complete. The model's own
    list of images is not read: where it was damaged, ingest has replaced it in the newest generation only.
    """
    if not context.keeps:
        return prepare.load_neighbors(context).image
    run = context.model.run
    try:
        fitted, table = run.read_table(ASSIGNMENTS_TABLE, ["content_hash"]), run.read_table(NEIGHBORS_TABLE, ["image_neighbors"])
    except Refused:
        return None
    near = to_matrix(table, "image_neighbors")
    here = pl.DataFrame(usable(context).rows.select(["content_hash"])).with_row_index("row").unique("content_hash", keep="first")
    joined = pl.DataFrame(fitted).join(here, on="content_hash", how="left", maintain_order="left")
    place = joined["row"].cast(pl.Int32).fill_null(-1).to_numpy()
    found = np.full((len(usable(context)), near.shape[1]), -1, np.int32)
    found[place[place >= 0]] = place[near[place >= 0]]
    return found


def _candidates(context: Context, same_bytes: NDArray[np.int64], near: NDArray[np.int32] | None) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Yield row numbers of distinct images, (m,), with the rows of their possible copies, (m, k), -1 for none; each image comes once."""
    distinct = np.flatnonzero(same_bytes == np.arange(len(same_bytes)))
    alone = np.arange(len(distinct)) if len(distinct) > 1 else np.empty(0, np.int64)
    if len(distinct) > FEW and near is not None and near.shape[1] >= CANDIDATES:
        others = np.where(near[distinct] >= 0, same_bytes[near[distinct]], -1)
        found = ((others >= 0) & (others != distinct[:, None])).any(1)  # false for a new image, or if all neighbours are exact copies
        alone = np.flatnonzero(~found)
        if len(alone) <= MANY:
            yield distinct[found], others[found]
    if len(alone):
        places, nearest = _searched(context, distinct, alone)
        yield distinct[places], distinct[nearest]


def _searched(context: Context, distinct: NDArray[np.int64], alone: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Search neighbours of the images at the positions ``alone`` in ``distinct``, or of all if ``alone`` is long.

    Returns positions (m,) and those of the neighbours (m, k), in ``distinct``.
    """
    from gsec_core.clustering.features import project

    X, n, threads = load_embeddings(context), len(distinct), context.config.threads
    half = prepare.load_halves(context.model if context.keeps else context)[0]

    def rows(places: Any) -> NDArray[Any]:
        found = X[distinct[places]]
        return found if n <= FEW else np.concatenate(list(project(found, half)))

    count = neighbor_count(n, CANDIDATES)
    if n <= FEW or len(alone) <= MANY:
        return alone, neighbors_of(rows, n, alone, count, n_threads=threads)
    return np.arange(n), NeighborIndex(rows, n, k=count, n_threads=threads).search(0, n, count)


def load_duplicates(context: Context) -> pa.Table | None:
    """The table `duplicates` of a run; None for runs of an older gsec without this stage."""
    return context.read(STAGE, DUPLICATES_TABLE) if context.has(STAGE) else None


def remarks(context: Context) -> list[str]:
    """A sentence about the number of copies in the run; none if there are no copies."""
    table = load_duplicates(context)
    if table is None or not table.num_rows:
        return []
    kept, exact = (int(pc.sum(table[column]).as_py()) for column in ("keep", "exact"))
    copies, alike = table.num_rows - kept, table.num_rows - exact
    said = "1 image is a copy of another" if copies == 1 else f"{copies:,} images are copies of {kept:,} {'other' if kept == 1 else 'others'}"
    return [f"{said}, {copies - alike:,} exact and {alike:,} near copies: see duplicates.csv of gsec export."]


def _inputs(context: Context) -> list[str]:
    prepared = context.model.run.fingerprint(prepare.STAGE.name) if context.keeps else prepare.STAGE.fingerprint(context)
    return [encode.STAGE.fingerprint(context), usable(context).digest, prepared]


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {} if config.duplicates.threshold == AUTO else {"threshold": config.duplicates.threshold}


STAGE = Stage(
    name="duplicates",
    version=1,
    settings=_settings,
    inputs=_inputs,
    steps=(Step((DUPLICATES_TABLE,), find, units=all_images, whole=True),),
)
