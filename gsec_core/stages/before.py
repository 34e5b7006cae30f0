"""Assignments of the images in the published run, for runs that keep or continue its model."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.stages.base import Context
from gsec_core.stages.canonical import usable
from gsec_core.store import Run
from gsec_core.tables import ASSIGNMENTS_TABLE, EMERGING_TABLE


def assigned_before(context: Context, columns: Sequence[str]) -> pl.DataFrame:
    """The given columns of the published run's assignments for each usable image, in canonical order, matched by content hash; nulls for new images."""
    rows = pl.DataFrame(previous(context).read_table(ASSIGNMENTS_TABLE, ["content_hash", *columns]))
    theirs = rows.unique("content_hash", keep="first", maintain_order=True)
    found = pl.DataFrame(usable(context).rows.select(["content_hash"])).join(theirs, on="content_hash", how="left", maintain_order="left")
    return found.drop("content_hash")


def labels_before(context: Context) -> NDArray[np.int32]:
    """The cluster that each image had, (n,). New images have -1, except groups that become a new cluster: these have its number."""
    labels: NDArray[np.int32] = assigned_before(context, ["cluster"])["cluster"].fill_null(-1).to_numpy().astype(np.int32)
    if context.config.n_clusters > context.model.config.n_clusters:
        for row in emerging(context).to_pylist():
            labels[pc.is_in(usable(context).rows["image_id"], pa.array(row["images"], pa.binary(16))).to_numpy(zero_copy_only=False)] = row["cluster"]
    return labels


def emerging(context: Context) -> pa.Table:
    """The groups of new images that stage refit found; schema EMERGING."""
    return context.run.read_table(EMERGING_TABLE)


def previous(context: Context) -> Run:
    """The published run. Only for runs that keep or continue it."""
    assert context.previous is not None, "there is nothing to keep or to continue"
    return context.previous
