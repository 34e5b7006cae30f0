"""Temporary data on disk, in files without a name: their space is freed with the last reference, also if the process is killed."""

import json
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
import pyarrow as pa
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


def scratch_table(config: PipelineConfig, table: pa.Table) -> pa.Table:
    """A copy of a table on disk, any row of which can be read without reading the others. Raises as `scratch_array` does."""
    with scratch_file(config) as file:
        with _disk_errors(config):
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
        return pa.ipc.open_file(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))).read_all()


@contextmanager
def _disk_errors(config: PipelineConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = config.scratch or gettempdir()
        raise OSError(error.errno, f"{error.strerror}; make room there, or name another folder with the setting scratch", place) from None
