"""Clusters of very unequal sizes: k-means beside the default preset, with and without images for clusters that the consensus leaves empty.

    python -m benchmarks.skewed [--sizes 2000 1000 300 100 10] [--distances 4 8 16] [--seeds 5]

Clusters are normal around centres at a given distance from the origin in 64 dimensions, with deviation 1. Data and fit have the same seed. Printed are ACC,
NMI and ARI, mean and deviation over seeds, and the number of empty clusters in all fits. k-means is the best of ten starts. Labels only score.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsec_core import GSEC
from gsec_core.clustering.ensemble import Consensus
from gsec_core.clustering.metrics import score
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.methods.gsec.estimator import GSECPlan

DIMENSIONS = 64


@dataclass(frozen=True, kw_only=True)
class LeavesEmpty(GSECPlan):
    """Clusters that the consensus leaves empty stay so."""

    def consensus(self, *args: Any, **options: Any) -> Consensus:
        return super().consensus(*args, **{**options, "from_scratch": False})


def planted(sizes: Sequence[int], distance: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows (n, DIMENSIONS) of clusters with the given sizes, in random order, and the cluster of each."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((len(sizes), DIMENSIONS))
    centres *= distance / np.linalg.norm(centres, axis=1, keepdims=True)
    truth = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return (centres[truth] + random.standard_normal((len(truth), DIMENSIONS))).astype(np.float32), truth


def fits(X: NDArray[np.float32], clusters: int, seed: int) -> dict[str, NDArray[np.int32]]:
    """Labels by each kind of fit; both consensus are of the same members."""
    plan = GSEC(clusters, random_state=seed).plan()
    features = plan.features([X], plan.halves([X]), 0.5)
    neighbors = plan.neighbors(features)
    members = plan.wanted(plan.trained(features, neighbors, plan.blocks))
    found = {"k-means": SphericalKMeans(clusters, random_state=seed).fit(X).labels_}
    leaves = LeavesEmpty(**{field.name: getattr(plan, field.name) for field in fields(plan)})
    for name, how in (("gsec, empty clusters stay so", leaves), ("gsec", plan)):
        found[name] = how.align(features, neighbors, members)[1].posteriors.best(slice(None))[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 1000, 300, 100, 10])
    parser.add_argument("--distances", type=float, nargs="+", default=[4, 8, 16])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    clusters = len(options.sizes)
    print(f"sizes {options.sizes}, {options.seeds} seeds\n")
    print("| distance | | empty clusters | ACC | NMI | ARI |\n| --- | --- | --- | --- | --- | --- |")
    for distance in options.distances:
        sets = [planted(options.sizes, distance, seed) for seed in range(options.seeds)]
        labels = [fits(X, clusters, seed) for seed, (X, _) in enumerate(sets)]
        for name in labels[0]:
            scores = 100 * np.array([score(truth, found[name]) for (_, truth), found in zip(sets, labels, strict=True)])
            empty = sum(clusters - len(np.unique(found[name])) for found in labels)
            cells = [f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in zip(scores.mean(0), scores.std(0, ddof=1), strict=True)]
            print(f"| {distance:g} | {name} | {empty} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
