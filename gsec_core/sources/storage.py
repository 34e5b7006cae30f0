"""Use of fsspec by the sources: versions of files, and conversion of errors to those of errors.py and base.py."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from gsec_core.errors import GsecError, Refused, Unreachable
from gsec_core.sources.address import is_local
from gsec_core.sources.base import MissingImage, RejectedImage


def open_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a normalised address, and the path on it. Listings are not cached, so that versions are current."""
    if is_local(url):  # a path may contain "::", which fsspec would take for a chain of protocols
        return LocalFileSystem(), url
    try:
        fs, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise Refused(f"Source {url} cannot be read: {str(error).rstrip('.')}.") from None
    return fs, path


def stat_version(stat: os.stat_result) -> str:
    """The version of a local file: its time of change in ns, and its size."""
    return f"{stat.st_mtime_ns}-{stat.st_size}"


def info_version(info: dict[str, Any]) -> str:
    """The version of a remote file: its ETag, or its time and size. Each kind of store uses other keys in fsspec's ``info``."""
    for key in ("ETag", "etag"):
        if info.get(key):
            return str(info[key]).strip('"')
    changed = next((info[key] for key in ("LastModified", "last_modified", "mtime", "created") if info.get(key)), "unknown")
    return f"{changed}-{info['size']}"


def file_version(fs: AbstractFileSystem, path: str) -> str:
    """The current version of a file, from one request."""
    return stat_version(os.stat(path)) if isinstance(fs, LocalFileSystem) else info_version(fs.info(path))


def check_answers(fs: AbstractFileSystem, path: str, url: str) -> None:
    """Raises Unreachable unless the file or folder exists and the store answers."""
    try:
        fs.info(path)
    except Exception as error:
        raise Unreachable(f"Source {url} does not answer: {type(error).__name__}: {error}") from error


@contextmanager
def listing_errors(url: str) -> Iterator[None]:
    """Context manager that converts errors while listing to Refused: listing comes first, so nothing has been done yet."""
    try:
        yield
    except GsecError:
        raise
    except FileNotFoundError as error:
        glob = " A glob can only name .parquet or .tar files: for image files, give their folder." if "*" in url else ""
        raise Refused(f"Source {url} is not there: check the path, and that this user can see its disk or bucket.{glob}") from error
    except NotADirectoryError as error:
        raise Refused(f"Source {url} is a file of unknown kind: give a folder, .parquet or .tar files.") from error
    except PermissionError as error:
        raise Refused(f"Source {url} may not be read ({error}): allow it for this user, or give a folder that holds only readable ones.") from error
    except Exception as error:  # the drivers of object stores raise classes of their own
        raise Refused(f"Source {url} does not answer: {type(error).__name__}: {error}. Check the network and the credentials.") from error


@contextmanager
def fetch_errors() -> Iterator[None]:
    """Context manager that converts errors while reading an image to MissingImage, RejectedImage, or OSError if a retry may help."""
    try:
        yield
    except (GsecError, MissingImage, RejectedImage):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingImage("the file is gone") from error
    except PermissionError as error:
        raise MissingImage("permission denied") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RejectedImage("a link that leads in a circle") from error
        raise
    except Exception as error:  # the drivers of object stores raise classes of their own
        raise OSError(f"{type(error).__name__}: {error}") from error
