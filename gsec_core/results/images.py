"""The images of a run from its source: placed as links or copies, one folder for each cluster, or read as bytes."""

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

from gsec_core.devices import thread_count
from gsec_core.errors import Refused
from gsec_core.images.decode import FORMATS, content_hash
from gsec_core.results.files import appearing
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.sources.container import ContainerSource
from gsec_core.sources.folder import LocalFolder
from gsec_core.sources.listing import is_image_name
from gsec_core.sources.uris import inside
from gsec_core.stages.base import Context
from gsec_core.stages.encode import fetch

Images = Literal["links", "copies"]

IMAGES = "images"
"""Folder of the links or copies."""

LOST = "lost"
"""Key of the count of images that the source no longer has as they were clustered."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]+')
"""Matches characters that some system does not allow in file names, or does not display."""

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Matches names of Windows devices, with any extension."""

_LONGEST, _LONGEST_ENDING = 120, 6
"""Maximal bytes of a file name, so that every filesystem accepts it, and maximal length of its extension with the dot."""

_AT_ONCE, _BYTES_AT_ONCE = 256, 2**26
"""Maximal number of images in memory at once, and of their bytes as far as the listing gives them. A larger image is read alone."""


def open_for(context: Context, images: Images | None, to: Path) -> Source | None:
    """Open the source, to place its images into ``to/images``; None if ``images`` is None.

    Raises Refused if that folder exists, if the source would list it, or if links are requested and the images are not local files.
    """
    if images is None:
        return None
    if (to / IMAGES).exists():
        raise Refused(f"--images {images}: {to / IMAGES} exists already, and may belong to another run. Move it away, or name another folder.")
    source = context.open_source()
    if isinstance(source, LocalFolder):
        _check_outside(source, to, IMAGES, "x.jpg")
    if images == "links" and not isinstance(source, LocalFolder):
        raise Refused(f"--images links: the images of {context.config.source} are not files on this machine. Use --images copies.")
    source.check()
    return source


def check_outside(context: Context, to: Path, file: str) -> None:
    """Raises Refused if the source of a run, if it consists of container files, would read the ``file`` that is to be written into the folder ``to``."""
    source = context.open_source()
    if isinstance(source, ContainerSource):
        _check_outside(source, to, file)


def _check_outside(source: LocalFolder | ContainerSource, to: Path, *path: str) -> None:
    if source.lists(to.joinpath(*path)):
        raise Refused(f"--to {to}: it is in the source {source.url}, and the next run would read what is exported. Name a folder outside it.")


def place_images(context: Context, source: Source, images: pl.DataFrame, to: Path, links: bool) -> pl.DataFrame:
    """Place links to images, or copies, at ``to/CLUSTER NAME/IMAGE``. The folder ``to`` appears when it is complete.

    ``images`` has image_id, uri, content_hash, cluster and name. Returns image_id and path, relative to the parent of ``to``, of the placed images.
    """
    digits = len(str(context.config.n_clusters - 1))
    place = functools.partial(_link if links else _copy, source)
    placed = [pl.DataFrame(schema={"image_id": pl.Binary, "path": pl.String})]
    with appearing(to) as folder, ThreadPoolExecutor(thread_count(context.config.encode.workers), thread_name_prefix="export") as pool:
        for rows in _in_turn(_named(listed(context, images), digits)):
            for name in rows["folder"].unique():
                (folder / name).mkdir(exist_ok=True)
            paths = [folder / name / file for name, file in rows.select("folder", "file").iter_rows()]
            there = list(pool.map(place, _refs(rows), rows["content_hash"], paths))
            found = pl.Series([path and f"{to.name}/{path.relative_to(folder)}" for path in there], dtype=pl.String)
            placed.append(rows.select("image_id", path=found))
    return pl.concat(placed).drop_nulls()


