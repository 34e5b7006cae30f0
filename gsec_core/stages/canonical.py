"""What every stage after encode shares: the usable images in canonical order, their vectors, tables about all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gsec_core.clustering.kmeans import unit_rows
from gsec_core.errors import Refused
from gsec_core.stages import encode
from gsec_core.stages.base import Context
from gsec_core.tables import CLUSTERS, EMBEDDINGS_TABLE, OK

PART_ROWS = 65_536
"""Images a shard of the tables in canonical order."""


@dataclass(frozen=True)
class Usable:
    """The live images with status ok, in canonical order."""

    rows: pa.Table
    """image_id, uri, content_hash, shard."""
    digest: str
    """Of image_id, content_hash and status of all live rows, usable or not."""

    @property
    def part_names(self) -> list[str]:
        return [name for name, _ in in_parts(self.rows)]


@lru_cache(maxsize=1)
def usable(context: Context) -> Usable:
    """See `encode.encoded_rows`. Raises as it does, and Refused if there are fewer usable images than clusters."""
    live = encode.encoded_rows(context)
    digest = xxhash.xxh3_128()
    for column in ("image_id", "content_hash", "status"):
        digest.update(b"\0".join(value.encode() if isinstance(value, str) else value or b"" for value in live[column].to_pylist()))
    ok = live.filter(pc.equal(live["status"], OK))
    clusters = context.config.clusters
    if ok.num_rows < clusters:
        raise Refused(f"clusters = {clusters}: only {ok.num_rows} of {live.num_rows} images are usable. Ask for fewer clusters or give more images.")
    return Usable(ok.select(["image_id", "uri", "content_hash", "shard"]), digest.hexdigest())


def load_embeddings(context: Context, rows: pa.Table) -> NDArray[np.float16]:
    """The image embeddings of ``rows`` (image_id, shard), (len(rows), dim), in their order."""
    embeddings = context.shards(encode.STAGE, EMBEDDINGS_TABLE)
    wanted = pl.DataFrame(rows.select(["image_id", "shard"])).with_row_index("position")
    matrix: NDArray[np.float16] | None = None
    names = sorted(set(wanted["shard"]))
    for name, table in embeddings.read_each(names, ["image_id", "embedding"]):
        vectors = table["embedding"].combine_chunks()
        if matrix is None:
            matrix = np.empty((rows.num_rows, vectors.type.list_size), np.float16)
        values = vectors.values.to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
        here = pl.DataFrame(table.select(["image_id"])).with_row_index("row").join(wanted.filter(pl.col("shard") == name), on="image_id")
        matrix[here["position"].to_numpy()] = values[here["row"].to_numpy()]
    assert matrix is not None, "there are at least two usable images"
    return matrix


def in_parts(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """A table in canonical order, cut into the parts that `Usable.part_names` names."""
    for start in range(0, table.num_rows, PART_ROWS):
        yield f"part-{start // PART_ROWS:05d}", table.slice(start, PART_ROWS)


def is_duplicate(rows: pa.Table) -> NDArray[np.bool_]:
    """Which of ``rows`` (content_hash) share their bytes with another."""
    return pl.DataFrame(rows.select(["content_hash"])).select(pl.col("content_hash").is_duplicated())["content_hash"].to_numpy()


def cluster_table(X: NDArray[np.float16], assignments: pa.Table, n_clusters: int) -> pa.Table:
    """A table of schema CLUSTERS for embeddings ``X`` (n, dim) and their assignments, row by row.

    A cluster's centre is the mean direction of its images.
    """
    labels = assignments["cluster"].to_numpy()
    sizes = np.bincount(labels, minlength=n_clusters)
    sums = np.zeros((n_clusters, X.shape[1]), np.float64)
    for start in range(0, len(X), PART_ROWS):
        block = slice(start, start + PART_ROWS)
        member = csr_array((np.ones(len(labels[block])), (labels[block], np.arange(len(labels[block])))), shape=(n_clusters, len(labels[block])))
        sums += member @ unit_rows(X[block])
    centres = unit_rows(sums)
    # The mean cosine of unit rows to their mean direction is the length of their mean.
    cohesion = np.linalg.norm(sums, axis=1) / np.maximum(sizes, 1)
    between = centres @ centres.T
    np.fill_diagonal(between, -1)
    agreement = assignments.group_by("cluster").aggregate([("agreement", "mean")])
    mean_agreement = dict(zip(agreement["cluster"].to_pylist(), agreement["agreement_mean"].to_pylist(), strict=True))
    return pa.table(
        [
            np.arange(n_clusters),
            sizes,
            pa.array(cohesion, pa.float32(), mask=sizes == 0),
            1 - between.max(axis=1),
            [mean_agreement.get(cluster) for cluster in range(n_clusters)],
        ],
        schema=CLUSTERS,
    )
