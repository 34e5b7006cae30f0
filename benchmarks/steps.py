"""Quality of methods that train for the epochs of their papers, with the steps of a default fit and with all epochs of a large collection.

    python -m benchmarks.steps --rows 200000 --clusters 100 --methods tac sic

The collection is made up: unit vectors of 256 dimensions, in clusters of three modes each, of unequal size; the second half of a row is the text of its
cluster, which is wrong for 30% of the modes. A default fit takes at most the steps that the paper takes on its largest set. Printed for each number of
steps: mean and standard deviation over the members of NMI with the planted clusters, NMI of their consensus, and seconds of the fit.
"""

import argparse
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score
from sklearn.preprocessing import normalize

from gsec_core import SEIC, SIC, TAC, TEMI
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.methods.plan import CIFAR_ROWS

DIMENSIONS, MODES, NOISE, WRONG = 256, 3, 0.085, 0.3


METHODS: dict[str, type[TAC] | type[SIC] | type[SEIC] | type[TEMI]] = {"tac": TAC, "sic": SIC, "seic": SEIC, "temi": TEMI}


def planted(rows: int, clusters: int) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float32], NDArray[np.int64]]:
    """Images and texts (rows, d), nouns (words, d), and clusters (rows,)."""
    random = np.random.default_rng(0)
    sizes = random.dirichlet(np.full(clusters * MODES, 4.0))
    mode = random.choice(clusters * MODES, rows, p=sizes)
    modes, themes = (normalize(random.standard_normal((count, DIMENSIONS))) for count in (clusters * MODES, clusters))
    of_mode = np.arange(clusters * MODES) // MODES
    said = np.where(random.random(len(of_mode)) < WRONG, random.integers(clusters, size=len(of_mode)), of_mode)

    def around(centres: NDArray[np.float64]) -> NDArray[np.float16]:
        return np.asarray(normalize(centres + NOISE * random.standard_normal(centres.shape)), np.float16)

    nouns = around(np.repeat(themes, 20, 0)).astype(np.float32)
    return around(modes[mode]), around(themes[said[mode]]), nouns, of_mode[mode]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=["tac", "sic"], choices=list(METHODS))
    parser.add_argument("--members", type=int, default=5, help="at least two, for the deviation")
    options = parser.parse_args()
    X, S, nouns, truth = planted(options.rows, options.clusters)
    found = SphericalKMeans(options.clusters, n_init=10, random_state=0).fit(X).labels_
    print(f"k-means, ten starts: NMI {100 * normalized_mutual_info_score(truth, found):.2f}\n")
    print("| method | steps | NMI of a member | NMI of the consensus | seconds |\n| --- | --- | --- | --- | --- |")
    for name in options.methods:
        Estimator = METHODS[name]
        texts: dict[str, Any] = {"nouns": nouns, "joint": S} if Estimator.NEEDS_NOUNS else {"text": S}
        plan = Estimator(options.clusters).plan()
        usual, one_epoch = plan.steps(options.rows), options.rows // plan.batch(options.rows)
        epochs = usual // (CIFAR_ROWS // plan.batch(options.rows))
        for steps in (usual, epochs * one_epoch):
            started = time.monotonic()
            fitted = Estimator(options.clusters, n_members=options.members, max_steps=steps).fit(X, **texts)
            seconds = time.monotonic() - started
            each = [100 * normalized_mutual_info_score(truth, labels) for labels in fitted.member_labels_]
            whole = 100 * normalized_mutual_info_score(truth, fitted.labels_)
            print(f"| {name} | {steps:,} | {np.mean(each):.2f} ± {np.std(each, ddof=1):.2f} | {whole:.2f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
