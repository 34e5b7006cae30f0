"""Clusters of few images each: the default preset beside k-means, and beside itself with as many neighbours as in large clusters.

    python -m benchmarks.small_clusters --data FOLDER [--images 1200] [--sizes 8 15 30 60] [--seeds 5] [--encoder lite]

FOLDER holds `cifar10-test.parquet`. A cluster is a number of views of one image: crops, some of them mirrored, brighter or darker. Printed are ACC, NMI and
ARI, mean and deviation over seeds. k-means is the best of ten starts. Labels only score.
"""

import argparse
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from flows.demo import vary
from gsec_core import GSEC
from gsec_core.clustering.metrics import score
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.encoders import load_encoder
from gsec_core.encoders.base import Encoder
from gsec_core.methods.gsec.estimator import GSECPlan

SIDE = 256


class ManyNeighbors(GSEC):
    """GSEC whose neighbours are as many as if clusters were large."""

    def plan(self) -> GSECPlan:
        plan = super().plan()
        return replace(plan, preset=replace(plan.preset, cluster_rows_per_neighbor=0))


def views(images: list[bytes], size: int, encoder: Encoder) -> NDArray[np.float32]:
    """Embeddings of ``size`` views of each image, one image after the other, (images * size, dim)."""
    random, rows = np.random.default_rng(0), []
    for image in images:
        large = Image.open(io.BytesIO(image)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        rows.append(encoder.encode_images(np.stack([encoder.preprocess(vary(large, random)) for _ in range(size)])).image)
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 15, 30, 60])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--encoder", default="lite")
    options = parser.parse_args()
    encoder = load_encoder(options.encoder, precision="fp32", device="auto", threads=0)
    table = pq.read_table(options.data / "cifar10-test.parquet", columns=["image"])
    print(f"encoder {options.encoder}, {options.seeds} seeds\n")
    print("| images per cluster | clusters | | neighbours | ACC | NMI | ARI |\n| --- | --- | --- | --- | --- | --- | --- |")
    for size in options.sizes:
        clusters = options.images // size
        X = views([row["bytes"] for row in table["image"].slice(0, clusters).to_pylist()], size, encoder)
        truth = np.arange(clusters).repeat(size)
        kinds: dict[str, Callable[[int], GSEC | SphericalKMeans]] = {
            "k-means": lambda seed, clusters=clusters: SphericalKMeans(clusters, random_state=seed),
            "gsec, many neighbours": lambda seed, clusters=clusters: ManyNeighbors(clusters, random_state=seed),
            "gsec": lambda seed, clusters=clusters: GSEC(clusters, random_state=seed),
        }
        for name, made in kinds.items():
            scores = 100 * np.array([score(truth, made(seed).fit(X).labels_) for seed in range(options.seeds)])
            one = made(0)
            count = one.plan().neighbor_count(len(X)) if isinstance(one, GSEC) else ""
            cells = [f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in zip(scores.mean(0), scores.std(0, ddof=1), strict=True)]
            print(f"| {size} | {clusters} | {name} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
