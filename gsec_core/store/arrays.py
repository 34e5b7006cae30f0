"""Matrices as columns of Arrow tables, and back."""

from typing import Any

import pyarrow as pa
from numpy.typing import NDArray


def to_column(matrix: NDArray[Any], kind: pa.DataType, mask: pa.Array | None = None) -> pa.FixedSizeListArray:
    """A matrix (rows, length) as a column of ``kind``, a fixed size list of that length; null where ``mask``."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=kind, mask=mask)


def to_matrix(table: pa.Table, column: str) -> NDArray[Any]:
    """A column of lists of one length as a matrix (rows, length), zeros where they are null. The table is a whole one, no slice."""
    lists = table[column].combine_chunks()
    matrix: NDArray[Any] = lists.values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    return matrix
