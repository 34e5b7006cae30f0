"""Runs side by side: methods, settings or seeds on the images that they have in common; and their scores where there are labels, when all else is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import coo_array
from sklearn.metrics import adjusted_rand_score

from gsec_core.clustering import lineage
from gsec_core.clustering.kmeans import sample_rows
from gsec_core.clustering.metrics import purity, score
from gsec_core.clustering.neighbors import neighbor_count, neighbors_of
from gsec_core.errors import Refused
from gsec_core.results import status
from gsec_core.results.quality import PURITY_ROWS, truth_of
from gsec_core.stages import align, encode, text
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import load_embeddings
from gsec_core.store import Run
from gsec_core.tables import ASSIGNMENTS_TABLE, CLUSTER_NAMES_TABLE

NEIGHBORS = 20
"""Nearest neighbours by which purity is measured."""

MOST_DIFFERING, OF_A_KIND = 36, 3
"""Images that are shown of those on which the runs differ, and of these with the same clusters in every run."""


@dataclass(frozen=True)
class Compared:
    """A run of a comparison. Sizes and all that is measured are of the images that every run has."""

    run_id: str
    method: str
    text: str
    """Where its text came from."""
    encoder: str
    names: tuple[str, ...]
    """Of its clusters."""
    sizes: NDArray[np.int64]
    """(clusters,)"""
    left_out: int
    """Its images that not every run has."""
    purity: float
    """See `metrics.purity`; of the neighbours by the first run's image embeddings."""
    agreement: float | None
    """Mean share of members that agree on an image; None where there is one labelling only."""
    seconds: float
    """Of its stages except those that all the runs share, summed over shards."""


@dataclass(frozen=True)
class Pair:
    """Two runs, and which cluster of the other is which of the one: one to one, so that as many images as can be are in both."""

    one: int
    other: int
    match: NDArray[np.int32]
    """(clusters of one,): the cluster of the other; -1 where none is left that shares an image."""
    both: NDArray[np.int64]
    """(clusters of one,): images in both."""


@dataclass(frozen=True)
class Differing:
    """An image that the runs put into different clusters."""

    image_id: bytes
    uri: str
    disagreement: float
    """Mean over the pairs of runs of the product of their confidences where their clusters are not matched, 0 where they are."""
    clusters: tuple[int, ...]
    """Of each run."""
    confidences: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """What several runs make of the same images."""

    corpus: str
    runs: tuple[Compared, ...]
    images: pa.Table
    """image_id, uri, content_hash of the images that all the runs have, in the first run's canonical order."""
    labels: NDArray[np.int32]
    """(runs, images): clusters."""
    ari: NDArray[np.float64]
    """(runs, runs): adjusted Rand index."""
    pairs: tuple[Pair, ...]
    """Each run with each later one."""
    differ: int
    """Images whose clusters are not matched in all the runs."""
    differing: tuple[Differing, ...]
    """The first of these, those of most disagreement first."""

    @cached_property
    def matched(self) -> list[NDArray[np.int32]]:
        """Of each run the number of the first run's cluster that each of its clusters is matched to; numbers of their own for those that are left."""
        return _matched(self.pairs, [len(run.sizes) for run in self.runs])

    def rows(self) -> list[dict[str, Any]]:
        """One row for each run."""
        return [
            {
                "run": run.run_id,
                "method": run.method,
                "text": run.text,
                "encoder": run.encoder,
                "clusters": len(run.sizes),
                "largest": int(run.sizes.max()),
                "smallest": int(run.sizes.min()),
                "empty": int((run.sizes == 0).sum()),
                "left out": run.left_out,
                "purity": run.purity,
                "agreement": run.agreement,
                "seconds": run.seconds,
            }
            for run in self.runs
        ]

    def scores(self, label_of: Callable[[str, bytes], object]) -> list[dict[str, Any]]:
        """One row for each run: ACC, NMI and ARI over the images that have a label. Raises as `quality.truth_of` does."""
        truth, known = truth_of(self.images, label_of)
        scores = [score(truth, labels[known]) for labels in self.labels]
        return [{"labelled": len(truth), "ACC": scored.acc, "NMI": scored.nmi, "ARI": scored.ari} for scored in scores]


