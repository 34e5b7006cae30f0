"""Chooses the images that a report shows, and places them on its map."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import row_blocks, unit_rows
from gsec_core.devices import native_threads

MOST = 5_000
"""Largest number of images in a report."""

PER_ROLE = 6
"""Largest number of images of each role in a cluster's gallery."""

REPRESENTATIVE, MOST_CONFIDENT, LEAST_CONFIDENT, SAMPLE, NEW = "representative", "most confident", "least confident", "sample", "new"
"""Why an image is shown: it was described or is near its cluster's centre; its confidence is among the highest or lowest of the cluster; it was drawn for the
map; or it is newer than the model that labels it."""

_SEED = 0
_COMPONENTS = 50
_PERPLEXITY = 30
_LANDMARKS = 10
_ONE_ISLAND = 0.05
"""Landmarks farther than this on the map from the most similar landmark have no weight, so that no image is placed between two islands."""
_LEAST_SPREAD, _MOST_SPREAD = 0.001, 0.01


def choose(
    labels: NDArray[np.integer[Any]],
    confidence: NDArray[np.float32],
    centrality: NDArray[np.float32],
    described: NDArray[np.bool_],
    distinct: NDArray[np.bool_],
    n_clusters: int,
) -> pl.DataFrame:
    """Choose at most `MOST` rows to show. Returns columns row, cluster and role, in the order of galleries.

    The arrays are (n,): cluster, its confidence, cosine to its centre, whether the image was described, and whether it is the
    first image with its bytes; other copies are not shown. Described images come first as representatives. Every cluster has up to
    `PER_ROLE` images of each role, fewer if there are many clusters; the remaining room is filled by a sample, with a fixed seed,
    in proportion to the remaining sizes of the clusters.
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
    # Evenly spaced rows of a shuffle sorted by cluster: they give each cluster its share, to within one image.
    shuffled = left[np.random.default_rng(_SEED).permutation(len(left))].sort("cluster", maintain_order=True)
    places = ((np.arange(room) + 0.5) * len(left) / max(1, room)).astype(np.int64)
    drawn = shuffled[places].with_columns(rank=pl.int_range(pl.len()).over("cluster"), role=pl.lit(SAMPLE))
    everything = pl.concat([*chosen, drawn], how="diagonal_relaxed").with_row_index("order")
    return everything.sort("cluster", "order").select("row", "cluster", "role")


def place(X: NDArray[Any], n_threads: int = 0) -> NDArray[np.float32]:
    """Place rows (n, d) as points (n, 2) in the unit square by t-SNE on principal components, which keeps neighbours together.

    Equal rows and thread counts (0 = one a core) on the same machine give equal points.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.ascontiguousarray(X, np.float32)
    components = min(_COMPONENTS, *rows.shape)
    if components < 2 or not np.ptp(rows, axis=0).any():  # t-SNE would crash on equal rows, whose spread is zero
        return np.full((len(rows), 2), 0.5, np.float32)
    with native_threads(n_threads):
        reduced = PCA(components, random_state=_SEED).fit_transform(rows)
        if len(rows) > 10:
            reduced = TSNE(perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3), random_state=_SEED, init="pca").fit_transform(reduced)
    points = reduced[:, :2]
    low, span = points.min(0), np.ptp(points, axis=0).max() or 1.0
    placed: NDArray[np.float32] = ((points - low) / span).astype(np.float32)
    return placed


def beside(X: NDArray[Any], landmarks: NDArray[np.float32], points: NDArray[np.float32], noise: NDArray[np.float64]) -> NDArray[np.float32]:
    """Place rows (n, d) as points (n, 2) in the unit square, each beside the most similar landmarks.

    ``landmarks`` (m, d) are unit rows placed at ``points`` (m, 2). A point is the mean of the most similar landmarks' points, with the weights of modified
    Shepard interpolation (Franke, Scattered Data Interpolation, 1982) of the chords between unit rows. Added to it is ``noise`` (n, 2), standard normal,
    times the mean distance of the most similar landmark to its neighbours on the map; with less noise, many points would clump around landmarks.
    """
    import faiss
    from scipy.spatial import KDTree

    count = min(_LANDMARKS, len(points))
    between = KDTree(points).query(points, k=np.arange(2, 5))[0]
    spread = np.where(np.isfinite(between), between, _MOST_SPREAD).mean(1).clip(_LEAST_SPREAD, _MOST_SPREAD)
    placed = np.empty((len(X), 2), np.float32)
    for rows in row_blocks(len(X)):
        similar, nearest = faiss.knn(unit_rows(X[rows]), landmarks, count, metric=faiss.METRIC_INNER_PRODUCT)
        chord = np.sqrt(np.maximum(2 - 2 * similar, 1e-6))
        near = points[nearest]
        weights = np.square(chord[:, -1:] * 1.001 / chord - 1) * (np.linalg.norm(near - near[:, :1], axis=2) <= _ONE_ISLAND)
        weights[:, 0] += 1e-6
        mean = (near * weights[:, :, None]).sum(1) / weights.sum(1)[:, None]
        placed[rows] = mean + noise[rows] * spread[nearest[:, 0], None]
    reflected: NDArray[np.float32] = 1 - np.abs(1 - np.abs(placed))  # reflected at the borders: clipping alone would put them all on the border
    return reflected.clip(0, 1)


def noise_of(ids: Sequence[bytes]) -> NDArray[np.float64]:
    """Standard normal values (n, 2), fixed for each image: derived from its id (16 bytes, a hash)."""
    from scipy.special import ndtri

    halves = np.frombuffer(b"".join(ids), np.uint64).reshape(-1, 2)
    # 52 bits plus one half, so that no value becomes 0 or 1.
    normal: NDArray[np.float64] = ndtri(((halves >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52)
    return normal.clip(-2.5, 2.5)
