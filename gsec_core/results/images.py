"""The images of a run, from its source: as links or copies, one folder for each cluster, or their bytes one after the other."""

import functools
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import polars as pl
from PIL import Image

from gsec_core.devices import usable_cores
from gsec_core.errors import Refused
from gsec_core.images.decode import FORMATS, content_hash
from gsec_core.results.files import appearing
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.sources.folder import LocalFolder
from gsec_core.sources.listing import is_image_name
from gsec_core.sources.uris import inside
from gsec_core.stages.base import Context
from gsec_core.stages.encode import fetch

Images = Literal["links", "copies"]

IMAGES = "images"
"""The folder of links or copies."""

LOST = "lost"
"""Counts images that the source no longer has as they were clustered."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+')
"""What some system does not take in a file name, or shows as something else."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Devices of Windows, whatever the ending."""

_LONGEST, _LONGEST_ENDING = 120, 6
"""Bytes of a file name, so that it fits wherever it is copied, and characters of its ending."""

_AT_ONCE, _BYTES_AT_ONCE = 256, 2**26
"""Images that are in memory at once, and their bytes, as far as the source's listing tells; a larger image is alone."""


def open_for(context: Context, images: Images | None, to: Path) -> Source | None:
    """The source to place images from into ``to/images``; None if none are wanted. Raises Refused if that is there, or if links are wanted of no files."""
    if images is None:
        return None
    if (to / IMAGES).exists():
        raise Refused(f"--images {images}: {to / IMAGES} exists already, and may belong to another run. Move it away, or name another folder.")
    source = context.open_source()
    if images == "links" and not isinstance(source, LocalFolder):
        raise Refused(f"--images links: the images of {context.config.source} are not files on this machine. Use --images copies.")
    return source


def place_images(context: Context, source: Source, images: pl.DataFrame, to: Path, links: bool) -> pl.DataFrame:
    """Links to images, or copies, at ``to/CLUSTER NAME/IMAGE``; the folder appears when it is whole.

    ``images`` has image_id, uri, content_hash, cluster and name. Returns image_id and path, relative to the parent of ``to``, of those that are placed.
    """
    digits = len(str(context.config.n_clusters - 1))
    place = functools.partial(_link if links else _copy, source)
    placed = [pl.DataFrame(schema={"image_id": pl.Binary, "path": pl.String})]
    with appearing(to) as folder, ThreadPoolExecutor(_threads(context), thread_name_prefix="export") as pool:
        for rows in _in_turn(_named(_listed(context, images), digits)):
            for name in rows["folder"].unique():
                (folder / name).mkdir(exist_ok=True)
            paths = [folder / name / file for name, file in rows.select("folder", "file").iter_rows()]
            there = list(pool.map(place, _refs(rows), rows["content_hash"], paths))
            found = pl.Series([path and f"{to.name}/{path.relative_to(folder)}" for path in there], dtype=pl.String)
            placed.append(rows.select("image_id", path=found))
    return pl.concat(placed).drop_nulls()


def _named(images: pl.DataFrame, digits: int) -> pl.DataFrame:
    """With the folder and the file name of each."""
    parts = [images.clear().with_columns(folder=pl.lit(""), file=pl.lit(""))]  # a run may have assigned nothing
    for (cluster, name), rows in images.partition_by("cluster", "name", as_dict=True, maintain_order=True).items():
        folder, files = safe_name(f"{cluster:0{digits}d} {name}"), file_names(rows["uri"].to_list())
        parts.append(rows.with_columns(folder=pl.lit(folder), file=pl.Series(files, dtype=pl.String)))
    return pl.concat(parts)


def read_images(context: Context, source: Source, images: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, list[bytes]]]:
    """Some of ``images`` after the other, each with its bytes. Those that the source no longer has as they were clustered are left out.

    ``images`` has image_id, uri and content_hash.
    """
    read = functools.partial(_bytes, source)
    with ThreadPoolExecutor(_threads(context), thread_name_prefix="export") as pool:
        for rows in _in_turn(_listed(context, images)):
            found = list(pool.map(read, _refs(rows), rows["content_hash"]))
            there = pl.Series([data is not None for data in found], dtype=pl.Boolean)
            yield rows.select(images.columns).filter(there), [data for data in found if data is not None]


def _threads(context: Context) -> int:
    return context.config.encode.workers or usable_cores()


def _listed(context: Context, images: pl.DataFrame) -> pl.DataFrame:
    """With what the source's listing said."""
    return images.join(pl.DataFrame(context.live.select(["image_id", "size_bytes", "version"])), on="image_id", maintain_order="left")


def _refs(rows: pl.DataFrame) -> list[ImageRef]:
    return list(map(ImageRef._make, rows.select(ImageRef._fields).iter_rows()))


def _in_turn(images: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """What may be in memory at once, in the order of the URIs: so a source of containers is read from one end to the other."""
    images = images.sort("uri")
    start = taken = 0
    for row, size in enumerate(images["size_bytes"]):
        if row > start and (row - start == _AT_ONCE or taken + size > _BYTES_AT_ONCE):
            yield images[start:row]
            start, taken = row, 0
        taken += max(0, size)
    if start < len(images):
        yield images[start:]


def _link(source: Source, ref: ImageRef, digest: bytes, path: Path) -> Path | None:
    """The link; None if the file is not there any more."""
    target = os.path.join(source.url, inside(ref.uri))
    if not os.path.exists(target):
        return None
    path.symlink_to(target)
    return path


def _copy(source: Source, ref: ImageRef, digest: bytes, path: Path) -> Path | None:
    """The copy; None if what was clustered is not there any more."""
    data = _bytes(source, ref, digest)
    if data is None:
        return None
    if not is_image_name(path.name):  # a row of a Parquet file
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            path = path.with_name(f"{path.name}.{(image.format or 'image').lower()}")
    path.write_bytes(data)
    return path


def _bytes(source: Source, ref: ImageRef, digest: bytes) -> bytes | None:
    """None if what was clustered is not there any more."""
    try:
        data = fetch(source, ref)
    except (MissingImage, RejectedImage):
        return None
    return data if content_hash(data) == digest else None


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
