"""Whole files on any fsspec filesystem: a file appears complete under its name, or not at all.

The store writes only through this module. Shards, generations and runs are all built on `create`, which
makes a file only if there is none of that name: of two writers the first wins, and both see the same file.
"""

import contextlib
import ctypes
import errno
import io
import os
import posixpath
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import wraps
from pathlib import PurePath
from typing import IO, Any, Concatenate, ParamSpec, Protocol, TypeVar, cast
from uuid import uuid4

import fsspec

from gsec_core.errors import GsecError, Refused, Unreachable

P = ParamSpec("P")
T = TypeVar("T")

PROTOCOLS = ("file", "s3", "gs", "gcs", "memory")
"""Filesystems that can hold a store. Chained protocols (``a::b``) and HTTP are not supported."""

_REMEDIES = {
    errno.ENOSPC: "make room on its disk",
    errno.EDQUOT: "make room, or ask for a larger quota",
    errno.EACCES: "allow this user to read and write there",
    errno.EROFS: "mount its disk for writing",
}

_SMALL = 2**20
"""A remote file of at most this many bytes is always read as a whole."""

_TEMPORARY = ".tmp-"
_ATTEMPTS = 10


class Files(Protocol):
    """Files below one root. Paths are relative, with ``/``. Only this module uses names that begin with a dot."""

    url: str
    readers: int
    """How many files are read at once: more than one where latency dominates."""

    def create(self, path: str, data: bytes) -> bool:
        """Write ``data`` to a new file ``path``, completely and durably. Returns False, and changes nothing, if the file exists already."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write ``data`` to ``path``; a file that exists is replaced atomically."""
        ...

    def move(self, path: str, to: str) -> None:
        """Rename within one directory. No other process may use the name ``to``. Raises FileNotFoundError if ``path`` does not exist."""
        ...

    def read(self, path: str) -> bytes:
        """The content of a file. Raises FileNotFoundError if there is none."""
        ...

    def open(self, path: str) -> IO[bytes]:
        """Open a file for random reads."""
        ...

    def files(self, directory: str) -> set[str]:
        """Names of the files in ``directory``; empty if the directory does not exist."""
        ...

    def directories(self, directory: str) -> set[str]:
        """Names of the directories in ``directory``."""
        ...

    def leftovers(self, directory: str) -> set[str]:
        """Names of temporary files that a killed writer left in ``directory``."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file, and its directory if that is then empty."""
        ...

    def modified(self, path: str) -> datetime:
        """When a file was last changed, with a time zone. Raises FileNotFoundError if there is none."""
        ...

    def location(self, path: str) -> str:
        """Full path or URL of ``path``, as a user would type it."""
        ...


def open_files(url: str) -> Files:
    """Files below ``url``: a folder, or any URL of `PROTOCOLS`. Raises Refused for anything else."""
    protocol, separator, rest = url.partition("://")
    if not separator:
        protocol, rest = "file", url
    if protocol != "file" and "?" in rest:
        raise Refused("--store: an address must not contain a question mark: what follows it is recorded, and may be secret. Leave it out.")
    if protocol != "file" and "@" in rest.partition("/")[0]:
        raise Refused("--store: an address must not contain credentials, because it is recorded; give them in the environment.")
    if "::" in url or protocol not in PROTOCOLS:
        raise Refused(f"--store {url}: a store is a folder or one of {', '.join(p + '://' for p in PROTOCOLS)}.")
    if protocol not in ("file", "memory"):
        bucket, _, folder = rest.partition("/")
        if not bucket:
            raise Refused(f"--store {url}: it names no bucket; write {protocol}://BUCKET/FOLDER.")
        url = f"{protocol}://{bucket}/{folder.lstrip('/')}"  # below BUCKET//FOLDER files could be written, but not listed
    if protocol == "file":
        root = os.path.abspath(url.removeprefix("file://"))
        if os.path.exists(root) and not os.path.isdir(root):
            raise Refused(f"--store {url}: it is a file; give a folder.")
        return LocalFiles(root)
    try:
        filesystem, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise Refused(f"--store {url}: {error}. Install it with `pip install 'gsec[s3]'` or `'gsec[gs]'`.") from None
    return RemoteFiles(filesystem, root.rstrip("/"), url.rstrip("/"))


