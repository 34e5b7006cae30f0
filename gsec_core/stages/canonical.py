"""Shared by every stage after encode: the usable images in canonical order, their vectors, and the tables `assignments` and `clusters`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from PIL import ImageOps

from gsec_core.clustering.centres import cluster_sums
from gsec_core.clustering.kmeans import cosines, row_blocks, unit_rows
from gsec_core.devices import thread_count
from gsec_core.errors import GsecError, Refused
from gsec_core.images.decode import decode
from gsec_core.stages import encode
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.scratch import scratch_array
from gsec_core.store import Shards
from gsec_core.store.arrays import to_matrix
from gsec_core.tables import ASSIGNMENTS, CLUSTERS, EMBEDDINGS_TABLE, OK, THUMBNAILS_TABLE

PART_ROWS = 65_536
"""Images per shard of the tables in canonical order."""


@dataclass(frozen=True)
class Usable:
    """The live images with status ok, in canonical order."""

    rows: pa.Table
    """image_id, uri, content_hash, shard, is_duplicate."""
    live: int
    """Live images, usable or not."""
    digest: str
    """xxh3-128 over image_id, content_hash and status of all live rows."""

    def __len__(self) -> int:
        """Number of usable images."""
        return int(self.rows.num_rows)


class Part(NamedTuple):
    """A shard of the tables in canonical order."""

    name: str
    start: int
    """Its first row in canonical order."""
    stop: int
    rows: pa.Table
    """Rows ``start`` to ``stop`` of `Usable.rows`."""


@once
def usable(context: Context) -> Usable:
    """The usable images of the run's generation; see `encode.encoded_rows`. Raises what it raises."""
    live = encode.encoded_rows(context)
    digest = xxhash.xxh3_128()
    for column in ("image_id", "content_hash", "status"):
        digest.update(b"\0".join(value.encode() if isinstance(value, str) else value or b"" for value in live[column].to_pylist()))
    rows = live.filter(pc.equal(live["status"], OK)).select(["image_id", "uri", "content_hash", "shard"])
    duplicates = pl.Series(rows["content_hash"]).is_duplicated().to_arrow()
    return Usable(rows.append_column("is_duplicate", duplicates), live.num_rows, digest.hexdigest())


def check_enough(context: Context) -> None:
    """Raises Refused if there are fewer usable images than clusters."""
    clusters, found = context.config.n_clusters, usable(context)
    if len(found) < clusters:
        raise Refused(
            f"clusters = {clusters}: only {len(found)} of {found.live} images are usable ({encode.most_frequent_reasons(context)}). "
            "Ask for fewer clusters or give more images."
        )


