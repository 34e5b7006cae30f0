"""Scores of labellings against labels that the methods do not see: k-means in four forms, one member, the consensus, and the published method.

    python -m benchmarks.quality --data FOLDER [--sets cifar10 stamps digits fashion] [--seeds 10] [--published-steps 300]

FOLDER holds `cifar10-test.parquet` and `stamps.parquet`; digits are scikit-learn's, fashion is Debian's package. Prints a
Markdown table for each set: mean and standard deviation over seeds of ACC, NMI and ARI, bias and variance (`metrics.bias_variance`)
over the seeds' runs, seconds a run, and the peak of anonymous memory above that before the run; then the difference between the
consensus and the best k-means. `--json FILE` keeps the single values.

- `k-means, image`, `equal`, `weighted`: ten starts, on the features of the default preset, with the text half weighted 0, as
  much as the image half, and as in `default`. `k-means, spherical`: a run's own baseline, on the embeddings as they are.
- `member`: one member of `default`; `consensus`: the consensus of all its members.
- `published`: last iterate of the published training. `published, by labels`: the state of the same training with the best ACC, checked
  every ten steps, which is what the published code reports (it checks every 50 of 6,000 steps). Both over five seeds at most.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.memory import peak
from benchmarks.sets import SOURCES, TAU, Set
from gsec_core import GSEC
from gsec_core.clustering.features import Features
from gsec_core.clustering.kmeans import lloyd, sample_rows, sample_size
from gsec_core.clustering.metrics import accuracy, bias_variance, score
from gsec_core.clustering.spherical_kmeans import SphericalKMeans
from gsec_core.methods.gsec import bilevel
from gsec_core.text.fusion import softmax_counterparts

PUBLISHED_SEEDS = 5
"""Maximal number of seeds of the published method, which takes longest."""

Labels = NDArray[np.int32]
KMEANS = ("k-means, image", "k-means, equal", "k-means, weighted", "k-means, spherical")
MEMBER, CONSENSUS, PUBLISHED, LEAK = "member", "consensus", "published", "published, by labels"


def kmeans(images: Set, seed: int) -> Iterator[tuple[str, Callable[[], Labels]]]:
    """The four forms of k-means: names, and functions that return labels."""
    plan = GSEC(images.n_clusters).plan()
    text, weight = images.counterparts()
    matrices = [images.X, text]
    halves = plan.halves(matrices)
    for name, share in zip(KMEANS, (0.0, 0.5, weight), strict=False):
        features = plan.features(matrices, halves, share)
        yield name, lambda features=features: _lloyd(features, images.n_clusters, seed)  # type: ignore[misc]
    yield KMEANS[3], lambda: SphericalKMeans(images.n_clusters, random_state=seed).fit(images.X).labels_


def _lloyd(features: Features, n_clusters: int, seed: int) -> Labels:
    rows = features.rows(slice(None)).numpy()
    centres, _ = lloyd(rows[sample_rows(len(rows), sample_size(n_clusters), seed)], n_clusters, n_init=10, max_iter=50, random_state=seed)
    labels: Labels = (2 * rows @ centres.T - np.square(centres).sum(1)).argmax(1).astype(np.int32)
    return labels


def default(images: Set, seed: int) -> GSEC:
    text, weight = images.counterparts()
    return GSEC(images.n_clusters, text_weight=weight, random_state=seed).fit(images.X, text=text)


def published(images: Set, seed: int, steps: int) -> tuple[Labels, Labels]:
    """The labels of the last step, and those of the step with the best ACC, which needs the true labels."""
    if images.described is None:
        text = images.joint
    else:
        T = images.described.T
        text = np.concatenate(list(softmax_counterparts(images.joint, T, T, TAU)))
    best: tuple[float, Labels | None] = (-1.0, None)
    estimator = GSEC(images.n_clusters, preset="published", max_steps=steps, tol=0, random_state=seed)
    plan = estimator.plan()
    features = plan.features([images.X, text], plan.halves([images.X, text]), 0.5)
    z, look = features.rows(slice(None)), bilevel._Watch.look

    def leaking(watch: Any, step: int, encoder: Any, losses: Any) -> bool:
        nonlocal best
        with torch.no_grad():
            labels = encoder(z)[:, 0].argmax(1).int().numpy()
        best = max(best, (accuracy(images.truth, labels), labels), key=lambda found: found[0])
        return look(watch, step, encoder, losses)

    bilevel._Watch.look = leaking  # type: ignore[method-assign]
    try:
        last = estimator.fit(images.X, text=text).labels_
    finally:
        bilevel._Watch.look = look  # type: ignore[method-assign]
    assert best[1] is not None
    return last, best[1]


class Table:
    """Results of the methods on one set."""

    def __init__(self, images: Set) -> None:
        self.images = images
        self.labels: dict[str, list[Labels]] = {}
        self.members: list[float] = []
        """ACC of every member of every seed."""
        self._seconds: dict[str, list[float]] = {}
        self._mib: dict[str, float] = {}

    def measure(self, names: Sequence[str], run: Callable[[], Sequence[Labels]]) -> None:
        """Measure one run, which returns the labellings called ``names``."""
        with peak() as memory:
            before, started = memory.mib, time.monotonic()
            found = run()
            seconds = time.monotonic() - started
        for name, labels in zip(names, found, strict=True):
            self.labels.setdefault(name, []).append(labels)
            self._seconds.setdefault(name, []).append(seconds)
            self._mib[name] = max(self._mib.get(name, 0), memory.mib - before)

    def scores(self, name: str) -> NDArray[np.float64]:
        """ACC, NMI and ARI of a method in %, (seeds, 3)."""
        return 100 * np.array([score(self.images.truth, labels) for labels in self.labels[name]])

    def row(self, name: str) -> dict[str, Any]:
        """The figures of a method that are printed and kept."""
        found = bias_variance(self.labels[name], self.images.truth)
        return {
            "scores": self.scores(name).round(3).tolist(),
            "bias": 100 * found.bias,
            "variance": 100 * found.variance,
            "seconds": float(np.mean(self._seconds[name])),
            "mib": self._mib[name],
        }

    def markdown(self, encoder: str) -> str:
        lines = [f"**{self.images.name}**: {len(self.images.X):,} images, {self.images.n_clusters} classes, encoder {encoder}", ""]
        lines += ["| method | ACC | NMI | ARI | bias | variance | s | MiB |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
        for name in self.labels:
            row = self.row(name)
            cells = [f"{column.mean():.1f} ± {_deviation(column):.1f}" for column in np.array(row["scores"]).T]
            lines.append(f"| {name} | {' | '.join(cells)} | {row['bias']:.1f} | {row['variance']:.1f} | {row['seconds']:.1f} | {row['mib']:.0f} |")
        return "\n".join(lines)

    def verdict(self) -> str:
        """A row with the consensus minus the best k-means by each score, with standard errors; and the deviations of ACC of consensus and members."""
        ours = self.scores(CONSENSUS)
        cells = []
        for column in range(3):
            rival = max((self.scores(name)[:, column] for name in KMEANS), key=lambda found: float(found.mean()))
            error = np.hypot(_deviation(rival), _deviation(ours[:, column])) / np.sqrt(len(ours))
            cells.append(f"{ours[:, column].mean() - rival.mean():+.1f} ± {error:.1f}")
        return f"| {self.images.name} | {' | '.join(cells)} | {_deviation(ours[:, 0]):.2f} | {np.std(self.members):.2f} | {self.ratio():.2f} |"

    def ratio(self) -> float:
        """Standard deviation of the consensus's ACC over seeds, divided by that of the members' ACC."""
        return _deviation(self.scores(CONSENSUS)[:, 0]) / float(np.std(self.members))


def _deviation(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def table_of(images: Set, seeds: int, published_steps: int) -> Table:
    """Run all methods on one set."""
    table = Table(images)
    for seed in range(seeds):
        for name, run in kmeans(images, seed):
            table.measure([name], lambda run=run: [run()])  # type: ignore[misc]
        fitted: list[GSEC] = []

        def fit(seed: int = seed, fitted: list[GSEC] = fitted) -> list[Labels]:
            fitted.append(default(images, seed))
            return [fitted[0].member_labels_[0], fitted[0].labels_]

        table.measure([MEMBER, CONSENSUS], fit)
        table.members += [100 * accuracy(images.truth, labels) for labels in fitted[0].member_labels_]
        if published_steps and seed < PUBLISHED_SEEDS:
            table.measure([PUBLISHED, LEAK], lambda seed=seed: published(images, seed, published_steps))  # type: ignore[misc]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SOURCES), choices=SOURCES)
    parser.add_argument("--only", help="sets whose name holds this")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--work", type=Path, help="a folder that keeps the embeddings for a next time")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--published-steps", type=int, default=300, help="0 leaves it out; the published code takes 6,000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    verdicts, ratios, kept = [], [], []
    with tempfile.TemporaryDirectory() as directory:
        for source in options.sets:
            for images in SOURCES[source](options.data, options.work or Path(directory), options.encoder):
                if options.only and options.only not in images.name:
                    continue
                table = table_of(images, options.seeds, options.published_steps)
                print(table.markdown(options.encoder), end="\n\n", flush=True)
                verdicts.append(table.verdict())
                ratios.append(table.ratio())
                kept.append({"set": images.name, "encoder": options.encoder, "methods": {name: table.row(name) for name in table.labels}})
    print(f"The consensus less the best of the k-means forms by each score, ± standard error, {options.seeds} seeds, and deviations of ACC\n")
    print("| set | ACC | NMI | ARI | consensus | member | ratio |\n| --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(verdicts))
    print(f"\nMedian ratio {median(ratios):.2f}.")
    if options.json:
        options.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