def _named(images: pl.DataFrame, digits: int) -> pl.DataFrame:
    """Add columns with the folder and the file name of each image."""
    parts = [images.clear().with_columns(folder=pl.lit(""), file=pl.lit(""))]  # a run may have assigned nothing
    for (cluster, name), rows in images.partition_by("cluster", "name", as_dict=True, maintain_order=True).items():
        folder, files = safe_name(f"{cluster:0{digits}d} {name}"), file_names(rows["uri"].to_list())
        parts.append(rows.with_columns(folder=pl.lit(folder), file=pl.Series(files, dtype=pl.String)))
    return pl.concat(parts)


def read_images(context: Context, source: Source, images: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, list[bytes]]]:
    """Iterate over batches of ``images``: the rows, and the bytes of each image. Images that have changed or are gone since they were clustered are left out.

    ``images`` has image_id, uri and content_hash. Batches are in the order of the URIs.
    """
    read = functools.partial(_bytes, source)
    with ThreadPoolExecutor(thread_count(context.config.encode.workers), thread_name_prefix="export") as pool:
        for rows in _in_turn(listed(context, images)):
            found = list(pool.map(read, _refs(rows), rows["content_hash"]))
            there = pl.Series([data is not None for data in found], dtype=pl.Boolean)
            yield rows.select(images.columns).filter(there), [data for data in found if data is not None]


def listed(context: Context, images: pl.DataFrame) -> pl.DataFrame:
    """Add the columns of the source's listing: size_bytes and version."""
    return images.join(pl.DataFrame(context.live.select(["image_id", "size_bytes", "version"])), on="image_id", maintain_order="left")


def _refs(rows: pl.DataFrame) -> list[ImageRef]:
    return list(map(ImageRef._make, rows.select(ImageRef._fields).iter_rows()))


def _in_turn(images: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Split images into batches that may be in memory at once, in the order of the URIs, so that container files are read from beginning to end."""
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
    """Make a link and return its path; None if the file no longer exists."""
    target = os.path.join(source.url, inside(ref.uri))
    if not os.path.exists(target):
        return None
    path.symlink_to(target)
    return path


def _copy(source: Source, ref: ImageRef, digest: bytes, path: Path) -> Path | None:
    """Write a copy and return its path, with an extension added if it has none of an image; None if the clustered image is gone or has changed."""
    data = _bytes(source, ref, digest)
    if data is None:
        return None
    if not is_image_name(path.name):  # a row of a Parquet file
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            path = path.with_name(f"{path.name}.{(image.format or 'image').lower()}")
    path.write_bytes(data)
    return path


def _bytes(source: Source, ref: ImageRef, digest: bytes) -> bytes | None:
    """Bytes of the image; None if the clustered image is gone or has changed."""
    try:
        data = fetch(source, ref)
    except (MissingImage, RejectedImage):
        return None
    return data if content_hash(data) == digest else None


def file_names(uris: Sequence[str]) -> list[str]:
    """File names from the last parts of URIs, made distinct for one folder on every system (also with case-insensitive names)."""
    wanted = [safe_name(uri.rpartition("/")[2]) for uri in uris]
    added = not all(map(is_image_name, wanted))

    def key(name: str) -> str:  # where copies get an extension, `a` must not become another image's `a.jpeg`
        return _folded(os.path.splitext(name)[0] if added and is_image_name(name) else name)

    taken: dict[str, int] = {}
    names = []
    for first in wanted:
        name = first
        stem, ending = os.path.splitext(first)
        while key(name) in taken:
            taken[key(first)] += 1
            name = f"{stem} {taken[key(first)]}{ending}"
        taken[key(name)] = 1
        names.append(name)
    return names


def safe_name(text: str) -> str:
    """Convert a text to a file name that is valid on every system: short, visible, and without path separators."""
    stem, ending = os.path.splitext(_UNSAFE.sub("_", text).strip(". "))
    if len(ending) > _LONGEST_ENDING:
        stem, ending = stem + ending, ""
    stem = stem.encode()[: _LONGEST - len(ending.encode())].decode(errors="ignore").rstrip(". ") or "_"
    return f"{'_' if stem.startswith('-') or _RESERVED.fullmatch(stem) else ''}{stem}{ending}"


def _folded(name: str) -> str:
    """Normal form that is equal for names that some system treats as the same name."""
    return unicodedata.normalize("NFC", name).casefold()
