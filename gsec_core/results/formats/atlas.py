"""Export for Embedding Atlas: a table with a position on the map, a text and a thumbnail for each image, and the clusters' names as labels of the map."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gsec_core.results.files import make_folder, replacing
from gsec_core.results.formats.labelled import FACTS, Labelled
from gsec_core.results.images import Images, check_outside
from gsec_core.stages import encode
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import usable
from gsec_core.tables import THUMBNAILS_TABLE

TABLE, LABELS = "atlas.parquet", "labels.parquet"

_IMAGE = pa.struct([pa.field("bytes", pa.binary())])

_LEVEL = pl.CompatLevel.oldest()
"""Arrow's basic layouts, which every reader of Parquet supports."""


def write(labelled: Labelled, to: Path, images: Images | None = None) -> dict[str, int]:
    """Write ``atlas.parquet`` and, if the run has a map, ``labels.parquet`` for the option ``--labels``; see `formats.write`.

    Everything is read from the store (the pictures are its thumbnails), so the source may be gone.
    """
    for name in (TABLE, LABELS):
        check_outside(labelled.frames.context, to, name)
    rows, points = _rows(labelled), labelled.frames.points
    make_folder(to)
    with replacing(to / TABLE) as file:
        _write_table(labelled.frames.context, rows, file)
    if points is None:
        return {TABLE: len(rows)}
    labels = rows.group_by("cluster_key").agg(pl.col("x", "y").median(), text=pl.col("name").first(), priority=pl.len()).sort("cluster_key")
    with replacing(to / LABELS) as file:
        labels.drop("cluster_key").write_parquet(file)
    return {TABLE: len(rows), LABELS: len(labels)}


def load(to: Path, written: Mapping[str, int]) -> str:
    """See `formats.load`."""
    on_map = ["--x", "x", "--y", "y", "--labels", str(to / LABELS)] if LABELS in written else []
    return shlex.join(["embedding-atlas", str(to / TABLE), *on_map, "--text", "text", "--image", "image"])


def _rows(labelled: Labelled) -> pl.DataFrame:
    """All columns except the pictures, and the shard that holds the picture. The text is the image's own description, or the name of its cluster."""
    frames = labelled.frames
    rows = labelled.images.with_columns(name="class_name")
    if frames.points is not None:
        rows = rows.join(frames.points, on="image_id", how="left", maintain_order="left")
    rows = rows.join(frames.descriptions, on="content_hash", how="left", maintain_order="left").with_columns(text=pl.coalesce("text", "name"))
    shards = pl.DataFrame(usable(frames.context).rows.select(["image_id", "shard"]))
    places = ["x", "y"] if frames.points is not None else []
    kept = ["image_id", "shard", "name", "text", "uri", "cluster_key", *FACTS, *places]
    return rows.join(shards, on="image_id", how="left", maintain_order="left").select(kept)


def _write_table(context: Context, rows: pl.DataFrame, file: IO[bytes]) -> None:
    """Write one row group for each shard of thumbnails, so that only one shard is in memory."""
    kept = rows.drop("image_id", "shard")
    schema = kept.clear().to_arrow(compat_level=_LEVEL).schema.insert(0, pa.field("image", _IMAGE))
    by_shard = {shard: part for (shard,), part in rows.partition_by("shard", as_dict=True).items()}
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["name", "text"]) as writer:
        for shard, table in context.shards(encode.STAGE, THUMBNAILS_TABLE).read_each(sorted(by_shard)):
            part = by_shard[shard].join(pl.DataFrame(table), on="image_id", how="left", maintain_order="left")
            pictures = part["thumbnail"].to_arrow(compat_level=_LEVEL).cast(pa.binary())
            image = pa.StructArray.from_arrays([pictures], fields=list(_IMAGE), mask=pictures.is_null())
            columns = part.select(kept.columns).to_arrow(compat_level=_LEVEL)
            writer.write_table(columns.add_column(0, "image", image).cast(schema))
