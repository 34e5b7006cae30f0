"""What listings of every kind of source share: which names are images, the table, the sentence where there is none."""

from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa

from gsec_core.errors import Refused
from gsec_core.sources.base import LISTING, ImageRef

_DECODED = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".avifs", ".tif", ".tiff"),
    *(".bmp", ".ico", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
)

_NOT_DECODED = (".heic", ".heif", ".jxl")
"""Listed all the same: photos that a phone made must show up as rejected, with a reason, and not be lost in silence."""

IMAGE_EXTENSIONS = _DECODED + _NOT_DECODED


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_visible(path: str) -> bool:
    """Whether no part of a relative path is hidden by a leading dot."""
    return not any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def to_table(images: Iterable[ImageRef]) -> pa.Table:
    """A table of schema LISTING, sorted by uri. Built in batches: as Python objects a large listing would fill the memory."""
    return pa.Table.from_batches(_batches(iter(images)), LISTING).sort_by("uri")


def _batches(images: Iterator[ImageRef]) -> Iterator[pa.RecordBatch]:
    while batch := list(islice(images, 100_000)):
        columns = zip(*batch, strict=True)
        yield pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)], schema=LISTING)


def no_images(url: str, paths: Iterable[str]) -> Refused:
    """The refusal of a folder without images; ``paths``, relative to it, tell whether containers were meant."""
    for path in paths:
        for ending in (".parquet", ".tar"):
            if path.lower().endswith(ending):
                folder = "/".join([url.rstrip("/"), *path.split("/")[:-1]])
                return Refused(f"Source {url} holds no image files but {ending} files: pass '{folder}/*{ending}'.")
    return Refused(f"Source {url} holds no image files: there must be files that end in {' '.join(_DECODED)}.")
