"""Groups of duplicates in a run, and the group of each image."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.errors import Refused
from gsec_core.explore.columns import Columns, bytes16
from gsec_core.store import Run
from gsec_core.tables import DUPLICATES_TABLE

MOST_SHOWN = 50
"""Maximal number of images of a group that are shown."""

_EXACT_ONLY = "Only images with the same bytes: this run has no table `duplicates`. gsec run with --redo duplicates makes it."


class Duplicates:
    """The groups of a run: from its table `duplicates`, or, if it has none, of images with the same bytes.

    Attributes
    ----------
    rows : int (m,)
        The images, group after group, each with the image to keep first.
    starts : int (groups + 1,)
        Where each group begins in ``rows``, and m.
    cosine : float32 (m,)
    exact, keep : bool (m,)
        As in the table `duplicates`.
    group : int32 (n,)
        Group of each image, -1 if it has no duplicates.
    note : str or None
        A sentence about what is missing.
    """

    def __init__(self, run: Run, columns: Columns) -> None:
        self.note: str | None = None
        try:
            table = run.read_table(DUPLICATES_TABLE, ["group", "image_id", "cosine", "exact", "keep"])
        except Refused:
            self.note = _EXACT_ONLY
            self.rows, self.starts = _of_the_same_bytes(columns)
            self.cosine, self.exact = np.ones(len(self.rows), np.float32), np.ones(len(self.rows), bool)
            self.keep = np.isin(np.arange(len(self.rows)), self.starts[:-1])
        else:
            self.rows = columns.rows(bytes16(table["image_id"]))
            self.starts = np.append(np.unique(table["group"].to_numpy(), return_index=True)[1], table.num_rows)
            self.cosine, self.exact, self.keep = (table[name].to_numpy(zero_copy_only=False) for name in ("cosine", "exact", "keep"))
        self.group: NDArray[np.int32] = np.full(len(columns), -1, np.int32)
        self.group[self.rows] = np.repeat(np.arange(len(self)), np.diff(self.starts))

    def __len__(self) -> int:
        """Number of groups."""
        return len(self.starts) - 1

    def of(self, row: int) -> NDArray[np.int64]:
        """Indices in `rows` of the other images in the image's group, at most `MOST_SHOWN`."""
        group = self.group[row]
        if group < 0:
            return np.empty(0, np.int64)
        places = np.arange(self.starts[group], self.starts[group + 1])
        others: NDArray[np.int64] = places[self.rows[places] != row]
        return others[:MOST_SHOWN]


def _of_the_same_bytes(columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and starts of groups with the same bytes, which are adjacent in canonical order."""
    nothing: NDArray[Any] = np.empty(0, np.int64)
    if not len(columns):
        return nothing, np.zeros(1, np.int64)
    begins = np.flatnonzero(np.append(True, columns.hashes[1:] != columns.hashes[:-1]))
    sizes = np.diff(np.append(begins, len(columns)))
    several = np.flatnonzero(sizes > 1)
    several = several[np.argsort(-sizes[several], kind="stable")]
    groups = []
    for begin, size in zip(begins[several], sizes[several], strict=True):
        here = np.arange(begin, begin + size)
        groups.append(here[pc.sort_indices(columns.uris.slice(begin, size)).to_numpy()])
    return np.concatenate([nothing, *groups]), np.cumsum([0, *sizes[several]])
