"""Whether a cut of the tree of clusters finds known families: animals and vehicles of CIFAR-10, and its classes.

    python -m benchmarks.hierarchy --data FOLDER

k-means makes more clusters than there are classes, and three more starts of it are the other members of an ensemble. The tree is made from the centres
as they are, from the centres relative to their mean, from co-association alone, and from both as in gsec. Prints the purity of the groups: the share of
images that are of the most frequent kind in their group, mean and standard deviation over the seeds.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.systems import kept
from gsec_core.clustering import hierarchy
from gsec_core.clustering.kmeans import unit_rows
from gsec_core.clustering.spherical_kmeans import SphericalKMeans

MEMBERS = 4
VEHICLES = (0, 1, 8, 9)
"""The classes of CIFAR-10 that are vehicles."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="keeps the embeddings between calls")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--clusters", type=int, nargs="+", default=[20, 40])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        case, truth = kept("cifar10", options.data, options.work or Path(folder), options.encoder, "imagenet")[0]
    families = {"animals and vehicles": np.isin(truth, VEHICLES).astype(int), "classes": truth}
    print("| clusters | tree of | " + " | ".join(families) + " |\n| --- | --- |" + " --- |" * len(families))
    for clusters in options.clusters:
        found: dict[str, list[list[float]]] = {}
        for seed in range(options.seeds):
            members = np.stack([SphericalKMeans(clusters, n_init=1, random_state=MEMBERS * seed + member).fit(case.X).labels_ for member in range(MEMBERS)], 1)
            labels = members[:, 0]
            for name, merges in trees(np.asarray(case.X, np.float32), labels, members, clusters).items():
                found.setdefault(name, []).append([purity(labels, merges, clusters, kinds) for kinds in families.values()])
        for name, shares in found.items():
            cells = (f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in zip(np.mean(shares, 0), np.std(shares, 0, ddof=1), strict=True))
            print(f"| {clusters} | {name} | {' | '.join(cells)} |", flush=True)


def trees(X: NDArray[np.float32], labels: NDArray[np.int32], members: NDArray[np.int32], clusters: int) -> dict[str, list[tuple[int, int]]]:
    """The merges of each kind of tree."""
    centres = unit_rows(np.stack([X[labels == cluster].mean(0) for cluster in range(clusters)]))
    sizes = np.bincount(labels, minlength=clusters)
    together = hierarchy.co_association(labels, members, clusters)
    around = hierarchy.around_mean(centres, sizes)
    distances = {
        "centres as they are": 1 - centres @ centres.T,
        "centres from their mean": 1 - around @ around.T,
        "co-association": 1 - together,
        "both": hierarchy.distances(centres, together, sizes),
    }
    return {name: [merge[:2] for merge in hierarchy.joined(distance)] for name, distance in distances.items()}


def purity(labels: NDArray[np.int32], merges: list[tuple[int, int]], clusters: int, kinds: NDArray[np.int64]) -> float:
    """Share of images of the most frequent kind in their group, at a cut into as many groups as there are kinds."""
    groups = hierarchy.cut(merges, clusters, len(np.unique(kinds))).values()
    return sum(np.bincount(kinds[np.isin(labels, inside)]).max() for inside in groups) / len(kinds)


if __name__ == "__main__":
    main()
