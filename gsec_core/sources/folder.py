"""Folders of image files, with all folders below them. Hidden files and folders are left out."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa

from gsec_core.errors import Unreachable
from gsec_core.sources.base import ImageRef, RejectedImage
from gsec_core.sources.listing import is_image_name, is_visible, no_images, to_table
from gsec_core.sources.storage import check_answers, fetch_errors, info_version, listing_errors, open_filesystem, stat_version
from gsec_core.sources.uris import inside, to_uri


class LocalFolder:
    """A folder of this machine, read without fsspec: a million files are listed in seconds.

    Links to files are images, links to folders are not entered (they may lead in circles), and no link may lead out of the
    folder. This guards against links that lie in it, not against someone who exchanges files while they are read.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = os.path.realpath(url)

    def list(self) -> pa.Table:
        with listing_errors(self.url):
            table = to_table(self._images())
            if not table.num_rows:
                raise no_images(self.url, (self._relative(entry) for entry in _walk(self.url)))
        return table

    def fetch(self, ref: ImageRef) -> bytes:
        with fetch_errors():
            path = os.path.realpath(os.path.join(self._root, inside(ref.uri)))
            if os.path.commonpath([self._root, path]) != self._root:
                raise RejectedImage("a link that leaves the source folder")
            if not stat.S_ISREG(os.stat(path).st_mode):  # asked before opening: opening a pipe waits for a writer
                raise RejectedImage("not a regular file")
            with open(path, "rb") as file:
                return file.read()

    def check(self) -> None:
        try:
            with os.scandir(self.url) as entries:
                if not any(entries):
                    raise Unreachable(f"Source {self.url} is empty: is its disk mounted?")
        except OSError as error:
            raise Unreachable(f"Source {self.url} does not answer: {error}") from error

    def _images(self) -> Iterator[ImageRef]:
        for entry in _walk(self.url):
            if not is_image_name(entry.name):
                continue
            try:
                status = _status(entry)
            except FileNotFoundError:  # deleted since its folder was read
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield ImageRef(to_uri(self._relative(entry)), status.st_size, stat_version(status))

    def _relative(self, entry: os.DirEntry[str]) -> str:
        return entry.path.removeprefix(self.url).lstrip("/")


def _walk(root: str) -> Iterator[os.DirEntry[str]]:
    """Every visible entry below a folder that is not itself a folder."""
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            if folder == root:
                raise
            continue  # deleted since its parent was read
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield entry


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """Of a link, that of its target; of a link that leads nowhere, its own."""
    if entry.is_symlink():
        with suppress(OSError):
            return entry.stat()
    return entry.stat(follow_symlinks=False)


class RemoteFolder:
    """A prefix of an object store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = open_filesystem(url)

    def list(self) -> pa.Table:
        with listing_errors(self.url):
            files = self._fs.find(self._root, detail=True)
            if self._root in files:
                raise NotADirectoryError(self._root)
            if not files:
                raise FileNotFoundError(self._root)
        paths = {name.removeprefix(f"{self._root}/"): info for name, info in files.items()}
        table = to_table(ImageRef(to_uri(path), info["size"], info_version(info)) for path, info in paths.items() if is_image_name(path) and is_visible(path))
        if not table.num_rows:
            raise no_images(self.url, paths)
        return table

    def fetch(self, ref: ImageRef) -> bytes:
        with fetch_errors():
            content: bytes = self._fs.cat_file(f"{self._root}/{inside(ref.uri)}")
        return content

    def check(self) -> None:
        check_answers(self._fs, self._root, self.url)
