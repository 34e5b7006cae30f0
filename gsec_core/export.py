"""A run's result for other programs: assignments with names as Parquet and CSV, the clusters as JSON, images by cluster.

Reads the run's tables and, for copies of images, its source. Imports no torch.
"""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import polars as pl
import pyarrow.compute as pc
from PIL import Image

from gsec_core.errors import Refused
from gsec_core.images import FORMATS
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.sources.folder import LocalFolder
from gsec_core.sources.listing import is_image_name
from gsec_core.sources.uris import inside
from gsec_core.stages.base import Context
from gsec_core.stages.encode import encoded_rows, fetch
from gsec_core.store import Run
from gsec_core.tables import ASSIGNED_TABLE, ASSIGNMENTS_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE, OK

Images = Literal["links", "copies"]

IMAGES = "images"
"""The folder of links or copies."""

LOST = "lost"
"""Counts images that the source no longer has."""

_FORMULA = r"^[\s\p{C}]*[=+\-@＝＋－＠]|^[\t\r\n]"
"""How a cell begins that a spreadsheet would run (OWASP, CSV injection)."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069]+')
"""What some system does not take in a file name, or shows as something else."""

_LONGEST = 120
"""Bytes of a file name, so that it fits wherever it is copied."""


def export(context: Context, to: Path, images: Images | None = None) -> dict[str, int]:
    """Write a run's result into the folder ``to``. Returns the files and folders written, with the rows or images of each.

    Files that are there are replaced, each at once. ``images`` adds a folder a cluster with links to the images, of a source
    that is a local folder, or with copies of them; `LOST` counts those that are not there any more. Raises Refused if the
    run is not finished, if there is a folder of images already, or if links are wanted of what are no files; OSError if the
    disk is full.
    """
    assignments, clusters = _assignments(context), _clusters(context)
    if images and (to / IMAGES).exists():
        raise Refused(f"--images {images}: {to / IMAGES} is there already, and may be of another run. Move it away, or name another folder.")
    source = context.open_source() if images else None
    if images == "links" and not isinstance(source, LocalFolder):
        raise Refused(f"--images links: the images of {context.config.source} are no files of this machine. Use --images copies.")
    to.mkdir(parents=True, exist_ok=True)
    with _replacing(to / "assignments.parquet") as file:
        assignments.write_parquet(file)
    with _replacing(to / "clusters.json") as file:
        file.write(_json(context, clusters))
    tables = {
        "assignments.csv": assignments.with_columns(pl.col("image_id", "content_hash").bin.encode("hex")),
        "clusters.csv": clusters.with_columns(pl.col("terms").list.join("; ")),
        "unusable.csv": pl.DataFrame(encoded_rows(context)).filter(pl.col("status") != OK).select("uri", "status", "reason").sort("uri"),
    }
    for name, table in tables.items():
        with _replacing(to / name) as file:
            write_csv(table, file)
    written = {"assignments.parquet": len(assignments), "clusters.json": len(clusters), **{name: len(table) for name, table in tables.items()}}
    return written if source is None else written | _write_images(context, source, assignments, to / IMAGES, images == "links")


def write_csv(table: pl.DataFrame, file: IO[bytes]) -> None:
    """Texts in quotes, and with an apostrophe before those that a spreadsheet would take for a formula."""
    table.with_columns(pl.col(pl.String).str.replace(f"({_FORMULA})", "'$1")).write_csv(file, quote_style="non_numeric")


def _assignments(context: Context) -> pl.DataFrame:
    """The schema of `assignments`, with the clusters' names beside their numbers."""
    shards, names = context.run.table(ASSIGNED_TABLE if context.of_run else ASSIGNMENTS_TABLE)
    rows = pl.concat([pl.DataFrame(table) for table in shards.read_all(names)])
    named = rows.join(_read(_model(context), CLUSTER_NAMES_TABLE).select("cluster", "name"), on="cluster", how="left", maintain_order="left")
    first = ["uri", "cluster", "name"]
    return named.select(*first, pl.exclude(*first))


def _clusters(context: Context) -> pl.DataFrame:
    return _read(_model(context), CLUSTER_NAMES_TABLE).join(_read(_model(context), CLUSTERS_TABLE), on="cluster", maintain_order="left")


def _model(context: Context) -> Run:
    """The run that made the clusters."""
    return (context.of_run or context).run


def _read(run: Run, table: str) -> pl.DataFrame:
    shards, names = run.table(table)
    return pl.concat([pl.DataFrame(found) for found in shards.read_all(names)])


def _json(context: Context, clusters: pl.DataFrame) -> bytes:
    config = context.config
    about = {"run_id": context.run.id, "source": config.source, "encoder": config.encode.encoder, "captioner": config.describe.captioner}
    return json.dumps({**about, "clusters": clusters.to_dicts()}, indent=1, ensure_ascii=False).encode()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        yield file
    os.replace(partial, path)


def _write_images(context: Context, source: Source, assignments: pl.DataFrame, to: Path, links: bool) -> dict[str, int]:
    """``to/CLUSTER NAME/IMAGE``; the folder appears when it is whole."""
    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    digits = len(str(context.config.clusters - 1))
    live = context.live.filter(pc.is_in(context.live["image_id"], assignments["image_id"].to_arrow().cast(context.live.schema.field("image_id").type)))
    refs = {row["image_id"]: ImageRef(row["uri"], row["size_bytes"], row["version"]) for row in live.to_pylist()}
    lost = 0
    for (cluster, name), rows in assignments.partition_by("cluster", "name", as_dict=True, maintain_order=True).items():
        folder = partial / safe_name(f"{cluster:0{digits}d} {name}")
        folder.mkdir(parents=True)
        taken: set[str] = set()
        for uri, image_id in rows.select("uri", "image_id").iter_rows():
            try:
                target = os.path.join(source.url, inside(uri))
                data = None if links and os.path.lexists(target) else fetch(source, refs[image_id])
            except (MissingImage, RejectedImage):
                lost += 1
                continue
            path = folder / _file_name(uri, image_id, data, taken)
            if data is None:
                path.symlink_to(target)
            else:
                path.write_bytes(data)
    partial.mkdir(exist_ok=True)  # a run may have assigned nothing
    partial.rename(to)
    return {to.name: len(assignments) - lost, LOST: lost}


def _file_name(uri: str, image_id: bytes, data: bytes | None, taken: set[str]) -> str:
    """The last part of the URI, with an ending that programs know, unlike the others of its folder whatever the case of its letters."""
    name = safe_name(uri.rpartition("/")[2])
    if data is not None and not is_image_name(name):
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            name = f"{name}.{(image.format or 'image').lower()}"
    if name.lower() in taken:
        stem, dot, ending = name.rpartition(".")
        name = f"{stem}-{image_id.hex()[:12]}{dot}{ending}"
    taken.add(name.lower())
    return name


def safe_name(text: str) -> str:
    """A file name on every system: short, visible, and no path."""
    name = _UNSAFE.sub("_", text).strip(" ")
    if len(name.encode()) > _LONGEST:
        stem, dot, ending = name.rpartition(".")
        ending = f"{dot}{ending}" if dot and len(ending) <= 5 else ""
        name = (stem if ending else name).encode()[: _LONGEST - len(ending)].decode(errors="ignore") + ending
    return "_" + name if not name.strip(".") or name.startswith((".", "-")) else name