class LocalFiles:
    """A local folder. A commit writes a temporary file, calls fsync, makes a hard link (which fails if the name is taken) and syncs the directory."""

    readers = 1

    def __init__(self, root: str) -> None:
        self.url = root

    def create(self, path: str, data: bytes) -> bool:
        final = self.location(path)
        with _failures_of(final):
            temporary = self._write_temporary(final, data)
            try:
                created = _link_exclusively(temporary, final)
            finally:
                _unlink_if_there(temporary)
            # Also if another writer won: its link may not be durable yet, and our caller relies on it.
            _sync_directory(os.path.dirname(final))
        return created

    def replace(self, path: str, data: bytes) -> None:
        final = self.location(path)
        with _failures_of(final):
            temporary = self._write_temporary(final, data)
            try:
                os.rename(temporary, final)
            except OSError:
                _unlink_if_there(temporary)
                raise
            _sync_directory(os.path.dirname(final))

    def move(self, path: str, to: str) -> None:
        os.rename(self.location(path), self.location(to))
        _sync_directory(os.path.dirname(self.location(to)))

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()

    def open(self, path: str) -> IO[bytes]:
        with _failures_of(self.location(path)):
            return open(self.location(path), "rb")

    def files(self, directory: str) -> set[str]:
        return {name for name, is_file in self._entries(directory) if is_file and not name.startswith(".")}

    def directories(self, directory: str) -> set[str]:
        return {name for name, is_file in self._entries(directory) if not is_file and not name.startswith(".")}

    def leftovers(self, directory: str) -> set[str]:
        return {name for name, is_file in self._entries(directory) if is_file and name.startswith(_TEMPORARY)}

    def remove(self, path: str) -> None:
        final = self.location(path)
        os.unlink(final)
        try:
            os.rmdir(os.path.dirname(final))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):  # another process uses it, or has removed it
                raise

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(os.stat(self.location(path)).st_mtime, UTC)

    def location(self, path: str) -> str:
        return os.path.join(self.url, *PurePath(path).parts)

    def _entries(self, directory: str) -> list[tuple[str, bool]]:
        try:
            with _failures_of(self.location(directory)), os.scandir(self.location(directory)) as entries:
                return [(entry.name, entry.is_file()) for entry in entries]
        except FileNotFoundError:
            return []

    def _write_temporary(self, final: str, data: bytes) -> str:
        temporary = os.path.join(os.path.dirname(final), f"{_TEMPORARY}{uuid4().hex}")
        descriptor = _open_new(temporary)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except OSError:
            _unlink_if_there(temporary)
            raise
        finally:
            os.close(descriptor)
        return temporary


