"""The published run that a run continues: the assignments of its images, and the requests to redo stages that were answered by then."""

from collections.abc import Sequence
from itertools import dropwhile

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gsec_core.stages.base import Context
from gsec_core.stages.canonical import usable
from gsec_core.store import Run, Store
from gsec_core.store.publications import pipeline_of
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


def answered(context: Context) -> dict[str, int]:
    """The redo counters of the published run and of the runs that a user left for it: who went back from a redo does not want it again."""
    run = previous(context)
    done: dict[str, int] = dict(run.request()["redo"])
    newest_first = Store(run.files).publications.newest_first(pipeline_of(context.config, context.corpus.name))
    for publication in dropwhile(lambda publication: publication.run_id != run.id, newest_first):
        if (earlier := Run(run.files, publication.run_id)).exists():  # it may have been pruned
            done |= {stage: max(count, done.get(stage, 0)) for stage, count in earlier.request()["redo"].items()}
        if publication.left is None:
            break
    return done
