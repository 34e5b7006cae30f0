"""Parquet files with a column of encoded images, as in Hugging Face image data sets."""

import threading
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gsec_core.errors import Refused
from gsec_core.sources.base import LISTING, ImageRef, RejectedImage
from gsec_core.sources.container import ContainerSource

ROW_DIGITS = 9
"""Digits of a row number in a URI, padded with zeros so that the URIs sort in storage order and row groups are read one after the other."""

_BATCH_BYTES = 2**28
"""About the size in bytes of the batches in which a row group is read."""


class _Footer(NamedTuple):
    metadata: pq.FileMetaData
    starts: NDArray[np.int64]
    """First row of each row group, then the total number of rows, (row groups + 1,)."""
    leaf: str
    """Path in the Parquet schema of the column with the bytes."""


class ParquetSource(ContainerSource):
    """One image in each row, in ``image_column``: binary, or a struct with a binary field ``bytes``. A field ``path`` is ignored."""

    suffix = ".parquet"

    def __init__(self, url: str, image_column: str, exclude: str = "") -> None:
        super().__init__(url, exclude)
        self._image_column = image_column
        self._lock = threading.Lock()  # threads that need rows of the same row group must read it only once
        self._footer = lru_cache(maxsize=64)(self._read_footer)
        self._group = lru_cache(maxsize=2)(self._read_group)

    def _list_container(self, path: str, uri: str, version: str) -> pa.Table:
        count = self._open_footer(path).metadata.num_rows
        rows = pc.utf8_lpad(pa.array(np.arange(count)).cast(pa.string()), ROW_DIGITS, "0")
        uris = pc.binary_join_element_wise(uri, rows, "#")
        return pa.table([uris, pa.repeat(pa.scalar(-1, pa.int64()), count), pa.repeat(version, count)], schema=LISTING)

    def _fetch_member(self, path: str, member: str, ref: ImageRef) -> bytes:
        with self._lock:
            starts = self._footer(path, ref.version).starts
            if not member.isdecimal() or int(member) >= starts[-1]:
                raise RejectedImage("the URI names no row")
            row = int(member)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            images = self._group(path, ref.version, group)
        if isinstance(images, str):
            raise RejectedImage(images)
        image: bytes | None = images[row - int(starts[group])].as_py()
        if image is None:
            raise RejectedImage("no image bytes in the row")
        return image

    def _read_footer(self, path: str, version: str) -> _Footer:
        with self._unchanged(path, version):
            return self._open_footer(path)

    def _read_group(self, path: str, version: str, group: int) -> pa.ChunkedArray | str:
        """The image bytes of one row group, or why it is damaged: kept as well, so that it is not read again for each of its rows."""
        footer = self._footer(path, version)
        try:
            with self._unchanged(path, version), self._fs.open(path, "rb") as raw, pq.ParquetFile(raw, metadata=footer.metadata, pre_buffer=False) as file:
                # In batches, since Arrow cannot put more than 2 GiB of a struct's bytes into one array.
                batches = footer.metadata.row_group(group).total_byte_size // _BATCH_BYTES + 1
                size = -(-footer.metadata.row_group(group).num_rows // batches)
                read = file.iter_batches(size, row_groups=[group], columns=[footer.leaf], use_threads=False)
                images = pa.Table.from_batches(read).select([self._image_column])  # a flattened table may have a column `image.bytes` besides `image`
                return images.flatten().column(0)
        except (OSError, ValueError, pa.ArrowException) as error:
            if is_damage(error):
                return f"damaged Parquet row group: {str(error).strip()}"
            raise

    def _open_footer(self, path: str) -> _Footer:
        try:
            with self._fs.open(path, "rb") as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
                metadata, schema = file.metadata, file.schema_arrow
        except (OSError, ValueError, pa.ArrowException) as error:
            if not is_damage(error):
                raise
            said = " ".join(str(error).split())
            raise Refused(f"{path} is not a Parquet file that can be read: replace it, or leave it out of the source. ({said})") from error
        starts = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))], dtype=np.int64)
        return _Footer(metadata, starts, self._leaf(schema, path))

    def _leaf(self, schema: pa.Schema, path: str) -> str:
        setting = f'ingest.image_column = "{self._image_column}"'
        if self._image_column not in schema.names:
            raise Refused(f"{setting}: {path} has no such column; it has {', '.join(schema.names)}.")
        if schema.names.count(self._image_column) > 1:
            raise Refused(f"{setting}: {path} has several columns of that name.")
        column = schema.field(self._image_column)
        leaf = leaf_of(column)
        if leaf is None:
            raise Refused(f"{setting}: the column is {column.type} in {path}; it must be binary, or a struct with a binary field `bytes`.")
        return leaf


def leaf_of(column: pa.Field) -> str | None:
    """Path in the Parquet schema of the bytes in a column, which has them itself or in a struct with a field ``bytes``; None if it has none."""
    kind = column.type
    if _is_bytes(kind):
        return str(column.name)
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type):
        return f"{column.name}.bytes"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether a column type holds bytes, in any of Arrow's layouts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    layouts = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(is_layout(kind) for is_layout in layouts)


def is_damage(error: Exception) -> bool:
    """Whether a read error is caused by damaged bytes of the file, where a retry cannot help, and not by the storage.

    Arrow raises a plain OSError without an errno for bytes that it cannot decode.
    """
    return isinstance(error, ValueError | pa.ArrowException) or (type(error) is OSError and error.errno is None)
