"""A run's result for other programs: assignments with names as Parquet and CSV, the clusters as JSON, images by cluster.

Reads the run's tables and, for copies of images, its source. Imports no torch.
"""

import functools
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import polars as pl
from PIL import Image

from gsec_core.devices import usable_cores
from gsec_core.errors import Refused
from gsec_core.images.decode import FORMATS, content_hash
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.sources.folder import LocalFolder
from gsec_core.sources.listing import is_image_name
from gsec_core.sources.uris import inside
from gsec_core.stages.base import Context
from gsec_core.stages.encode import encoded_rows, encoders_of, fetch
from gsec_core.store import Run
from gsec_core.tables import ASSIGNED_TABLE, ASSIGNMENTS_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE, LINEAGE_TABLE, OK

Images = Literal["links", "copies"]

IMAGES = "images"
"""The folder of links or copies."""

ENCODER = "encoder"
"""The folder of the encoder that the run has trained."""

LOST = "lost"
"""Counts images that the source no longer has as they were clustered."""

_FORMULA = r"^[\s\p{C}]*[=+\-@＝＋－＠]|^[\t\r\n]"
"""How a cell begins that a spreadsheet would run (OWASP, CSV injection)."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+')
"""What some system does not take in a file name, or shows as something else."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Devices of Windows, whatever the ending."""

_LONGEST, _LONGEST_ENDING = 120, 6
"""Bytes of a file name, so that it fits wherever it is copied, and characters of its ending."""


def export(context: Context, to: Path, images: Images | None = None, encoder: bool = False) -> dict[str, int]:
    """Write a run's result into the folder ``to``. Returns the files and folders written, with the rows or images of each.

    Files that are there are replaced, each at once. ``images`` adds a folder a cluster with links to the images, of a source
    that is a local folder, or with copies of them; `LOST` counts those that are gone or, of copies, others by now. ``encoder`` adds the
    folder of the encoder that the run has trained, as `enhance.write_encoder` does, which imports torch; counted are its files. Raises
    Refused if the run is not finished, if there is a folder of images already, or if links are wanted of what are no files;
    OSError if the disk is full.
    """
    assignments, clusters = _assignments(context), _clusters(context)
    if images and (to / IMAGES).exists():
        raise Refused(f"--images {images}: {to / IMAGES} is there already, and may be of another run. Move it away, or name another folder.")
    if encoder and (to / ENCODER).exists():
        raise Refused(f"--encoder: {to / ENCODER} is there already, and a run may need it. Move it away, or name another folder.")
    source = context.open_source() if images else None
    if images == "links" and not isinstance(source, LocalFolder):
        raise Refused(f"--images links: the images of {context.config.source} are no files of this machine. Use --images copies.")
    make_folder(to)
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
    if encoder:
        written |= {ENCODER: _write_encoder(context, to / ENCODER)}
    return written if source is None else written | _write_images(context, source, assignments, to / IMAGES, images == "links")


def make_folder(to: Path) -> None:
    """Make the folder that a user named, if it is not there. Raises Refused if it cannot be made."""
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--to {to}: no folder can be made there ({error.strerror}). Name another.") from None


def write_csv(table: pl.DataFrame, file: IO[bytes]) -> None:
    """Texts in quotes, and with an apostrophe before those that a spreadsheet would take for a formula."""
    table.with_columns(pl.col(pl.String).str.replace(f"({_FORMULA})", "'$1")).write_csv(file, quote_style="non_numeric")


def _assignments(context: Context) -> pl.DataFrame:
    """The schema of `assignments`, with the clusters' keys and names beside their numbers."""
    rows = _read(context.run, ASSIGNED_TABLE if context.of_run else ASSIGNMENTS_TABLE)
    named = rows.join(_clusters(context).select("cluster", "cluster_key", "name"), on="cluster", how="left", maintain_order="left")
    first = ["uri", "cluster", "cluster_key", "name"]
    return named.select(*first, pl.exclude(*first))


