"""Uncompressed tars, as in WebDataset. Listing reads the headers; fetching an image takes one range read and a check of the tar's version."""

import os
import tarfile
from collections.abc import Iterator
from itertools import count
from typing import IO

import pyarrow as pa

from gsec_core.errors import Refused
from gsec_core.sources.base import ImageRef, RejectedImage
from gsec_core.sources.container import ContainerSource
from gsec_core.sources.listing import is_image_name, to_table
from gsec_core.sources.uris import inside, to_uri

_ZEROS_AT_ONCE = 2**20


class TarSource(ContainerSource):
    """The version of a member is ``TAR_VERSION@OFFSET+SIZE``, or ``TAR_VERSION@KIND`` for a member that is not a plain file."""

    suffix = ".tar"

    def _list_container(self, path: str, uri: str, version: str) -> pa.Table:
        last: dict[str, ImageRef] = {}  # of members with the same name the last one counts, as when tar extracts
        parts: dict[str, int] = {}
        for part, member in self._members(path):
            name = member.name.removeprefix("./")
            if is_image_name(name) and not member.isdir() and self._choice.takes(name):
                member_uri = f"{uri}#{to_uri(name)}"
                if parts.setdefault(member_uri, part) != part:
                    raise Refused(
                        f"{path} consists of several joined tars, and two of them contain {name}: keep the tars separate, so that no image hides another."
                    )
                last[member_uri] = ImageRef(member_uri, member.size, f"{version}@{_place(member)}")
        return to_table(last.values())

    def _members(self, path: str) -> Iterator[tuple[int, tarfile.TarInfo]]:
        """Each member, with the number of the tar that it is in: the file may be several tars joined with `cat`."""
        try:
            with self._fs.open(path, "rb") as raw:
                for part in count():
                    with tarfile.open(fileobj=raw, mode="r:", encoding="utf-8") as tar:
                        while (member := tar.next()) is not None:
                            tar.members.clear()  # type: ignore[attr-defined]  # it would keep every member
                            yield part, member
                    # tarfile takes a damaged header for the end, but a complete tar ends with a block of zeros.
                    raw.seek(tar.offset)
                    if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise tarfile.ReadError("no end-of-archive block where the last member ends")
                    if not _skip_zeros(raw):
                        return
        except tarfile.TarError as error:
            raise Refused(f"{path} is not a whole, uncompressed tar: replace it, or leave it out of the source. ({error})") from error

    def _fetch_member(self, path: str, member: str, ref: ImageRef) -> bytes:
        inside(member)
        version, _, place = ref.version.rpartition("@")
        offset, plain, size = place.partition("+")
        if not plain:
            raise RejectedImage(f"a {place} in the tar, not a plain file")
        start, end = int(offset), int(offset) + int(size)
        with self._unchanged(path, version):
            content: bytes = self._fs.cat_file(path, start=start, end=end) if start < end else b""  # stores refuse an empty range
        if len(content) != end - start:
            raise OSError(f"{len(content)} bytes came instead of {end - start}")
        return content


def _skip_zeros(raw: IO[bytes]) -> bool:
    """Seek to the next byte that is not zero. Returns whether there is one."""
    while block := raw.read(_ZEROS_AT_ONCE):
        after = block.lstrip(b"\0")
        if after:
            raw.seek(-len(after), os.SEEK_CUR)
            return True
    return False


def _place(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    if not member.isreg():
        return "device"
    if member.issparse():
        return "sparse file"
    return f"{member.offset_data}+{member.size}"
