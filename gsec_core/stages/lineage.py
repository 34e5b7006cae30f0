"""lineage: matches the clusters with those of the previously published run, and gives them keys that stay the same from run to run.

Reads `assignments`, and `assignments` and `lineage` of the run that was published when this run was requested; writes
`lineage` (one row for each cluster).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.clustering import lineage
from gsec_core.clustering.lineage import Lineage
from gsec_core.stages import align, prepare
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step
from gsec_core.stages.canonical import read_parts
from gsec_core.store import Run
from gsec_core.tables import ASSIGNMENTS_TABLE, LINEAGE, LINEAGE_TABLE


def trace(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Find a key for every cluster."""
    clusters = context.config.n_clusters
    if context.previous is None:
        found, shared, keys = lineage.first(clusters), pl.DataFrame(schema={"cluster": pl.Int32, "previous": pl.Int32, "images": pl.Int64}), None
    else:
        shared, keys = _shared(context, context.previous), keys_of(context.previous)
        if context.keeps:
            found = _kept(shared, keys)
        else:
            next_key, further = context.run.request()["previous"]["next_key"], prepare.trains_further(context)
            found = lineage.inherit(shared, clusters, keys, next_key, same_numbers=further)
    yield Finished("all", (_table(found, _origins(shared, clusters, keys)),), {"common": int(found.common.sum()), "moved": int(found.moved.sum())})


def _shared(context: Context, published: Run) -> pl.DataFrame:
    """Number of images that each cluster shares with each previous cluster. An image is the same if its bytes are, also under another address."""
    labels, itself = ["cluster", "previous"], ["image_id", "content_hash"]
    new = pl.DataFrame(read_parts(context, align.STAGE, ASSIGNMENTS_TABLE, [*itself, "cluster"]))
    old = pl.DataFrame(published.read_table(ASSIGNMENTS_TABLE, [*itself, "cluster"])).rename({"cluster": "previous"})
    others = old.join(new, on=itself, how="anti").unique("content_hash", keep="first", maintain_order=True)
    renamed = new.join(old, on=itself, how="anti").join(others, on="content_hash").select(labels)
    both = pl.concat([new.join(old, on=itself).select(labels), renamed])
    return both.group_by("previous", "cluster").agg(pl.len().cast(pl.Int64).alias("images")).sort("cluster", "previous")


def _kept(shared: pl.DataFrame, keys: NDArray[np.int32]) -> Lineage:
    """Lineage with a kept model: every cluster keeps its key, even without images."""
    numbers = np.arange(len(keys), dtype=np.int32)
    common = np.bincount(shared["cluster"].to_numpy(), shared["images"].to_numpy(), len(keys)).astype(np.int64)
    return Lineage(keys, numbers, np.where(common > 0, 1, np.nan).astype(np.float32), common, np.zeros_like(common))


def _origins(shared: pl.DataFrame, clusters: int, keys: NDArray[np.int32] | None) -> list[list[dict[str, Any]]]:
    """For each cluster, the previous keys of its images, with their shares, the largest first."""
    found: list[list[dict[str, Any]]] = [[] for _ in range(clusters)]
    if keys is not None:
        shares = shared.with_columns(pl.col("images") / pl.col("images").sum().over("cluster")).sort("images", "previous", descending=[True, False])
        for previous, cluster, share in shares.select("previous", "cluster", "images").iter_rows():
            found[cluster].append({"cluster_key": int(keys[previous]), "share": share})
    return found


def _table(found: Lineage, origins: list[list[dict[str, Any]]]) -> pa.Table:
    new, without = found.previous < 0, found.common == 0
    columns = [
        pa.array(np.arange(len(found.keys), dtype=np.int32)),
        pa.array(found.keys),
        pa.array(found.previous, mask=new),
        pa.array(found.overlap, mask=new),
        pa.array(found.common),
        pa.array((found.moved / np.maximum(found.common, 1)).astype(np.float32), mask=without),
        pa.array(origins, LINEAGE.field("origins").type),
    ]
    return pa.table(columns, schema=LINEAGE)


def keys_of(run: Run) -> NDArray[np.int32]:
    """The keys of a run's clusters, (clusters,). Raises Refused if the run has no lineage yet."""
    keys: NDArray[np.int32] = run.read_table(LINEAGE_TABLE, ["cluster_key"])["cluster_key"].to_numpy()
    return keys


def moved(context: Context) -> float | None:
    """Share of the images in common with the previously published run whose cluster key has changed; None without such a run or common images."""
    facts = context.shards(STAGE, LINEAGE_TABLE).facts("all")
    return facts["moved"] / facts["common"] if facts["common"] else None


def _inputs(context: Context) -> list[str]:
    previous = context.run.request().get("previous")
    return [align.STAGE.fingerprint(context), *([] if previous is None else [previous["run_id"], str(previous["next_key"])])]


STAGE = Stage(
    name="lineage",
    version=1,
    settings=lambda config: {},
    inputs=_inputs,
    steps=(Step((LINEAGE_TABLE,), trace, whole=True),),
)
