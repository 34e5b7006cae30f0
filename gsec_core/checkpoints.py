"""Checkpoints of a training: its arrays, without loss, as Arrow tables and as Parquet files in a folder."""

import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gsec_core.tables import CHECKPOINT

KEPT = 2
"""Number of checkpoints that are kept in a folder, the newest ones: if the last is damaged, the one before it is used."""

_OF = b"gsec.of"


def to_table(state: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Convert arrays by name to a table of schema `tables.CHECKPOINT`."""
    arrays = state.values()
    columns = [list(state), [array.dtype.str for array in arrays], [list(array.shape) for array in arrays], [array.tobytes() for array in arrays]]
    return pa.table(columns, schema=CHECKPOINT)


def to_state(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Convert a result of `to_table` back to arrays by name."""
    return {row["name"]: np.frombuffer(row["values"], row["dtype"]).reshape(row["shape"]).copy() for row in table.to_pylist()}


class Checkpoints:
    """The checkpoints of one training in a folder, ``step-NUMBER.parquet``, each written whole or not at all.

    Parameters
    ----------
    folder : folder of the checkpoints; created when the first is saved
    of : everything on which the training depends, by name; numbers and strings
    """

    def __init__(self, folder: str | os.PathLike[str], of: Mapping[str, int | str]) -> None:
        self.folder = Path(folder)
        self.of = dict(of)

    def save(self, step: int, state: Mapping[str, NDArray[Any]]) -> None:
        """Write the arrays of ``state``, then remove all checkpoints but the newest two."""
        table = to_table(state).replace_schema_metadata({_OF: json.dumps(self.of, default=int)})
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / ".part"
        with part.open("wb") as file:
            pq.write_table(table, file, compression="zstd", write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / f"step-{step:08d}.parquet")
        for path in self._paths()[KEPT:]:
            path.unlink(missing_ok=True)

    def latest(self) -> dict[str, NDArray[Any]] | None:
        """The arrays of the newest readable checkpoint, or None if there is none. Warns of damaged ones.

        Raises ValueError, naming the difference, if it belongs to another training.
        """
        for path in self._paths():
            try:
                table = pq.read_table(path, page_checksum_verification=True)
            except (OSError, pa.ArrowException) as error:
                warnings.warn(f"{path}: it is damaged and ignored ({error})", stacklevel=2)
                continue
            self._check(path, json.loads((table.schema.metadata or {}).get(_OF, b"{}")))
            return to_state(table)
        return None

    def _check(self, path: Path, of: Mapping[str, int | str]) -> None:
        for name, value in self.of.items():
            if of.get(name) != value:
                raise ValueError(f"checkpoint: {path} belongs to a training with {name} = {of.get(name)}, and this one has {value}. Give another folder.")

    def _paths(self) -> list[Path]:
        """Paths of the checkpoints, the newest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted((path for path in found if re.fullmatch(r"step-\d+\.parquet", path.name)), key=lambda path: int(path.stem[5:]), reverse=True)
