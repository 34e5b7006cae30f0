"""Matrices as columns of Arrow tables, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def make_table(columns: Sequence[Any], schema: pa.Schema) -> pa.Table:
    """As `pyarrow.table`, but a column of fixed size lists may also be a matrix (rows, length)."""
    arrays = [
        to_column(column, field.type) if isinstance(column, np.ndarray) and column.ndim == 2 else column for column, field in zip(columns, schema, strict=True)
    ]
    return pa.table(arrays, schema=schema)


def to_column(matrix: NDArray[Any], kind: pa.DataType, mask: pa.Array | None = None) -> pa.FixedSizeListArray:
    """Convert a matrix (rows, length) to a column of type ``kind``, a fixed size list of that length. Rows where ``mask`` is true are null."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=mask)


def to_matrix(table: pa.Table, column: str) -> NDArray[Any]:
    """Convert a column of lists of equal length to a matrix (rows, length); null rows are zeros. The table must not be a slice."""
    lists = table[column].combine_chunks()
    matrix: NDArray[Any] = lists.values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    return matrix
