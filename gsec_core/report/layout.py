"""Which images a report shows, and where they are on its map."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

MOST = 5_000
"""Images that a report shows at most."""

PER_ROLE = 6
"""Images of each role that a cluster's gallery has at most."""

REPRESENTATIVE, MOST_CONFIDENT, LEAST_CONFIDENT, SAMPLE = "representative", "most confident", "least confident", "sample"
"""Why an image is shown: it was described or is near its cluster's centre, its cluster is surest or least sure of it, or it was drawn for the map."""

_SEED = 0
_COMPONENTS = 50
_PERPLEXITY = 30


def choose(
    labels: NDArray[np.integer[Any]],
    confidence: NDArray[np.float32],
    centrality: NDArray[np.float32],
    described: NDArray[np.bool_],
    distinct: NDArray[np.bool_],
    n_clusters: int,
) -> pl.DataFrame:
    """The rows that are shown, at most `MOST`, with columns row, cluster and role, in the order of galleries.

    The arrays are (n,): cluster, how sure it is, cosine to its centre, whether the image was described, and whether it is the
    first of its bytes; of others none is shown. Representatives are the described ones first. Every cluster has up to
    `PER_ROLE` images of each role, fewer if there are many clusters; the rest is drawn in proportion to what is left of the
    clusters, with a fixed seed.
    """
    columns = {"row": np.arange(len(labels)), "cluster": labels, "confidence": confidence, "centrality": centrality, "described": described}
    left = pl.DataFrame(columns).filter(pl.Series(distinct))
    per_role = min(PER_ROLE, MOST // (3 * n_clusters))
    chosen = []
    for role, best_first, count in (
        (REPRESENTATIVE, [~pl.col("described"), -pl.col("centrality")], max(1, per_role)),
        (MOST_CONFIDENT, [-pl.col("confidence")], per_role),
        (LEAST_CONFIDENT, [pl.col("confidence")], per_role),
    ):
        ranked = left.sort("cluster", *best_first, "row").with_columns(rank=pl.int_range(pl.len()).over("cluster"))
        found = ranked.filter(pl.col("rank") < count).head(MOST)
        chosen.append(found.with_columns(role=pl.lit(role)))
        left = left.join(found, on="row", how="anti")
    room = min(MOST - sum(len(found) for found in chosen), len(left))
    # Evenly spaced places of a shuffle that is sorted by cluster: each cluster's share, to within one image.
    shuffled = left[np.random.default_rng(_SEED).permutation(len(left))].sort("cluster", maintain_order=True)
    places = ((np.arange(room) + 0.5) * len(left) / max(1, room)).astype(np.int64)
    drawn = shuffled[places].with_columns(rank=pl.int_range(pl.len()).over("cluster"), role=pl.lit(SAMPLE))
    everything = pl.concat([*chosen, drawn], how="diagonal_relaxed").with_row_index("order")
    return everything.sort("cluster", "order").select("row", "cluster", "role")


def place(X: NDArray[Any]) -> NDArray[np.float32]:
    """Rows (n, d) as points (n, 2) within the unit square: neighbours stay together, by t-SNE on principal components.

    Equal rows on the same machine give equal points.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.ascontiguousarray(X, np.float32)
    components = min(_COMPONENTS, *rows.shape)
    if components < 2 or not np.ptp(rows, axis=0).any():  # of equal rows t-SNE would scale a spread of nothing, and crash
        return np.full((len(rows), 2), 0.5, np.float32)
    reduced = PCA(components, random_state=_SEED).fit_transform(rows)
    if len(rows) > 10:
        reduced = TSNE(perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3), random_state=_SEED, init="pca").fit_transform(reduced)
    points = reduced[:, :2]
    low, span = points.min(0), np.ptp(points, axis=0).max() or 1.0
    placed: NDArray[np.float32] = ((points - low) / span).astype(np.float32)
    return placed
