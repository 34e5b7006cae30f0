"""What listings of every kind of source share: which names are images, the table, the sentence where there is none."""

import fnmatch
import re
from collections import Counter
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


EXCLUDED = "@eaDir, __MACOSX, #recycle, $RECYCLE.BIN, lost+found, System Volume Information"
"""Folders that programs make beside a user's own, with previews, copies and what was deleted."""

Skipped = Counter[str]
"""What a listing passed over, by kind: ``excluded`` files, or on this machine files and folders, and ``linked_folders``."""


class Choice:
    """Which paths of a source are listed: visible ones that no glob of ``exclude`` names, and how many were excluded."""

    def __init__(self, exclude: str, skipped: Skipped) -> None:
        globs = [glob.strip() for glob in exclude.split(",") if glob.strip()]
        self._excluded = re.compile("|".join(fnmatch.translate(glob) for glob in globs)) if globs else None
        self._skipped = skipped

    def takes(self, path: str) -> bool:
        """Whether a relative path is listed. A glob names it by the whole of it, or by the name of it or of a folder that it is in."""
        if not is_visible(path):
            return False
        if self._excluded is not None and any(self._excluded.match(name) for name in (path, *path.split("/"))):
            self._skipped["excluded"] += 1
            return False
        return True


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


def no_images(url: str, paths: Iterable[str], skipped: Skipped) -> Refused:
    """The refusal of a folder without images; ``paths``, relative to it, tell whether containers were meant."""
    if skipped["linked_folders"]:
        return Refused(f"Source {url} holds no image files, but {skipped['linked_folders']} links to folders: follow them with --set ingest.follow_links=true.")
    for path in paths:
        for ending in (".parquet", ".tar"):
            if path.lower().endswith(ending):
                folder = "/".join([url.rstrip("/"), *path.split("/")[:-1]])
                return Refused(f"Source {url} holds no image files but {ending} files: pass '{folder}/*{ending}'.")
    excluded = f" Also, ingest.exclude leaves out {skipped['excluded']} files and folders of it." if skipped["excluded"] else ""
    return Refused(f"Source {url} holds no image files: there must be files that end in {' '.join(_DECODED)}.{excluded}")
