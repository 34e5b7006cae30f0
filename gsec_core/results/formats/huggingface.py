"""Export as a dataset for Hugging Face's `datasets`: Parquet files that contain the images, and a card that names the data files."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from gsec_core.errors import Refused
from gsec_core.results.files import appearing, make_folder, replacing
from gsec_core.results.formats.labelled import FACTS, Labelled
from gsec_core.results.images import LOST, Images, check_outside, read_images

DATA, CARD = "data", "README.md"

SHARD_BYTES = 500 * 10**6
"""Maximal size of a Parquet file before compression, as in the library."""

_KINDS = {"cluster_key": "int32", "name": "string", **dict.fromkeys(FACTS, "float32"), "is_duplicate": "bool", "uri": "string"}
"""The columns besides ``image`` and ``label``, and their types, which Arrow and the library name alike."""

_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: {data}/train-*.parquet
---

# {title}

{about}

| column | |
| --- | --- |
| `image` | the file as it is in the source |
| `label` | its cluster, as a class; the classes have the clusters' names |
| `cluster_key`, `name` | the cluster's key, which stays the same from run to run, and its name |
| `confidence`, `margin`, `agreement`, `outlier`, `is_duplicate` | as in gsec's table `assignments` |
| `uri` | where the image is, relative to its source |

The clusters were found without labels: a class is a cluster, not ground truth.
"""


def write(labelled: Labelled, to: Path, images: Images | None = None) -> dict[str, int]:
    """Write ``data/train-*.parquet`` and ``README.md``; see `formats.write`."""
    if (to / DATA).exists():
        raise Refused(f"--to {to}: {to / DATA} exists already, and may belong to another run. Move it away, or name another folder.")
    check_outside(labelled.frames.context, to / DATA, "train-00000-of-00001.parquet")
    source = labelled.frames.context.open_source()
    source.check()
    make_folder(to)
    schema, parts = _schema(labelled), read_images(labelled.frames.context, source, labelled.images)
    with appearing(to / DATA) as folder:
        count = _write_shards(folder, schema, (_table(schema, *part) for part in parts))
    with replacing(to / CARD) as file:
        file.write(_CARD.format(data=DATA, title="Clusters of images", about=labelled.about).encode())
    return {DATA: count, LOST: len(labelled.images) - count}


def load(to: Path, written: Mapping[str, int]) -> str:
    """See `formats.load`."""
    return f"datasets.load_dataset({str(to)!r})"


def _write_shards(folder: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> int:
    """Write each table as a row group, into files of at most `SHARD_BYTES`. Returns the number of rows."""
    paths: list[Path] = []
    writer: pq.ParquetWriter | None = None
    rows = size = 0
    try:
        for table in tables:
            if writer is None or size + table.nbytes > SHARD_BYTES:
                if writer is not None:
                    writer.close()
                paths.append(folder / f"{len(paths)}.parquet")
                writer, size = _writer(paths[-1], schema), 0
            writer.write_table(table)
            rows, size = rows + len(table), size + table.nbytes
        if writer is None:  # no image exists any more
            paths.append(folder / "0.parquet")
            writer = _writer(paths[-1], schema)
    finally:
        if writer is not None:
            writer.close()
    for number, path in enumerate(paths):
        path.rename(folder / f"train-{number:05d}-of-{len(paths):05d}.parquet")
    return rows


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer that compresses all columns except the images, which are compressed files already."""
    compression = {("image.bytes" if name == "image" else name): "none" if name == "image" else "zstd" for name in schema.names}
    return pq.ParquetWriter(path, schema, compression={**compression, "image.path": "zstd"}, use_dictionary=["name"])


def _schema(labelled: Labelled) -> pa.Schema:
    """The Arrow schema, with the metadata from which the library reads the features."""
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": labelled.classes["class_name"].to_list()},
        **{name: {"_type": "Value", "dtype": kind} for name, kind in _KINDS.items()},
    }
    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    fields = [pa.field("image", image), pa.field("label", pa.int64()), *(pa.field(name, pa.type_for_alias(kind)) for name, kind in _KINDS.items())]
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _table(schema: pa.Schema, rows: pl.DataFrame, data: list[bytes]) -> pa.Table:
    files = [uri.rpartition("/")[2] for uri in rows["uri"]]
    image = pa.StructArray.from_arrays([pa.array(data, pa.binary()), pa.array(files, pa.string())], fields=list(schema.field("image").type))
    return pa.table([image, *rows.select("label", *_KINDS).to_arrow().columns], names=schema.names).cast(schema)
