"""Paths as URIs and back: the identity of an image, readable and reversible.

Only what must be is percent-encoded: ``%`` itself, ``#`` (it parts a container from its member) and the bytes of a file name
that are not UTF-8 (Arrow strings are). Paths are str in Python's way: such bytes are surrogate escapes.
"""

import re

from gsec_core.sources.base import RejectedImage

_TO_ENCODE = re.compile("[%#\udc80-\udcff]")
_ENCODED = re.compile("%([0-9A-F]{2})")


def to_uri(path: str) -> str:
    """The URI of a path relative to its source."""
    return _TO_ENCODE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", path)


def to_path(uri: str) -> str:
    """The path that ``to_uri`` was given."""
    return _ENCODED.sub(lambda found: bytes.fromhex(found[1]).decode("ascii", "surrogateescape"), uri)


def inside(uri: str) -> str:
    """The path of a URI, if it is one below its source. Raises RejectedImage for what would lead out of it.

    A name such as ``https://example.org/a.jpg`` or ``std::vector.png`` is a name: paths are looked up in the source, and none is opened as an address.
    """
    path = to_path(uri)
    if path.startswith("/"):
        raise RejectedImage("the path is absolute")
    if ".." in path.split("/"):
        raise RejectedImage("the path leaves its folder")
    return path
