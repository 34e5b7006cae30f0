"""Sources of container files, each of which holds many images: one such file, or a glob of them. Each subclass reads one kind of file."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from gsec_core.errors import Refused, Unreachable
from gsec_core.sources.base import ImageRef, MissingImage
from gsec_core.sources.listing import Choice, Skipped, files_below
from gsec_core.sources.storage import check_answers, fetch_errors, file_version, listing_errors, open_filesystem
from gsec_core.sources.uris import inside, to_uri

_GLOB = re.compile(r"[*?\[]")


class ContainerSource(ABC):
    """Base class. URIs are ``CONTAINER#MEMBER``; the container is relative to the last folder in the address before any wildcard."""

    suffix: str

    def __init__(self, url: str, exclude: str = "") -> None:
        self.url = url
        self.skipped = Skipped()
        self._choice = Choice(exclude, self.skipped)
        self._fs, self._path = open_filesystem(url)
        glob = _GLOB.search(self._path)
        self._is_glob = glob is not None
        self._root = self._path[: glob.start() if glob else None].rpartition("/")[0]

    def list(self) -> pa.Table:
        self.skipped.clear()
        tables = []
        for path in self._containers():
            with listing_errors(self.url):
                version = file_version(self._fs, path)  # before reading its content, so that fetching images notices a change in between
                tables.append(self._list_container(path, to_uri(self._relative(path)), version))
        table = pa.concat_tables(tables).sort_by("uri")
        if not table.num_rows:
            raise Refused(f"Source {self.url} holds no images: give other {self.suffix} files.")
        return table

    def fetch(self, ref: ImageRef) -> bytes:
        container, _, member = ref.uri.partition("#")
        with fetch_errors():
            return self._fetch_member(f"{self._root}/{inside(container)}", member, ref)

    def lists(self, path: str | os.PathLike[str]) -> bool:
        """Whether ``list`` would read a local file at this path, which need not exist."""
        if not isinstance(self._fs, LocalFileSystem):
            return False
        relative = os.path.relpath(os.path.realpath(path), os.path.realpath(self._root or "/"))
        return re.fullmatch(glob_translate(self._relative(self._path)), relative) is not None and self._choice.takes(relative)

    def check(self) -> None:
        check_answers(self._fs, (self._root or "/") if self._is_glob else self._path, self.url)
        try:
            self._containers()
        except Refused as error:  # the folder is there, but without the files: its disk may not be mounted
            raise Unreachable(f"Source {self.url} does not answer: {error}") from error

    @abstractmethod
    def _list_container(self, path: str, uri: str, version: str) -> pa.Table:
        """List the images of one file, in any order. Raises Refused, naming ``path``, if the file is not of this kind."""

    @abstractmethod
    def _fetch_member(self, path: str, member: str, ref: ImageRef) -> bytes:
        """The bytes of one member, named as in the URI."""

    @contextmanager
    def _unchanged(self, path: str, version: str) -> Iterator[None]:
        """Context manager for a read that raises MissingImage if the file's version has changed. It is compared after the read, also after a failed one."""
        try:
            yield
        finally:
            if file_version(self._fs, path) != version:
                raise MissingImage("the file changed after it was listed")

    def _containers(self) -> Sequence[str]:
        with listing_errors(self.url):
            try:
                kind = self._fs.info(self._path)["type"]
            except FileNotFoundError:
                if not self._is_glob:
                    raise
            else:
                if kind != "file":
                    raise Refused(f"Source {self.url} is not a file but a {kind}: pass files, as in '{files_below(self.url, self.suffix)}'.")
                return [self._path]
            found = self._fs.glob(self._path, detail=True)
            paths = sorted(path for path, info in found.items() if self._choice.takes(self._relative(path)) and self._is_file(path, info))
            if not paths:
                raise Refused(f"Source {self.url} matches no file: check the folder and the pattern.")
        return paths

    def _is_file(self, path: str, info: dict[str, Any]) -> bool:
        """Whether a path is a file. Links count as their targets, because download caches often are folders of links."""
        return info["type"] == "file" or bool(info.get("islink") and self._fs.isfile(path))

    def _relative(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")
