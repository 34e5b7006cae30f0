"""Seconds and memory of placing many images on the map, compared with k-means of them.

    python -m benchmarks.map --rows 1000000 --dim 512 --clusters 1000

Random vectors around planted centres. k-means is one start, as in stage `baseline`. The landmarks are 5,000 rows at random positions, because
the time of their t-SNE does not depend on the number of images. Memory is the peak of anonymous memory, RssAnon, above that in use before.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from benchmarks.memory import anonymous_mib, peak
from gsec_core.clustering.kmeans import unit_rows
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.devices import native_threads
from gsec_core.report import layout

BLOCK = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    centres = random.standard_normal((options.clusters, options.dim), np.float32)
    X = np.empty((options.rows, options.dim), np.float16)
    for start in range(0, len(X), BLOCK):
        size = len(X[start : start + BLOCK])
        X[start : start + size] = unit_rows(centres[random.integers(options.clusters, size=size)] + random.standard_normal((size, options.dim), np.float32))
    rows = np.sort(random.choice(len(X), min(layout.MOST, len(X)), replace=False))
    points = random.random((len(rows), 2), np.float32)

    def place() -> None:
        landmarks = unit_rows(X[rows])
        with native_threads(options.threads):
            for start in range(0, len(X), BLOCK):
                block = X[start : start + BLOCK]
                layout.beside(block, landmarks, points, layout.noise_of([random.bytes(16) for _ in block]))

    estimator = SphericalKMeans(options.clusters, n_init=1, random_state=0, n_threads=options.threads)
    kmeans, of_kmeans = _measured(lambda: estimator.fit(X))
    placing, of_map = _measured(place)
    print(
        json.dumps(
            {**vars(options), "kmeans_seconds": kmeans, "map_seconds": placing, "ratio": round(placing / kmeans, 2), "kmeans_mib": of_kmeans, "map_mib": of_map}
        )
    )


def _measured(work: Callable[[], object]) -> tuple[float, float]:
    before, started = anonymous_mib(), time.perf_counter()
    with peak() as highest:
        work()
    return round(time.perf_counter() - started, 1), round(highest.mib - before)


if __name__ == "__main__":
    main()