def part_names(context: Context) -> list[str]:
    """Names of the shards of the tables in canonical order."""
    return [f"part-{number:05d}" for number in range(-(-len(usable(context)) // PART_ROWS))]


def parts(context: Context, names: Sequence[str]) -> list[Part]:
    """The parts with the given names."""
    rows = usable(context).rows
    starts = [(name, number * PART_ROWS) for number, name in enumerate(part_names(context)) if name in names]
    return [Part(name, start, min(start + PART_ROWS, rows.num_rows), rows.slice(start, PART_ROWS)) for name, start in starts]


def rows_of_parts(context: Context, names: Sequence[str]) -> int:
    """Number of images in the named parts, as units of progress."""
    return sum(part.rows.num_rows for part in parts(context, names))


def step_of_parts(table: str, work: Callable[[Context, Sequence[str], Progress], Iterator[Finished]], *, whole: bool = False, busy: bool = False) -> Step:
    """A step that makes one table in canonical order, part by part; ``whole`` and ``busy`` as in `Step`."""
    return Step((table,), work, part_names, rows_of_parts, whole=whole, busy=busy)


def all_images(context: Context, names: Sequence[str]) -> int:
    """Number of usable images, as units of progress of a step whose one shard takes them all."""
    return len(usable(context))


@once
def load_embeddings(context: Context) -> NDArray[np.float16]:
    """The embeddings of all usable images in canonical order, (n, dim).

    A memory map of a temporary file, so that anonymous memory stays small; the file has no name, so that a killed process leaves
    nothing behind. Raises GsecError if an embedding is not finite, Refused if there is no folder ``scratch``, OSError
    if its disk is full.
    """
    return _load_vectors(context, encode.STAGE, "embedding")


@once
def load_second(context: Context) -> NDArray[np.float16]:
    """As `load_embeddings`, but by the second encoder, in a run with two: (n, dim of that encoder)."""
    return _load_vectors(context, encode.SECOND, "embedding")


@once
def load_joint(context: Context) -> NDArray[np.float16]:
    """As `load_embeddings`, but in the space shared with text: (n, joint_dim), or (n, dim) where that is the same space."""
    return _load_vectors(context, encode.STAGE, "joint") if has_joint(context) else load_embeddings(context)


def has_joint(context: Context) -> bool:
    """Whether the space shared with text differs from the space of the embeddings."""
    shards = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    return "joint" in shards.read(context.generation.shard_names[0], ["joint"]).column_names


def read_parts(context: Context, stage: Stage, table: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A complete table in canonical order, or some columns of it."""
    return pa.concat_tables(context.shards(stage, table).read_all(part_names(context), columns))


@once
def load_parts(context: Context, shards: Shards, column: str) -> NDArray[np.float16]:
    """The vectors in a column of a complete table in canonical order, (n, length); a memory map as in `load_embeddings`."""
    places = {part.name: slice(part.start, part.stop) for part in parts(context, part_names(context))}
    matrix: NDArray[np.float16] | None = None
    for name, table in shards.read_each(places, [column]):
        values = to_matrix(table, column)
        if matrix is None:
            matrix = scratch_array(context.config, (len(usable(context)), values.shape[1]), np.float16)
        matrix[places[name]] = values
    assert matrix is not None, "a table has at least one part"
    return matrix


def load_pixels(context: Context, side: int) -> NDArray[np.uint8]:
    """As `load_thumbnails`, but for training: raises Refused if an image has no thumbnail."""
    matrix, lost = load_thumbnails(context, side)
    if lost:
        raise Refused(f"{lost} of {len(matrix)} images have no thumbnail to learn from. Make them again: gsec run with --redo {encode.STAGE.name}.")
    return matrix


@once
def load_thumbnails(context: Context, side: int) -> tuple[NDArray[np.uint8], int]:
    """The thumbnails of all usable images in canonical order, (n, ``side``, ``side``, 3), RGB: the largest central square of each, resized.

    A memory map as in `load_embeddings`. Also returns the number of images without a thumbnail, whose pixels are zeros.
    """
    matrix, found = scratch_array(context.config, (len(usable(context)), side, side, 3), np.uint8), 0

    def square(thumbnail: bytes) -> NDArray[np.uint8]:
        return np.asarray(ImageOps.fit(decode(thumbnail), (side, side)))

    with ThreadPoolExecutor(thread_count(context.config.threads), thread_name_prefix="decode") as pool:
        for here in usable_rows(context, THUMBNAILS_TABLE):
            for position, pixels in zip(here["position"], pool.map(square, here["thumbnail"]), strict=True):
                matrix[position] = pixels
            found += len(here)
    return matrix, len(matrix) - found


def usable_rows(context: Context, table: str, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Yield the usable images' rows of ``table`` of stage encode, shard by shard; column ``position`` is the place of each in canonical order.

    ``columns`` must include image_id.
    """
    wanted = _by_shard(context)
    for name, rows in context.shards(encode.STAGE, table).read_each(sorted(wanted), columns):
        yield pl.DataFrame(rows).join(wanted[name], on="image_id")


def thumbnails(context: Context, image_ids: Iterable[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield image id and JPEG thumbnail of the given images, if they have one. Reads the store only, since the source may be gone."""
    rows = usable(context).rows
    rows = rows.filter(pc.is_in(rows["image_id"], pa.array(image_ids, pa.binary(16))))
    for shard, table in context.shards(encode.STAGE, THUMBNAILS_TABLE).read_each(sorted(set(rows["shard"].to_pylist()))):
        alive = rows.filter(pc.equal(rows["shard"], shard))["image_id"]  # an older shard may have the thumbnail of an earlier version of the file
        here = table.filter(pc.is_in(table["image_id"], alive))
        yield from zip(here["image_id"].to_pylist(), here["thumbnail"].to_pylist(), strict=True)


def _by_shard(context: Context) -> dict[Any, pl.DataFrame]:
    """Image ids of the usable images and their positions in canonical order, by shard."""
    places = pl.DataFrame(usable(context).rows.select(["image_id", "shard"])).with_row_index("position")
    return {shard: frame for (shard,), frame in places.partition_by("shard", as_dict=True, include_key=False).items()}


def _load_vectors(context: Context, stage: Stage, column: str) -> NDArray[np.float16]:
    embeddings, wanted = context.shards(stage, EMBEDDINGS_TABLE), _by_shard(context)
    width = embeddings.read(context.generation.shard_names[0], [column]).schema.field(column).type.list_size  # the shard may have no rows
    matrix = scratch_array(context.config, (len(usable(context)), width), np.float16)
    for name, table in embeddings.read_each(sorted(wanted), ["image_id", column]):
        here = pl.DataFrame(table.select(["image_id"])).with_row_index("row").join(wanted[name], on="image_id")
        values = to_matrix(table, column)[here["row"].to_numpy()]
        if not np.isfinite(values).all():
            raise GsecError(
                f"{stage.name}: embeddings in {embeddings.location(name)} are not finite. Encode again with --redo {stage.name} and encode.precision = fp32."
            )
        matrix[here["position"].to_numpy()] = values
    return matrix


def assignment_table(
    part: Part,
    labels: NDArray[np.integer[Any]],
    confidence: NDArray[np.float32],
    margin: NDArray[np.float32],
    agreement: NDArray[np.float32] | None = None,
    outlier: NDArray[np.float32] | None = None,
) -> pa.Table:
    """A table of schema ASSIGNMENTS for the images of a part; each array is (rows,). Only an ensemble gives the last two."""
    of_ensemble = [pa.nulls(len(labels), pa.float32()) if values is None else values for values in (agreement, outlier)]
    columns = [*(part.rows[name] for name in ("image_id", "uri", "content_hash")), labels, confidence, margin, *of_ensemble, part.rows["is_duplicate"]]
    return pa.table(columns, schema=ASSIGNMENTS)


def cluster_table(X: NDArray[np.float16], assignments: pa.Table, n_clusters: int, stability: NDArray[np.float32] | None = None) -> pa.Table:
    """A table of schema CLUSTERS for embeddings ``X`` (n, dim) and the assignments of the same rows; ``stability`` (n_clusters,) if there are members.

    A cluster's centre is the mean direction of its images. A cluster without images has neither a centre nor any measure.
    """
    labels = assignments["cluster"].to_numpy()
    sizes = np.bincount(labels, minlength=n_clusters)
    sums = cluster_sums(X, labels, n_clusters)
    centres = unit_rows(sums)
    # The mean cosine of unit rows to their mean direction is the length of their mean.
    cohesion = np.linalg.norm(sums, axis=1) / np.maximum(sizes, 1)
    filled = sizes > 0
    nearest = np.zeros(n_clusters, np.float32)
    nearest[filled] = _nearest_other(centres[filled])
    agreement = assignments.group_by("cluster").aggregate([("agreement", "mean")])
    mean_agreement = dict(zip(agreement["cluster"].to_pylist(), agreement["agreement_mean"].to_pylist(), strict=True))
    return pa.table(
        [
            np.arange(n_clusters),
            sizes,
            pa.array(cohesion, pa.float32(), mask=~filled),
            pa.array(1 - nearest, pa.float32(), mask=~filled if filled.sum() > 1 else np.ones(n_clusters, bool)),
            [mean_agreement.get(cluster) for cluster in range(n_clusters)],
            pa.nulls(n_clusters, pa.float32()) if stability is None else pa.array(stability, pa.float32(), mask=~filled),
        ],
        schema=CLUSTERS,
    )


def _nearest_other(centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest cosine of each centre to another centre, (n_clusters,), computed block by block."""
    found = []
    for rows, block in zip(row_blocks(len(centres), columns=len(centres)), cosines(centres, centres), strict=True):
        block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = -1
        found.append(block.max(axis=1))
    return np.concatenate(found)
