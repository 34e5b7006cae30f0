"""Shared by the listings of all kinds of sources: which names are images, the table, and the error if there are no images."""

import fnmatch
import glob
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
"""These are listed too: photos from phones must appear as rejected, with a reason, instead of being ignored silently."""

IMAGE_EXTENSIONS = _DECODED + _NOT_DECODED


EXCLUDED = "@eaDir, __MACOSX, #recycle, $RECYCLE.BIN, lost+found, System Volume Information"
"""Folders that programs create next to the user's own, with previews, copies and deleted files."""

Skipped = Counter[str]
"""Numbers of skipped paths by kind: ``excluded`` (files; on this machine also folders, each counted once) and ``linked_folders``."""


class Choice:
    """Decides which paths of a source are listed (visible ones that match no glob of ``exclude``), and counts the excluded ones."""

    def __init__(self, exclude: str, skipped: Skipped) -> None:
        globs = [pattern.strip() for pattern in exclude.split(",") if pattern.strip()]
        self._excluded = re.compile("|".join(map(fnmatch.translate, globs))) if globs else None
        self._skipped = skipped

    def takes(self, path: str) -> bool:
        """Whether a relative path is listed. A glob excludes it by matching the whole path, its name, or the name of a folder above it."""
        if not is_visible(path):
            return False
        if self._excluded is not None and any(self._excluded.match(name) for name in (path, *path.split("/"))):
            self._skipped["excluded"] += 1
            return False
        return True


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as that of an image, in upper or lower case."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def is_visible(path: str) -> bool:
    """Whether no part of a relative path is hidden by a leading dot."""
    return not any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def to_table(images: Iterable[ImageRef]) -> pa.Table:
    """A table of schema LISTING, sorted by uri. It is built in batches, because a large listing as Python objects would not fit in memory."""
    return pa.Table.from_batches(_batches(iter(images)), LISTING).sort_by("uri")


def _batches(images: Iterator[ImageRef]) -> Iterator[pa.RecordBatch]:
    while batch := list(islice(images, 100_000)):
        columns = zip(*batch, strict=True)
        yield pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, LISTING, strict=True)], schema=LISTING)


def no_images(url: str, paths: Iterable[str], skipped: Skipped) -> Refused:
    """The error for a folder without images. ``paths`` in it, relative to it, show whether the user meant container files."""
    links, excluded = skipped["linked_folders"], skipped["excluded"]  # before `paths` is read, which may walk the folder again and count again
    if links:
        return Refused(f"Source {url} holds no image files, but {links} links to folders: follow them with --set ingest.follow_links=true.")
    folders: dict[str, set[str]] = {}  # of container files, by their ending as they spell it
    for path in paths:
        for ending in (".parquet", ".tar"):
            if path.lower().endswith(ending):
                folders.setdefault(path[-len(ending) :], set()).add(path.rpartition("/")[0])
    if folders:
        ending, holding = next(iter(folders.items()))
        wanted = files_below(url, ending, holding.pop() if len(holding) == 1 else None)
        return Refused(f"Source {url} holds no image files but {ending} files: pass '{wanted}'.")
    also = f" Also, ingest.exclude leaves out {excluded} files and folders of it." if excluded else ""
    return Refused(f"Source {url} holds no image files: there must be files that end in {' '.join(_DECODED)}.{also}")


def files_below(url: str, ending: str, folder: str | None = None) -> str:
    """A glob for the files with this ending in a folder of a source, or in all of its folders. Their names may contain characters that a glob interprets."""
    below = "**" if folder is None else glob.escape(folder)
    return f"{glob.escape(url.rstrip('/'))}/{below}{'/' if below else ''}*{ending}"
