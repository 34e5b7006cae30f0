"""Conversion of paths to URIs and back. URIs identify images, and are readable and reversible.

Only what must be is percent-encoded: ``%`` itself, ``#`` (it separates a container from its member) and the bytes of a file name
that are not UTF-8 (Arrow strings must be UTF-8). In Python's paths, such bytes are surrogate escapes.
"""

import re

from gsec_core.sources.base import RejectedImage

_TO_ENCODE = re.compile("[%#\udc80-\udcff]")
_ENCODED = re.compile("%([0-9A-F]{2})")


def to_uri(path: str) -> str:
    """The URI of a path relative to its source."""
    return _TO_ENCODE.sub(lambda found: f"%{ord(found[0]) & 0xFF:02X}", path)


def to_path(uri: str) -> str:
    """The inverse of ``to_uri``."""
    return _ENCODED.sub(lambda found: bytes.fromhex(found[1]).decode("ascii", "surrogateescape"), uri)


def inside(uri: str) -> str:
    """The path of a URI, which must be below its source. Raises RejectedImage for a path that leads outside.

    ``https://example.org/a.jpg`` and ``std::vector.png`` are plain names here: paths are looked up in the source, and never opened as addresses.
    """
    path = key(uri)
    if path.startswith("/"):
        raise RejectedImage("the path is absolute")
    return path


def key(uri: str) -> str:
    """As `inside`, but on an object store, where a name below a prefix may begin with a slash: after ``s3://photos/2026/`` may come ``/a.jpg``."""
    path = to_path(uri)
    if ".." in path.split("/"):
        raise RejectedImage("the path leaves its folder")
    return path