def _clusters(context: Context) -> pl.DataFrame:
    keys, *more = (_read(_model(context), table) for table in (LINEAGE_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE))
    return functools.reduce(lambda left, right: left.join(right, on="cluster", maintain_order="left"), more, keys.select("cluster", "cluster_key"))


def _model(context: Context) -> Run:
    """The run that made the clusters."""
    return (context.of_run or context).run


def _read(run: Run, table: str) -> pl.DataFrame:
    shards, names = run.table(table)
    return pl.concat([pl.DataFrame(found) for found in shards.read_all(names)])


def _json(context: Context, clusters: pl.DataFrame) -> bytes:
    config = context.config
    about = {"run_id": context.run.id, "source": config.source, "encoder": encoders_of(context.run), "captioner": config.describe.captioner}
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
    digits = len(str(context.config.n_clusters - 1))
    listed = assignments.join(pl.DataFrame(context.live.select(["image_id", "size_bytes", "version"])), on="image_id", maintain_order="left")
    place = functools.partial(_link if links else _copy, source)
    found = 0
    with ThreadPoolExecutor(context.config.encode.workers or usable_cores(), thread_name_prefix="export") as pool:
        for (cluster, name), rows in listed.partition_by("cluster", "name", as_dict=True, maintain_order=True).items():
            folder = partial / safe_name(f"{cluster:0{digits}d} {name}")
            folder.mkdir(parents=True)
            refs = list(map(ImageRef._make, rows.select(ImageRef._fields).iter_rows()))
            paths = [folder / name for name in file_names([ref.uri for ref in refs])]
            found += sum(pool.map(place, refs, rows["content_hash"], paths))
    partial.mkdir(exist_ok=True)  # a run may have assigned nothing
    partial.rename(to)
    return {to.name: found, LOST: len(assignments) - found}


def _write_encoder(context: Context, to: Path) -> int:
    """The folder appears when it is whole. Returns its files."""
    from gsec_core.stages import enhance

    partial = to.with_name(f".{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    enhance.write_encoder(context, partial)
    partial.rename(to)
    return len(list(to.iterdir()))


def _link(source: Source, ref: ImageRef, digest: bytes, path: Path) -> bool:
    """False if the file is not there any more."""
    target = os.path.join(source.url, inside(ref.uri))
    if not os.path.exists(target):
        return False
    path.symlink_to(target)
    return True


def _copy(source: Source, ref: ImageRef, digest: bytes, path: Path) -> bool:
    """False if what was clustered is not there any more."""
    try:
        data = fetch(source, ref)
    except (MissingImage, RejectedImage):
        return False
    if content_hash(data) != digest:
        return False
    if not is_image_name(path.name):  # a row of a Parquet file
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            path = path.with_name(f"{path.name}.{(image.format or 'image').lower()}")
    path.write_bytes(data)
    return True


def file_names(uris: Sequence[str]) -> list[str]:
    """The last parts of URIs as names of files in one folder, unlike each other on every system."""
    taken: dict[str, int] = {}
    names = []
    for uri in uris:
        first = name = safe_name(uri.rpartition("/")[2])
        stem, ending = os.path.splitext(first)
        while _folded(name) in taken:
            taken[_folded(first)] += 1
            name = f"{stem} {taken[_folded(first)]}{ending}"
        taken[_folded(name)] = 1
        names.append(name)
    return names


def safe_name(text: str) -> str:
    """A file name on every system: short, visible, and no path."""
    stem, ending = os.path.splitext(_UNSAFE.sub("_", text).strip(". "))
    if len(ending) > _LONGEST_ENDING:
        stem, ending = stem + ending, ""
    stem = stem.encode()[: _LONGEST - len(ending.encode())].decode(errors="ignore").rstrip(". ") or "_"
    return f"{'_' if stem.startswith('-') or _RESERVED.fullmatch(stem) else ''}{stem}{ending}"


def _folded(name: str) -> str:
    """Equal for names that some system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()
