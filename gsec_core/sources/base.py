"""What the pipeline needs of a place that holds images: a listing, and the bytes of one image."""

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
    """One listed image: its URI relative to the source, its size in bytes (-1 where listing does not tell), its version."""

    uri: str
    size_bytes: int
    version: str


class RejectedImage(Exception):
    """The bytes of this image can never be used, for the reason given. It becomes a row with status ``rejected``."""


class MissingImage(Exception):
    """The source no longer holds what was listed, or does not let it be read. The row becomes ``missing``; the next ingest looks again."""


class Source(Protocol):
    """A folder, Parquet files or tars, local or remote.

    URIs are relative to the source (``a/b.jpg``, ``x.parquet#000000017``, ``x.tar#a/b.jpg``), so that they hold no
    credentials and survive a move; an image's identity is its URI.
    """

    url: str
    """The normalised address without credentials: what a corpus is bound to."""

    skipped: Counter[str]
    """What the last ``list`` passed over, by kind: ``excluded``, ``linked_folders``."""

    def list(self) -> pa.Table:
        """All images, decoded none: a table of schema LISTING, sorted by uri, each uri once.

        Raises Refused if the source is not there, Unreachable if it does not answer.
        """
        ...

    def fetch(self, ref: ImageRef) -> bytes:
        """The bytes of one image. Safe to call from several threads.

        Raises RejectedImage, MissingImage, or OSError for what a retry may cure.
        """
        ...

    def check(self) -> None:
        """Raises Unreachable if the source as a whole does not answer. Cheap."""
        ...
