"""What a nightly run changes: images that move to another cluster, the accuracy of the labels, and whether new classes are found.

    python -m benchmarks.nights --data FOLDER [--work FOLDER] [--sets cifar10 stamps] [--only WORDS] [--seeds 5] [--thirty]

Sets as in `benchmarks.quality`. For each seed a random half of the images is clustered. Then this half with more images is clustered twice: as with
`train.refit = "auto"`, by the decision of stage `refit`, and from scratch. Printed for both: the share of the half's images that have another
key afterwards, in %, and ACC of all images, mean and standard deviation over seeds; and the decision. Clusters keep their keys as in stage
`lineage`. Descriptions are those of the whole set, so that they do not change from night to night.

`--thirty`: thirty nights, each with 2% new images and 1% deleted; one class is kept back until night 15, when all of its images so far come
at once. Printed for each seed: the share that moved in a night, on average and at most; the decisions; after how many nights the class was reported;
alarms before; ACC of the last night's labels, and of a fit from scratch on the same images; and how well the latter separates the class as a cluster.
Labels are used only for scores, and to choose the class that is kept back.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.sets import SOURCES, Set
from gsec_core import GSEC
from gsec_core.clustering import drift, lineage
from gsec_core.clustering.centres import Centres
from gsec_core.clustering.metrics import score
from gsec_core.tables import CONTINUED, KEPT

GROWTH = (0.01, 0.05, 0.2, 1.0)
"""New images, as a share of the images at the start."""

NIGHTS, COMES = 30, 15
"""Number of nights, and the night in which the kept back class comes."""

NEW, GONE = 0.02, 0.01
"""Images that are added and deleted each night, as shares of the images at the start."""

Rows = NDArray[np.int64]
Labels = NDArray[np.int32]


class Collection:
    """A set, clustered night after night as the pipeline does it."""

    def __init__(self, images: Set, seed: int) -> None:
        self._images, self._seed = images, seed
        self.text, self.weight = images.counterparts()

    def fit(self, rows: Rows, before: Labels | None = None, start: GSEC | None = None, seed: int | None = None) -> GSEC:
        estimator = GSEC(self._images.n_clusters, text_weight=self.weight, random_state=self._seed if seed is None else seed)
        fitted: GSEC = estimator.fit(self._images.X[rows], text=self.text[rows], start=start, before=before)
        return fitted

    def acc(self, rows: Rows, labels: Labels) -> float:
        return 100 * score(self._images.truth[rows].astype(str), labels).acc

    def first(self, rows: Rows) -> "Night":
        return self._fitted(rows, self.fit(rows), "first", len(rows), [])

    def after(self, last: "Night", now: Rows) -> "Night":
        """The night after ``last``, with the images ``now``: decided as in stage `refit`, and labelled as in the pipeline."""
        known = np.isin(now, last.fitted)
        before = np.full(len(now), -1, np.int32)
        there = np.isin(now, last.rows)
        before[there] = last.labels[np.searchsorted(last.rows, now[there])]
        posteriors = last.model.predict_proba(self._images.X[now], self.text[now])
        is_new = ~known
        sizes = np.bincount(last.model.labels_, minlength=self._images.n_clusters)
        old = drift.Said.of(self._images.X[now[known]], posteriors[known], last.centres, sizes)
        new = drift.Said.of(self._images.X[now[is_new]], posteriors[is_new], last.centres)
        found = drift.together(lambda picked: self._images.X[now][picked], is_new)
        largest = max(map(len, found), default=0) * self._images.n_clusters / len(now)
        decided = drift.decide(old, new, int(is_new.sum()), len(now) / last.full, largest)
        if decided.decision == KEPT:
            labels = np.where(there, before, posteriors.argmax(1)).astype(np.int32)
            return Night(now, labels, decided.decision, last.model, last.centres, last.fitted, last.full, found)
        if decided.decision == CONTINUED:
            return self._fitted(now, self.fit(now, before, last.model), decided.decision, last.full, found)
        return self._fitted(now, self.fit(now, before), decided.decision, len(now), found)

    def _fitted(self, rows: Rows, model: GSEC, decision: str, full: int, found: list[Rows]) -> "Night":
        labels: Labels = model.labels_
        return Night(rows, labels, decision, model, Centres.of(self._images.X[rows], labels, self._images.n_clusters), rows, full, found)


@dataclass(frozen=True)
class Night:
    """The state after a night."""

    rows: Rows
    labels: Labels
    decision: str
    model: GSEC
    centres: Centres
    fitted: Rows
    """The images that the model was fitted on."""
    full: int
    """Number of images when all members were last fitted."""
    found: list[Rows]
    """Groups of new images, as indices into ``rows``."""


def nights(images: Set, seed: int) -> Iterator[tuple[str, dict[str, float], str]]:
    """For each case: its name, its figures, and the decision."""
    collection = Collection(images, seed)
    order = np.random.default_rng(seed).permutation(len(images.X))
    half = len(order) // 2
    first = collection.first(np.sort(order[:half]))
    for share in GROWTH:
        now = np.sort(order[: half + max(1, round(share * half))])
        night, fresh = collection.after(first, now), collection.fit(now).labels_
        yield f"{share:.0%} more images", _figures(collection, first, now, night.labels, fresh), night.decision
    again, other = collection.after(first, first.rows), collection.fit(first.rows, seed=seed + 1000).labels_
    yield "nothing, but another seed", _figures(collection, first, first.rows, again.labels, other), again.decision


def _figures(collection: Collection, before: Night, now: Rows, labels: Labels, fresh: Labels) -> dict[str, float]:
    return {
        "moved": 100 * moved(before.rows, before.labels, now, labels),
        "moved, from scratch": 100 * moved(before.rows, before.labels, now, fresh),
        "ACC": collection.acc(now, labels),
        "ACC, from scratch": collection.acc(now, fresh),
    }


def moved(there: Rows, before: Labels, now: Rows, after: Labels) -> float:
    """Among the images ``there`` that still exist ``now``, the share that has another cluster key."""
    clusters = int(before.max()) + 1
    both = np.isin(there, now)
    pairs = pl.DataFrame({"previous": before[both], "cluster": after[np.searchsorted(now, there[both])]})
    shared = pairs.group_by("previous", "cluster").agg(pl.len().cast(pl.Int64).alias("images")).sort("cluster", "previous")
    found = lineage.inherit(shared, int(after.max()) + 1, np.arange(clusters, dtype=np.int32), clusters)
    return float(found.moved.sum() / found.common.sum())


def thirty(images: Set, seed: int) -> dict[str, object]:
    """Figures of thirty nights in a row."""
    collection, random = Collection(images, seed), np.random.default_rng(seed)
    order = random.permutation(len(images.X))
    back = images.truth[order] == random.choice(np.unique(images.truth))
    start = round(len(order) / (1 + NIGHTS * NEW))
    night = collection.first(np.sort(order[:start][~back[:start]]))
    shares, decisions, reported, alarms = [], [], None, 0
    gone: set[int] = set()
    for number in range(1, NIGHTS + 1):
        come = round(start * (1 + number * NEW))
        there = order[:come] if number >= COMES else order[:come][~back[:come]]
        there = np.sort(there[~np.isin(there, list(gone))])
        leave = random.choice(night.rows, round(GONE * start), replace=False)
        gone.update(leave.tolist())
        now = np.setdiff1d(there, leave)
        last, night = night, collection.after(night, now)
        shares.append(100 * moved(last.rows, last.labels, now, night.labels))
        decisions.append(night.decision)
        if number < COMES:
            alarms += bool(night.found)
        elif reported is None and any(_is_of(images, order[back], now[group]) for group in night.found):
            reported = number - COMES + 1
    fresh = collection.fit(night.rows).labels_
    return {
        "moved a night": float(np.mean(shares)),
        "most in a night": float(np.max(shares)),
        "decisions": ", ".join(f"{count} {decision}" for decision, count in Counter(decisions).items()),
        "reported after": reported,
        "alarms before": alarms,
        "ACC": collection.acc(night.rows, night.labels),
        "ACC, from scratch": collection.acc(night.rows, fresh),
        "separated by a fit from scratch": 100 * _found_by(fresh, np.isin(night.rows, order[back])),
    }


def _is_of(images: Set, back: Rows, group: Rows) -> bool:
    """Whether more than half of a group are images of the class that was kept back."""
    return bool(np.isin(group, back).mean() > 0.5)


def _found_by(labels: Labels, wanted: NDArray[np.bool_]) -> float:
    """The largest overlap (Jaccard) of any cluster with these images."""
    return max(float((wanted & (labels == cluster)).sum() / (wanted | (labels == cluster)).sum()) for cluster in np.unique(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["cifar10", "stamps"], choices=SOURCES)
    parser.add_argument("--only", help="sets whose name holds this")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--work", type=Path, help="a folder that keeps the embeddings for a next time")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thirty", action="store_true", help="thirty nights in a row")
    options = parser.parse_args()
    print(f"Encoder {options.encoder}, {options.seeds} seeds\n")
    with tempfile.TemporaryDirectory() as directory:
        for source in options.sets:
            for images in SOURCES[source](options.data, options.work or Path(directory), options.encoder):
                if options.only and options.only not in images.name:
                    continue
                (_long_run if options.thirty else _single_nights)(images, options.seeds)


def _single_nights(images: Set, seeds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {}
    decided: dict[str, Counter[str]] = {}
    for seed in range(seeds):
        for what, figures, decision in nights(images, seed):
            found.setdefault(what, []).append(figures)
            decided.setdefault(what, Counter())[decision] += 1
    names = list(next(iter(found.values()))[0])
    print(f"| set | what comes | decided | {' | '.join(names)} |\n| {' | '.join(['---'] * (3 + len(names)))} |")
    for what, rows in found.items():
        decisions = ", ".join(f"{count} {decision}" for decision, count in decided[what].items())
        figures = " | ".join(f"{np.mean([row[name] for row in rows]):.1f} ± {np.std([row[name] for row in rows], ddof=1):.1f}" for name in names)
        print(f"| {images.name} | {what} | {decisions} | {figures} |", flush=True)


def _long_run(images: Set, seeds: int) -> None:
    for seed in range(seeds):
        row = thirty(images, seed)
        if not seed:
            print(f"| set | seed | {' | '.join(row)} |\n| {' | '.join(['---'] * (2 + len(row)))} |")
        print(f"| {images.name} | {seed} | {' | '.join(f'{value:.1f}' if isinstance(value, float) else str(value) for value in row.values())} |", flush=True)


if __name__ == "__main__":
    main()