def check(runs: Sequence[Run]) -> None:
    """Raises Refused, saying what to do, unless these are several finished runs of one corpus that have clusters of their own."""
    if len(runs) < 2:
        raise Refused("gsec compare: give two or more runs. `gsec status` lists them.")
    for place, run in enumerate(runs):
        if run.id in [former.id for former in runs[:place]]:
            raise Refused(f"gsec compare: run {run.id} is given twice. Give each run once.")
        of_run = run.request().get("of_run")
        if of_run is not None:
            raise Refused(f"gsec compare: run {run.id} assigns images to the clusters of run {of_run} and has none of its own. Name that one.")
        run.check_stage(align.STAGE.name)
        if not run.is_finished():
            raise Refused(f"gsec compare: run {run.id} is not finished, or some of its tables are gone. The same gsec run again does what is missing.")
    first, *others = ((run, run.request()["corpus"]) for run in runs)
    for run, corpus in others:
        if corpus != first[1]:
            raise Refused(f"gsec compare: run {first[0].id} is of corpus {first[1]}, run {run.id} of {corpus}. Compare runs of one corpus.")


def compare(first: Context, others: Sequence[Run]) -> Comparison:
    """What these runs make of the images that all of them have, in the same place with the same bytes.

    The first run's image embeddings say which images are neighbours, and its clusters are what those of the others are matched
    to. Raises as `check` does, Refused if the runs have fewer than two images in common, and BadShard.
    """
    runs = [first.run, *others]
    check(runs)
    configs = [run.config() for run in runs]
    common, counts = _common(runs)
    labels, confidence = (np.stack([common[f"{name} {number}"].to_numpy() for number in range(len(runs))]) for name in ("cluster", "confidence"))
    names = [pl.DataFrame(shards.read(shard, ["name"]))["name"].to_list() for shards, [shard] in (run.table(CLUSTER_NAMES_TABLE) for run in runs)]
    sizes = [np.bincount(own, minlength=len(named)) for own, named in zip(labels, names, strict=True)]
    near, rows = _neighbors(first, common["row"].to_numpy())
    seconds = _seconds(runs)
    ari, pairs = np.eye(len(runs)), []
    for one, other in combinations(range(len(runs)), 2):
        ari[one, other] = ari[other, one] = adjusted_rand_score(labels[one], labels[other])
        pairs.append(_pair(one, other, labels, sizes))
    matched = _matched(pairs, [len(found) for found in sizes])
    aligned = np.stack([own[clusters] for own, clusters in zip(matched, labels, strict=True)])
    images = _read(runs[0], ["image_id", "uri", "content_hash"]).take(common["row"].to_numpy())
    return Comparison(
        corpus=first.corpus.name,
        runs=tuple(
            Compared(
                run_id=run.id,
                method=config.method,
                text=text.source_of(run),
                encoder=encode.encoders_of(run),
                names=tuple(names[number]),
                sizes=sizes[number],
                left_out=counts[number] - len(common),
                purity=purity(labels[number], near, rows)[1],
                agreement=_mean(common[f"agreement {number}"]),
                seconds=seconds[number],
            )
            for number, (run, config) in enumerate(zip(runs, configs, strict=True))
        ),
        images=images,
        labels=labels,
        ari=ari,
        pairs=tuple(pairs),
        differ=int((aligned != aligned[0]).any(0).sum()),
        differing=tuple(_differing(images, labels, confidence, _disagreement(aligned, confidence))),
    )


def _read(run: Run, columns: Sequence[str]) -> pa.Table:
    shards, names = run.table(ASSIGNMENTS_TABLE)
    return pa.concat_tables(shards.read_all(names, columns))


def _common(runs: Sequence[Run]) -> tuple[pl.DataFrame, list[int]]:
    """The images that all the runs have: their rows in the first, and of each run cluster, confidence and agreement; and how many images each run has."""
    key, of_run = ["image_id", "content_hash"], ["cluster", "confidence", "agreement"]
    common, counts = pl.DataFrame(), []
    for number, run in enumerate(runs):
        rows = pl.DataFrame(_read(run, [*key, *of_run])).rename({name: f"{name} {number}" for name in of_run})
        counts.append(len(rows))
        common = rows.with_row_index("row") if number == 0 else common.join(rows, on=key, maintain_order="left")
    if len(common) < 2:
        raise Refused(f"gsec compare: these runs have {len(common)} images in common. Compare runs of the same images: repeat the gsec run of each.")
    return common.drop(key), counts


