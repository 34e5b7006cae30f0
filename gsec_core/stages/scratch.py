"""Temporary data on disk, in files without a name: their space is freed with the last reference, also if the process is killed."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryFile, gettempdir
from threading import Lock
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused


def scratch_file(config: PipelineConfig) -> IO[bytes]:
    """A temporary file without a name. Raises Refused if none can be created."""
    try:
        return TemporaryFile(dir=config.scratch)
    except OSError as error:
        place = json.dumps(config.scratch or gettempdir())
        raise Refused(f"scratch = {place}: no file can be made there ({error.strerror}). Make the folder, or name another one.") from None


def scratch_array(config: PipelineConfig, shape: tuple[int, ...], kind: DTypeLike) -> NDArray[Any]:
    """An array on disk. Raises what `scratch_file` raises, and OSError if the disk is full."""
    with scratch_file(config) as file:
        with _disk_errors(config):
            # Writing to a memory map on a full disk would kill the process; allocating first raises an error instead.
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape) * np.dtype(kind).itemsize))
        return np.memmap(file, kind, "r+", shape=shape)


class ScratchRecords:
    """Records of bytes in one scratch file. Threads may add and read them at the same time. Raises as `scratch_array` does."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config, self._file, self._end, self._lock = config, scratch_file(config), 0, Lock()

    def add(self, records: Sequence[bytes]) -> NDArray[np.int64]:
        """Append records. Returns where they begin in the file, and where the last one ends: (n + 1,)."""
        data = b"".join(records)
        with self._lock:
            start = self._end
            self._end += len(data)
        with _disk_errors(self._config):
            os.posix_fallocate(self._file.fileno(), start, max(1, len(data)))  # then everything is written at once
            os.pwrite(self._file.fileno(), data, start)
        return start + np.cumsum([0, *map(len, records)], dtype=np.int64)

    def read(self, start: int, stop: int) -> bytes:
        return os.pread(self._file.fileno(), stop - start, start)


@contextmanager
def _disk_errors(config: PipelineConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = config.scratch or gettempdir()
        raise OSError(error.errno, f"{error.strerror}; make room there, or name another folder with the setting scratch", place) from None