def _answering(method: Callable[Concatenate["RemoteFiles", P], T]) -> Callable[Concatenate["RemoteFiles", P], T]:
    """Decorator that names the store in the errors of its driver: PermissionError if it refuses access, Unreachable if it does not answer."""

    @wraps(method)
    def asked(self: "RemoteFiles", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (FileNotFoundError, FileExistsError, GsecError):
            raise
        except PermissionError as error:
            raise PermissionError(f"store {self.url} refuses access ({error}). Are the credentials right, and not expired?") from error
        except Exception as error:
            raise Unreachable(f"store {self.url} does not answer: {type(error).__name__}: {error}") from error

    return asked


class RemoteFiles:
    """An object store. A commit is one PUT or one completed multipart upload, conditional where the store can."""

    readers = 8

    def __init__(self, filesystem: Any, root: str, url: str) -> None:
        self.url = url
        self._filesystem = filesystem
        self._root = root

    @_answering
    def create(self, path: str, data: bytes) -> bool:
        where = self._path(path)
        for attempt in range(_ATTEMPTS):
            if self._filesystem.exists(where):
                return attempt > 0 and self._is(path, data)
            try:
                self._filesystem.pipe_file(where, data, mode="create")
                return True
            except FileExistsError:
                return self._is(path, data)
            except OSError as error:
                if _s3_code(error) == "PreconditionFailed":
                    return self._is(path, data)
                # Another upload or a removal of this name is in progress, or our upload was ended: the file may exist or not.
                if _s3_code(error) not in ("ConditionalRequestConflict", "NoSuchUpload"):
                    raise
        raise Unreachable(f"{self.location(path)}: {_ATTEMPTS} attempts to write it met another writer. Try again.")

    def _is(self, path: str, data: bytes) -> bool:
        """Whether the file has these bytes. If it did not exist before our write, it is ours then: only the reply was lost, and the driver retried."""
        try:
            return bool(self._filesystem.cat_file(self._path(path)) == data)  # not by `read`, so that an error names the store once
        except FileNotFoundError:
            return False

    @_answering
    def replace(self, path: str, data: bytes) -> None:
        self._filesystem.pipe_file(self._path(path), data)

    @_answering
    def move(self, path: str, to: str) -> None:
        self._filesystem.cp_file(self._path(path), self._path(to))
        self._filesystem.rm_file(self._path(path))

    @_answering
    def read(self, path: str) -> bytes:
        data: bytes = self._filesystem.cat_file(self._path(path))
        return data

    @_answering
    def open(self, path: str) -> IO[bytes]:
        file: Any = self._filesystem.open(self._path(path), "rb")
        if file.size > _SMALL:
            return cast(IO[bytes], file)
        with file:  # one request instead of several small ones
            return io.BytesIO(file.read())

    def files(self, directory: str) -> set[str]:
        return {name for name, kind in self._entries(directory) if kind == "file"}

    def directories(self, directory: str) -> set[str]:
        return {name for name, kind in self._entries(directory) if kind == "directory"}

    def leftovers(self, directory: str) -> set[str]:
        return set()  # an object store never shows an unfinished upload

    @_answering
    def remove(self, path: str) -> None:
        self._filesystem.rm_file(self._path(path))

    @_answering
    def modified(self, path: str) -> datetime:
        when: datetime = self._filesystem.modified(self._path(path))
        return when if when.tzinfo else when.replace(tzinfo=UTC)

    def location(self, path: str) -> str:
        return posixpath.join(self.url, path)

    def _path(self, path: str) -> str:
        return posixpath.join(self._root, path)

    @_answering
    def _entries(self, directory: str) -> list[tuple[str, str]]:
        try:
            found = self._filesystem.ls(self._path(directory), detail=True)
        except FileNotFoundError:
            return []
        itself = self._path(directory).rstrip("/")  # some tools mark folders with an object of the folder's name
        return [(posixpath.basename(name), entry["type"]) for entry in found if (name := entry["name"].rstrip("/")) != itself]


def _s3_code(error: OSError) -> str:
    """S3's code of the error: PreconditionFailed (412) if another writer has the name, ConditionalRequestConflict (409) if that is undecided."""
    code: str = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code", "")
    return code


@contextlib.contextmanager
def _failures_of(path: str) -> Iterator[None]:
    """Context manager that adds ``path`` and a remedy to an OSError: the error of a write contains neither."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        raise OSError(error.errno, f"{error.strerror}; {remedy}" if remedy else error.strerror, path) from error


def _open_new(path: str) -> int:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):  # another process has removed the last file here and the directory with it
            _make_directory(os.path.dirname(path))
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _make_directory(directory: str) -> None:
    """Like os.makedirs, but also makes the names of the new directories durable."""
    parent = os.path.dirname(directory)
    if os.path.isdir(directory):
        # The process that made the directory may have been killed before it synced the parent, or may not have done so yet.
        with contextlib.suppress(PermissionError):  # above the store there may be folders without permission to read
            _sync_directory(parent)
        return
    _make_directory(parent)
    try:
        os.mkdir(directory)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise
    _sync_directory(parent)


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink_if_there(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # an exclusive rename has moved it
        os.unlink(path)


def _link_exclusively(temporary: str, final: str) -> bool:
    """Give the temporary file its final name without replacing another file. Returns False if the name is taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        return _rename_exclusively(temporary, final)
    return True


def _rename_exclusively(temporary: str, final: str) -> bool:
    """Like `_link_exclusively` on filesystems without hard links (FAT, some network mounts): Linux's renameat2 with RENAME_NOREPLACE."""
    at_working_directory, no_replace = -100, 1
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise GsecError(f"{os.path.dirname(final)}: this filesystem has no hard links and this system no exclusive rename. Put the store elsewhere.")
    if libc.renameat2(at_working_directory, os.fsencode(temporary), at_working_directory, os.fsencode(final), no_replace) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise GsecError(f"{os.path.dirname(final)}: this filesystem has neither hard links nor an exclusive rename. Put the store elsewhere.")
    raise OSError(code, os.strerror(code), final)
