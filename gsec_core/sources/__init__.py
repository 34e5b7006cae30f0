"""Where images come from: a folder, Parquet files or WebDataset tars, on this machine or on an object store."""

from gsec_core.errors import Refused
from gsec_core.sources.address import is_local, normalise_url, source_name
from gsec_core.sources.base import LISTING, ImageRef, MissingImage, RejectedImage, Source
from gsec_core.sources.folder import LocalFolder, RemoteFolder
from gsec_core.sources.listing import EXCLUDED
from gsec_core.sources.parquet import ParquetSource
from gsec_core.sources.webdataset import TarSource

__all__ = ["LISTING", "ImageRef", "MissingImage", "RejectedImage", "Source", "normalise_url", "open_source", "source_name"]

_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def open_source(url: str, *, image_column: str = "image", exclude: str = EXCLUDED, follow_links: bool = False) -> Source:
    """Open the source at an address. Raises Refused for an address that cannot be a source.

    ``image_column`` is for Parquet, ``exclude`` has globs separated by commas, ``follow_links`` is for links to folders on this
    machine. Credentials come from the environment, as fsspec reads them.

    Only the ending of the address decides the kind of the source. So opening needs no request, and a source that is unreachable for a
    moment is not taken for another kind; its methods ``list`` and ``check`` tell whether it exists.
    """
    url = normalise_url(url)
    ending = url.lower()
    if ending.endswith(".parquet"):
        return ParquetSource(url, image_column, exclude)
    if ending.endswith(".tar"):
        return TarSource(url, exclude)
    if ending.endswith(_COMPRESSED_TARS):
        raise Refused(f"Source {url} is a compressed tar, from which no single image can be read: unpack it, or make it a plain .tar.")
    return LocalFolder(url, exclude, follow_links) if is_local(url) else RemoteFolder(url, exclude)
