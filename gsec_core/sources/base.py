"""Interface of a source of images: it lists the images, and fetches the bytes of one."""

from collections import Counter
from typing import NamedTuple, Protocol

import pyarrow as pa

LISTING = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ]
)


class ImageRef(NamedTuple):
    """One listed image: its URI relative to the source, its size in bytes (-1 if listing does not give it), its version."""

    uri: str
    size_bytes: int
    version: str


class RejectedImage(Exception):
    """The bytes of this image can never be used, for the reason given. It becomes a row with status ``rejected``."""


class MissingImage(Exception):
    """The source no longer has the listed image, or access is denied. Its row gets status ``missing``, and the next ingest tries again."""


class Source(Protocol):
    """A folder, Parquet files or tars, local or remote.

    URIs are relative to the source (``a/b.jpg``, ``x.parquet#000000017``, ``x.tar#a/b.jpg``), so that they hold no
    credentials and survive a move; an image's identity is its URI.
    """

    url: str
    """The normalised address without credentials, to which a corpus is bound."""

    skipped: Counter[str]
    """Numbers of files and folders that the last ``list`` skipped, by kind: ``excluded``, ``linked_folders``."""

    def list(self) -> pa.Table:
        """List all images without decoding any: a table of schema LISTING, sorted by uri, each uri once.

        Raises Refused if the source does not exist, has no images, or does not answer.
        """
        ...

    def fetch(self, ref: ImageRef) -> bytes:
        """The bytes of one image. Safe to call from several threads.

        Raises RejectedImage, MissingImage, or OSError if a retry may help.
        """
        ...

    def check(self) -> None:
        """Raises Unreachable if the source as a whole does not answer. Cheap."""
        ...