def _neighbors(context: Context, places: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Neighbours among the images at these places of a run, of a sample of them; and which ones these are."""
    X, n = load_embeddings(context), len(places)
    rows = sample_rows(n, PURITY_ROWS, 0)
    return neighbors_of(lambda rows: X[places[rows]], n, rows, neighbor_count(n, NEIGHBORS), n_threads=context.config.threads), rows


def _seconds(runs: Sequence[Run]) -> list[float]:
    """Of each run the seconds of the stages that it does not share with all the others."""
    begun = [{name: record["fingerprint"] for name, record in run.stages().items()} for run in runs]
    shared = set.intersection(*(set(stages.values()) for stages in begun))
    return [round(sum(row["seconds"] for row in status.timings(run) if stages[row["stage"]] not in shared), 1) for run, stages in zip(runs, begun, strict=True)]


def _pair(one: int, other: int, labels: NDArray[np.int32], sizes: Sequence[NDArray[np.int64]]) -> Pair:
    """The Hungarian matching (Kuhn 1955) of two runs' clusters on their contingency table."""
    n = labels.shape[1]
    shares = coo_array((np.full(n, 1 / n), (labels[one], labels[other])), shape=(len(sizes[one]), len(sizes[other])))
    shares.sum_duplicates()
    match = lineage.match(shares)
    both = np.bincount(labels[one][match[labels[one]] == labels[other]], minlength=len(match))
    return Pair(one, other, match, both)


def _matched(pairs: Sequence[Pair], counts: Sequence[int]) -> list[NDArray[np.int32]]:
    """See `Comparison.matched`; ``counts`` are the clusters of each run."""
    found = [np.arange(counts[0], dtype=np.int32)]
    free = counts[0]
    for pair in pairs:
        if pair.one == 0:
            numbers = free + np.arange(counts[pair.other], dtype=np.int32)
            free += counts[pair.other]
            clusters = np.flatnonzero(pair.match >= 0)
            numbers[pair.match[clusters]] = clusters
            found.append(numbers)
    return found


def _disagreement(matched: NDArray[np.int32], confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """See `Differing`: of each image, (n,); both arrays are (runs, n)."""
    total = np.zeros(matched.shape[1], np.float32)
    pairs = list(combinations(range(len(matched)), 2))
    for one, other in pairs:
        total += np.where(matched[one] != matched[other], confidence[one] * confidence[other], 0)
    return total / np.float32(len(pairs))


def _differing(images: pa.Table, labels: NDArray[np.int32], confidence: NDArray[np.float32], disagreement: NDArray[np.float32]) -> list[Differing]:
    """The images of most disagreement, of equal bytes the first, `OF_A_KIND` with the same clusters."""
    kinds = {f"cluster {number}": own for number, own in enumerate(labels)}
    found = (
        pl.DataFrame({"row": np.arange(len(disagreement)), "disagreement": disagreement, **kinds})
        .filter(pl.Series(images["content_hash"]).is_first_distinct() & (pl.col("disagreement") > 0))
        .sort("disagreement", "row", descending=[True, False])
        .filter(pl.int_range(pl.len()).over(list(kinds)) < OF_A_KIND)
        .head(MOST_DIFFERING)
    )
    rows = found["row"].to_numpy()
    shown = images.take(rows)
    columns = (shown["image_id"].to_pylist(), shown["uri"].to_pylist(), disagreement[rows].tolist(), labels[:, rows].T.tolist(), confidence[:, rows].T.tolist())
    return [Differing(id, uri, value, tuple(clusters), tuple(sure)) for id, uri, value, clusters, sure in zip(*columns, strict=True)]


def _mean(values: pl.Series) -> float | None:
    mean = values.mean()
    return float(mean) if isinstance(mean, int | float) else None
