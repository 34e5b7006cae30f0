"""Folders of image files, with all folders below them. Hidden files and folders are left out."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa

from gsec_core.errors import Unreachable
from gsec_core.sources.base import ImageRef, RejectedImage
from gsec_core.sources.listing import Choice, Skipped, is_image_name, no_images, to_table
from gsec_core.sources.storage import check_answers, fetch_errors, info_version, listing_errors, open_filesystem, stat_version
from gsec_core.sources.uris import inside, key, to_uri


class LocalFolder:
    """A folder on this machine, read without fsspec: a million files are listed in seconds.

    Links to files count as files. Links to folders are only counted, not followed, and no link may lead out of the folder. This
    protects against links in the folder, but not against someone who replaces files while they are read. With ``follow_links``,
    links may lead anywhere; a folder with several paths is listed once, so that circular links end.
    """

    def __init__(self, url: str, exclude: str = "", follow_links: bool = False) -> None:
        self.url = url
        self.skipped = Skipped()
        self._root = os.path.realpath(url)
        self._choice = Choice(exclude, self.skipped)
        self._follow_links = follow_links

    def list(self) -> pa.Table:
        self.skipped.clear()
        with listing_errors(self.url):
            table = to_table(self._images())
            if not table.num_rows:
                raise no_images(self.url, (self._relative(entry) for entry in self._walk()), self.skipped)
        return table

    def fetch(self, ref: ImageRef) -> bytes:
        with fetch_errors():
            path = os.path.realpath(os.path.join(self._root, inside(ref.uri)))
            if not self._follow_links and os.path.commonpath([self._root, path]) != self._root:
                raise RejectedImage("a link that leaves the source folder")
            if not stat.S_ISREG(os.stat(path).st_mode):  # checked before opening, because opening a pipe waits for a writer
                raise RejectedImage("not a regular file")
            with open(path, "rb") as file:
                return file.read()

    def lists(self, path: str | os.PathLike[str]) -> bool:
        """Whether ``list`` would list an image at this path, which need not exist: it is in the folder, and neither hidden nor excluded."""
        relative = os.path.relpath(os.path.realpath(path), self._root)
        return not relative.startswith("../") and self._choice.takes(relative)

    def check(self) -> None:
        try:
            with os.scandir(self.url) as entries:
                if not any(entries):
                    raise Unreachable(f"Source {self.url} is empty: is its disk mounted?")
        except OSError as error:
            raise Unreachable(f"Source {self.url} does not answer: {error}") from error

    def _images(self) -> Iterator[ImageRef]:
        for entry in self._walk():
            if not is_image_name(entry.name):
                continue
            try:
                status = _status(entry)
            except FileNotFoundError:  # deleted since its folder was read
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield ImageRef(to_uri(self._relative(entry)), status.st_size, stat_version(status))

    def _walk(self) -> Iterator[os.DirEntry[str]]:
        """Every entry that is not excluded and not a folder. Links to folders are followed last, so that files get the path of their real folder."""
        pending, links, seen = [self.url], list[str](), set[tuple[int, int]]()
        while pending or links:
            folder = pending.pop() if pending else links.pop()
            try:
                entries = os.scandir(folder)
                status = os.stat(folder)
            except FileNotFoundError:
                if folder == self.url:
                    raise
                continue  # deleted since its parent was read
            with entries:
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                for entry in entries:
                    if not self._choice.takes(self._relative(entry)):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif not (entry.is_symlink() and _leads_to_folder(entry)):
                        yield entry
                    elif self._follow_links:
                        links.append(entry.path)
                        links.sort(reverse=True)
                    else:
                        self.skipped["linked_folders"] += 1

    def _relative(self, entry: os.DirEntry[str]) -> str:
        return entry.path.removeprefix(self.url).lstrip("/")


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular or unreadable link is listed as an image, whose row then tells the reason
        return False


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    """The stat of an entry. For a link it is that of the target; for a broken link, that of the link itself."""
    if entry.is_symlink():
        with suppress(OSError):
            return entry.stat()
    return entry.stat(follow_symlinks=False)


class RemoteFolder:
    """All images below a prefix of an object store."""

    def __init__(self, url: str, exclude: str = "") -> None:
        self.url = url
        self.skipped = Skipped()
        self._choice = Choice(exclude, self.skipped)
        self._fs, self._root = open_filesystem(url)

    def list(self) -> pa.Table:
        self.skipped.clear()
        with listing_errors(self.url):
            files = self._fs.find(self._root, detail=True)
            if self._root in files:
                raise NotADirectoryError(self._root)
            if not files:
                raise FileNotFoundError(self._root)
        paths = {name.removeprefix(f"{self._root}/"): info for name, info in files.items()}
        table = to_table(
            ImageRef(to_uri(path), info["size"], info_version(info)) for path, info in paths.items() if is_image_name(path) and self._choice.takes(path)
        )
        if not table.num_rows:
            raise no_images(self.url, paths, self.skipped)
        return table

    def fetch(self, ref: ImageRef) -> bytes:
        with fetch_errors():
            content: bytes = self._fs.cat_file(f"{self._root}/{key(ref.uri)}")
        return content

    def check(self) -> None:
        check_answers(self._fs, self._root, self.url)
