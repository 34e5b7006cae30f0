"""Search in the embeddings of a run by cosine. faiss compresses them to one byte a value, in a temporary file that is mapped into memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.config import PipelineConfig
from gsec_core.devices import return_freed_memory, thread_count
from gsec_core.errors import Refused
from gsec_core.explore.cached import CachedShards
from gsec_core.explore.columns import Columns, bytes16
from gsec_core.stages.scratch import scratch_file
from gsec_core.store import Shards
from gsec_core.store.arrays import to_matrix

MOST_FOUND = 1000
"""Maximal number of images that a search finds."""

_SEGMENT_ROWS = 32_768
"""Rows from which an index is closed and the next begun. The indexes are searched in parallel, and only one is in memory while they are built."""

_EXACT_BYTES = 2**28
"""Vectors that take at most this many bytes in all are kept at half precision."""


class Found(NamedTuple):
    """The nearest images, the nearest first."""

    rows: NDArray[np.int64]
    cosines: NDArray[np.float32]


class Embeddings:
    """A table `embeddings`, with access by image.

    Parameters
    ----------
    shards, names : the table, and the names of its shards
    columns : the images
    places : int (n,)
        Number of the shard of each image. Rows of the image in other shards are out of date.
    """

    def __init__(self, shards: Shards, names: list[str], columns: Columns, places: NDArray[np.int32]) -> None:
        self._shards, self._names, self._columns, self._places = shards, names, columns, places
        self._cached = CachedShards(shards)

    def of(self, row: int) -> dict[str, Any]:
        """The columns of one image, its vectors as (1, d) arrays. Raises Refused if its shard is gone, BadShard if the shard is damaged."""
        name = self._names[self._places[row]]
        try:
            table = self._cached.read(name)
        except FileNotFoundError:
            raise self._gone([name]) from None
        place = np.flatnonzero(bytes16(table["image_id"]) == self._columns.ids[row])
        if not len(place):
            raise self._gone([name])
        one = table.slice(int(place[0]), 1)
        vectors = [field.name for field in one.schema if pa.types.is_fixed_size_list(field.type)]
        return {name: _one(one[name]) if name in vectors else one[name][0].as_py() for name in one.column_names}

    def vectors(self, column: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
        """Every image's vector once, shard by shard: rows (m,) and vectors (m, d). Raises Refused if shards are gone, BadShard if some are damaged."""
        number_of = {name: number for number, name in enumerate(self._names)}
        gone = sorted(set(self._names) - self._shards.names())
        if gone:
            raise self._gone(gone)
        for name, table in self._shards.read_each(self._names, ["image_id", column]):
            rows = self._columns.rows(bytes16(table["image_id"]))
            live = (rows >= 0) & (self._places[rows] == number_of[name])
            yield rows[live], to_matrix(table, column)[live]

    def _gone(self, names: list[str]) -> Refused:
        return Refused(
            f"{len(names)} of {len(self._names)} shards of embeddings are gone, such as {self._shards.location(names[0])}, so there are no neighbours and no "
            "search. Repeat the gsec run that made them: it makes them again."
        )


class Vectors:
    """Index of one column of vectors of all images.

    Each value takes one byte, or two if all vectors are at most 256 MiB then. The search is exact except for this rounding: with one byte the cosines are
    right to about 0.004.
    """

    def __init__(self, embeddings: Embeddings, column: str, n: int, config: PipelineConfig) -> None:
        self._pool = ThreadPoolExecutor(thread_count(config.threads), thread_name_prefix="search", initializer=lambda: _faiss().omp_set_num_threads(1))
        self._segments: list[tuple[NDArray[np.int64], Any]] = []
        self._n = n
        rows: list[NDArray[np.int64]] = []
        vectors: list[NDArray[np.float16]] = []
        for some, values in embeddings.vectors(column):
            rows.append(some)
            vectors.append(values)
            if sum(map(len, rows)) >= _SEGMENT_ROWS:
                self._add(rows, vectors, config)
                rows, vectors = [], []
        if sum(map(len, rows)):
            self._add(rows, vectors, config)
        del rows, vectors
        release()

    def _add(self, rows: list[NDArray[np.int64]], vectors: list[NDArray[np.float16]], config: PipelineConfig) -> None:
        matrix = np.concatenate(vectors)
        faiss = _faiss()
        kind = faiss.ScalarQuantizer.QT_fp16 if 2 * self._n * matrix.shape[1] <= _EXACT_BYTES else faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexScalarQuantizer(matrix.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        values = matrix.astype(np.float32)
        index.train(values)
        index.add(values)
        self._segments.append((np.concatenate(rows), _mapped(faiss.serialize_index(index), config)))

    def search(self, query: NDArray[np.floating[Any]], count: int, out: NDArray[np.bool_]) -> Found:
        """The ``count`` images nearest to a vector (1, d), except those with ``out`` (n,) true."""
        unit = (query / np.linalg.norm(query.astype(np.float32))).astype(np.float32)

        def of_segment(segment: tuple[NDArray[np.int64], Any]) -> Found:
            rows, index = segment
            faiss = _faiss()
            bits = np.packbits(~out[rows], bitorder="little")
            wanted = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
            cosines, places = index.search(unit, min(count, len(rows)), params=wanted)
            there = places[0] >= 0
            return Found(rows[places[0][there]], cosines[0][there])

        found = list(self._pool.map(of_segment, self._segments))
        rows, cosines = (np.concatenate([np.asarray(one[part]) for one in found]) if found else np.empty(0) for part in range(2))
        best = np.lexsort((rows, -cosines))[:count]  # ties are in canonical order
        return Found(rows[best].astype(np.int64), np.minimum(cosines[best], 1))

    def to_each(self, query: NDArray[np.floating[Any]], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The cosines of a vector (1, d) to the images in rows (m,), (m,)."""
        out = np.ones(self._n, bool)
        out[rows] = False
        found = self.search(query, len(rows), out)
        cosines = np.empty(len(rows), np.float32)
        cosines[np.argsort(rows)] = found.cosines[np.argsort(found.rows)]
        return cosines


def release() -> None:
    """Return freed memory to the system after a large read, because allocators would keep it."""
    pa.default_memory_pool().release_unused()
    return_freed_memory()


def _one(column: pa.ChunkedArray) -> NDArray[np.float16]:
    values: NDArray[np.float16] = column[0].values.to_numpy(zero_copy_only=False)
    return values[None]


def _mapped(data: NDArray[np.uint8], config: PipelineConfig) -> Any:
    """Map a serialised faiss index from a temporary file without a name. Raises as `scratch_file`, and OSError if the disk is full."""
    faiss = _faiss()
    with scratch_file(config) as file:
        file.write(data.data)
        file.seek(0)
        return faiss.read_index(f"/dev/fd/{file.fileno()}", faiss.IO_FLAG_MMAP_IFC)


def _faiss() -> Any:
    import faiss

    return faiss
