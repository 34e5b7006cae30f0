"""The assignments of a run as columns in memory, in canonical order: some 150 bytes an image."""

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
        The last two are NaN where there is one labelling only.
    parts : int (n_parts + 1,)
        Where each shard of the tables in canonical order begins, and n.
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
        # xxh3 is as good as random, so that its first half tells images apart; the second is compared all the same.
        self._order = np.argsort(first_half(self.ids), kind="stable")
        self._sorted = first_half(self.ids)[self._order]

    def __len__(self) -> int:
        return len(self.cluster)

    def row(self, id: str) -> int:
        """The row of an image. Raises Refused if the run has none of this id."""
        try:
            wanted = np.frombuffer(bytes.fromhex(id), "V16")
        except ValueError:
            wanted = np.empty(0, "V16")
        found = self.rows(wanted) if len(wanted) == 1 else np.array([-1])
        if found[0] < 0:
            raise NotFound(f"image {id[:40]}: the run has no such image. An image's id is 32 hex digits, the xxh3-128 of its place in the source.")
        return int(found[0])

    def rows(self, ids: NDArray[np.void]) -> NDArray[np.int64]:
        """The rows of images (m,); -1 of those that the run does not have."""
        if not len(self):
            return np.full(len(ids), -1)
        place = np.minimum(np.searchsorted(self._sorted, first_half(ids)), len(self) - 1)
        found = self._order[place]
        return np.where(self.ids[found] == ids, found, -1)

    def hexes(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """Image ids as 32 hex digits."""
        return [value.tobytes().hex() for value in self.ids[rows]]

    def names(self, rows: NDArray[np.integer[Any]]) -> list[str]:
        """Where the images are in the source."""
        found: list[str] = self.uris.take(pa.array(rows)).to_pylist()
        return found


def bytes16(column: pa.ChunkedArray) -> NDArray[np.void]:
    """A column of 16 bytes a row, (rows,)."""
    flat = column.combine_chunks()
    return np.frombuffer(flat.buffers()[1], "V16", len(flat), flat.offset * 16)


def to_arrow(ids: NDArray[np.void]) -> pa.FixedSizeBinaryArray:
    """The same for Arrow, which refers to the same memory."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])


def first_half(ids: NDArray[np.void]) -> NDArray[np.uint64]:
    """Of 16 bytes the first eight, as a number."""
    return np.ascontiguousarray(ids).view(np.uint64)[::2]


def _floats(column: pa.ChunkedArray) -> NDArray[np.float32]:
    values: NDArray[np.float32] = pc.fill_null(column, np.nan).to_numpy()
    return values
