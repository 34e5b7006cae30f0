"""How many images change their cluster from night to night, which is what `publish.max_moved` is compared with.

    python -m benchmarks.nights --data FOLDER [--work FOLDER] [--sets cifar10 stamps] [--only WORDS] [--seeds 5]

Sets as in `benchmarks.quality`. For each seed a random half of the images is clustered, and then the half with more images; clusters
keep their keys as in stage `lineage`. Printed: the share of the half's images that are under another key afterwards, in %, mean and
standard deviation over seeds, and the largest. Labels play no part but in the row in which images of one class are kept back, to come
all at once. Whatever a model said of images is of all of them, so that descriptions do not change from night to night.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.sets import SOURCES, Set
from gsec_core import GSEC
from gsec_core.clustering import lineage

GROWTH = (0.01, 0.05, 0.2, 1.0)
"""New images, as a share of those that are there."""

Rows = NDArray[np.int64]


def nights(images: Set, seed: int) -> Iterator[tuple[str, float]]:
    """What happens, and the share that moves."""
    text, weight = images.counterparts()

    def labels(rows: Rows, random_state: int = seed) -> NDArray[np.int32]:
        return GSEC(images.n_clusters, text_weight=weight, random_state=random_state).fit(images.X[rows], text=text[rows]).labels_

    random = np.random.default_rng(seed)
    order = random.permutation(len(images.X))
    half = len(order) // 2
    there = np.sort(order[:half])
    before = labels(there)
    for share in GROWTH:
        now = np.sort(order[: half + max(1, round(share * half))])
        yield f"{share:.0%} more images", moved(there, before, now, labels(now))
    yield "nothing, but another seed", moved(there, before, there, labels(there, seed + 1000))
    kept_back = images.truth[there] == random.choice(np.unique(images.truth))
    without = there[~kept_back]
    yield "a class that was kept back", moved(without, labels(without), there, before)


def moved(there: Rows, before: NDArray[np.int32], now: Rows, after: NDArray[np.int32]) -> float:
    """Share of the images that were ``there`` that are under another key ``now``."""
    clusters = int(before.max()) + 1
    pairs = pl.DataFrame({"previous": before, "cluster": after[np.searchsorted(now, there)]})
    shared = pairs.group_by("previous", "cluster").agg(pl.len().cast(pl.Int64).alias("images")).sort("cluster", "previous")
    found = lineage.inherit(shared, int(after.max()) + 1, np.arange(clusters, dtype=np.int32), clusters)
    return float(found.moved.sum() / found.common.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["cifar10", "stamps"], choices=SOURCES)
    parser.add_argument("--only", help="sets whose name holds this")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--work", type=Path, help="a folder that keeps the embeddings for a next time")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    print(f"Encoder {options.encoder}, {options.seeds} seeds\n\n| set | what comes | moved | largest |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        for source in options.sets:
            for images in SOURCES[source](options.data, options.work or Path(directory), options.encoder):
                if options.only and options.only not in images.name:
                    continue
                found: dict[str, list[float]] = {}
                for seed in range(options.seeds):
                    for what, share in nights(images, seed):
                        found.setdefault(what, []).append(100 * share)
                for what, shares in found.items():
                    print(f"| {images.name} | {what} | {np.mean(shares):.1f} ± {np.std(shares, ddof=1):.1f} | {max(shares):.1f} |", flush=True)


if __name__ == "__main__":
    main()
