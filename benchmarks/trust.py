"""Whether the measures that a run gives without labels can be trusted: confidence, stability, the comparison with k-means, outliers.

    python -m benchmarks.trust --data FOLDER [--work FOLDER] [--seeds 3]

Sets as in `benchmarks.quality`, and CIFAR-10 with simulated captions that are mixed up and have weight .5, which ruins a clustering. Printed for each,
as means over seeds:

- share of the images to which the distilled head gives the label of the consensus;
- error of confidence against agreement: mean difference in fifteen equal parts of the images, before and after calibration;
- purity of consensus and k-means, and the difference in ACC, whose sign the difference in purity should have;
- share of the most frequent class in the flagged clusters, and in the others;
- area under the ROC curve for finding ten images of another set among all images of a set, by `outlier` and by 1 - confidence.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.sets import SOURCES, Set, all_wrong
from gsec_core import GSEC
from gsec_core.clustering.centres import Centres
from gsec_core.clustering.metrics import accuracy, purity
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.results.quality import STABLE
from gsec_core.text.fusion import MOST_WEIGHT

PARTS = 15
STRANGERS = 10


@dataclass(frozen=True)
class Found:
    """Figures of one set and seed."""

    head: float
    """Share of images to which the head gives the label of the consensus."""
    raw_error: float
    error: float
    ours: float
    """Purity of the consensus."""
    theirs: float
    """Purity of k-means."""
    gain: float
    """ACC of the consensus minus that of k-means."""
    flagged: list[float]
    """Share of the most frequent class in each cluster with low stability."""
    others: list[float]
    """Share of the most frequent class in each other cluster."""


def measure(images: Set, text: NDArray[Any], weight: float, deserved: float, seed: int) -> Found:
    fitted = GSEC(images.n_clusters, text_weight=weight, random_state=seed).fit(images.X, text=text)
    kmeans = SphericalKMeans(images.n_clusters, random_state=seed).fit(images.X).labels_
    plan = fitted.plan()
    features = plan.features([images.X, text], fitted.halves_, weight)
    neighbors = plan.neighbors(features)
    raw = plan.consensus(features, neighbors, replace(fitted.ensemble_, temperature=1.0)).posteriors.best(slice(None))[1]
    ours, theirs = (np.average([purity(labels, half)[1] for half in neighbors.halves], weights=[1 - deserved, deserved]) for labels in (fitted.labels_, kmeans))
    stability = np.mean([overlaps(fitted.labels_, labels, images.n_clusters) for labels in fitted.member_labels_], axis=0)
    classes = np.unique(images.truth, return_inverse=True)[1]
    shares = {cluster: np.bincount(classes[fitted.labels_ == cluster]).max() / (fitted.labels_ == cluster).sum() for cluster in np.unique(fitted.labels_)}
    return Found(
        head=float((fitted.predict(images.X, text) == fitted.labels_).mean()),
        raw_error=calibration_error(raw, fitted.agreement_),
        error=calibration_error(fitted.confidence_, fitted.agreement_),
        ours=float(ours),
        theirs=float(theirs),
        gain=100 * (accuracy(images.truth, fitted.labels_) - accuracy(images.truth, kmeans)),
        flagged=[share for cluster, share in shares.items() if stability[cluster] < STABLE],
        others=[share for cluster, share in shares.items() if stability[cluster] >= STABLE],
    )


def overlaps(labels: NDArray[np.int32], other: NDArray[np.int32], n_clusters: int) -> NDArray[np.float64]:
    """Overlap (Jaccard) of each cluster with the cluster of the same number in the other labelling."""
    found = [((labels == cluster) & (other == cluster)).sum() / max(1, ((labels == cluster) | (other == cluster)).sum()) for cluster in range(n_clusters)]
    return np.array(found)


def calibration_error(confidence: NDArray[np.float32], agreement: NDArray[np.float32]) -> float:
    parts = np.array_split(np.argsort(confidence), PARTS)
    return float(np.mean([abs(confidence[part].mean() - agreement[part].mean()) for part in parts]))


def variants(images: Set) -> Iterator[tuple[str, NDArray[Any], float, float]]:
    """Variants of a set: name, text half, the weight that it gets, and the weight that it deserves."""
    text, weight = images.counterparts()
    yield images.name, text, weight, weight
    if "0.5" in images.name:
        ruined = all_wrong(images)
        text, deserved = ruined.counterparts()
        yield "CIFAR-10, captions mixed up, weight .5", text, MOST_WEIGHT, deserved


def strangers(one: Set, other: Set, seed: int) -> tuple[float, float]:
    """Area under the ROC curve for finding ten images of another set, by `outlier` and by 1 - confidence."""
    rows = np.random.default_rng(seed).choice(len(other.X), STRANGERS, replace=False)
    X, joint = np.concatenate([one.X, other.X[rows]]), np.concatenate([one.joint, other.joint[rows]])
    strange = np.arange(len(X)) >= len(one.X)
    fitted = GSEC(one.n_clusters, text_weight=one.counterparts()[1], random_state=seed).fit(X, text=joint)
    outlier = Centres.of(X, fitted.labels_, one.n_clusters).outliers(X, fitted.labels_)
    return float(roc_auc_score(strange, outlier)), float(roc_auc_score(strange, 1 - fitted.confidence_))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="a folder that keeps the embeddings for a next time")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"encoder {options.encoder}, {options.seeds} seeds\n")
    print("| set | head | error raw | error | purity | of k-means | ACC gained | flagged clusters |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
    plain: list[Set] = []
    flagged: list[float] = []
    others: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        for source in SOURCES.values():
            sets = list(source(options.data, options.work or Path(directory), options.encoder))
            plain.append(sets[0])
            for images in sets:
                for name, text, weight, deserved in variants(images):
                    found = [measure(images, text, weight, deserved, seed) for seed in range(options.seeds)]
                    cells = [f"{np.mean([getattr(one, field) for one in found]):.3f}" for field in ("head", "raw_error", "error", "ours", "theirs")]
                    low = sum(len(one.flagged) for one in found)
                    gain = np.mean([one.gain for one in found])
                    print(f"| {name} | {' | '.join(cells)} | {gain:+.1f} | {low} of {options.seeds * images.n_clusters} |", flush=True)
                    flagged += [share for one in found for share in one.flagged]
                    others += [share for one in found for share in one.others]
    print(f"\nMost frequent class: {np.mean(flagged):.1%} of {len(flagged)} flagged clusters, {np.mean(others):.1%} of {len(others)} others.")
    print(f"\n| {STRANGERS} images of | among | `outlier` | 1 - confidence |\n| --- | --- | --- | --- |")
    for one in plain:
        for other in plain:
            if other is not one:
                areas = np.mean([strangers(one, other, seed) for seed in range(options.seeds)], axis=0)
                print(f"| {_short(other)} | {_short(one)} | {areas[0]:.2f} | {areas[1]:.2f} |", flush=True)


def _short(images: Set) -> str:
    return images.name.partition(",")[0]


if __name__ == "__main__":
    main()
