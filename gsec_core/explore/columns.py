"""The assignments of a run as columns in memory, in canonical order: about 150 bytes for each image."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.errors import NotFound
from gsec_core.store import Run
from gsec_core.tables import ASSIGNMENTS_TABLE

_COLUMNS = ["image_id", "uri", "content_hash", "cluster", "confidence", "agreement", "outlier"]


class Columns:
    """Every image of a run.

    Attributes
    ----------
    ids, hashes : V16 (n,)
        Image ids, and the content hashes.
    uris : string array (n,)
    cluster : int32 (n,)
    confidence, agreement, outlier : float32 (n,)
        The last two are NaN if the run has only one labelling.
    parts : int (n_parts + 1,)
        First row of each shard of the tables in canonical order, and n.
    """

    def __init__(self, run: Run) -> None:
        shards, self.part_names = run.table(ASSIGNMENTS_TABLE)
        tables = shards.read_all(self.part_names, _COLUMNS)
        self.parts = np.cumsum([0, *(table.num_rows for table in tables)])
        table = pa.concat_tables(tables)
        self.ids, self.hashes = (bytes16(table[name]) for name in ("image_id", "content_hash"))
        self.uris = table["uri"].combine_chunks()
        self.cluster: NDArray[np.int32] = table["cluster"].to_numpy()
        self.confidence, self.agreement, self.outlier = (_floats(table[name]) for name in ("confidence", "agreement", "outlier"))
        # xxh3 is as good as random, so sorting by its first half is enough to find an image; the whole id is compared afterwards.
        self._order = np.argsort(first_half(self.ids), kind="stable")
        self._sorted = first_half(self.ids)[self._order]

    def __len__(self) -> int:
        return len(self.cluster)

    def row(self, id: str) -> int:
        """The row of an image, given its id in hex digits. Raises NotFound if the run has no such image."""
        try:
            wanted = np.frombuffer(bytes.fromhex(id), "V16")
        except ValueError:
            wanted = np.empty(0, "V16")
        found = self.rows(wanted) if len(wanted) == 1 else np.array([-1])
        if found[0] < 0:
            raise NotFound(f"image {id[:40]}: the run has no such image. An image's id is 32 hex digits, the xxh3-128 of its place in the source.")
        return int(found[0])

    def rows(self, ids: NDArray[np.void]) -> NDArray[np.int64]:
        """The rows of images (m,), -1 for those that the run does not have."""
        if not len(self):
            return np.full(len(ids), -1)
        place = np.minimum(np.searchsorted(self._sorted, first_half(ids)), len(self) - 1)
        found = self._order[place]
        return np.where(self.ids[found] == ids, found, -1)

    def hexes(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """Image ids of rows, as 32 hex digits."""
        return [value.tobytes().hex() for value in self.ids[rows]]

    def names(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """URIs of rows."""
        found: list[str] = self.uris.take(pa.array(rows)).to_pylist()
        return found


def bytes16(column: pa.ChunkedArray) -> NDArray[np.void]:
    """A column of type binary(16) as an array, (rows,), without a copy."""
    flat = column.combine_chunks()
    return np.frombuffer(flat.buffers()[1], "V16", len(flat), flat.offset * 16)


def to_arrow(ids: NDArray[np.void]) -> pa.FixedSizeBinaryArray:
    """An array of `bytes16` as an Arrow array that shares its memory."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])


def first_half(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """The first eight of 16 bytes, as a number."""
    return np.ascontiguousarray(ids).view(np.uint64)[::2]


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    values: NDArray[np.float32] = pc.fill_null(column, np.nan).to_numpy()
    return values
