"""Compare runs with other methods, settings or seeds on the images that they have in common. If there are labels, they only score the finished result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any, cast

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
"""Number of nearest neighbours from which purity is measured."""

MOST_DIFFERING, OF_A_KIND = 36, 3
"""Number of differing images that are shown, and the most among them with the same combination of clusters."""


@dataclass(frozen=True)
class Compared:
    """One run of a comparison. Sizes and measures are over the images that all runs have."""

    run_id: str
    method: str
    text: str
    """Where the run's text comes from."""
    encoder: str
    names: tuple[str, ...]
    """Names of the clusters."""
    sizes: NDArray[np.int64]
    """Images in each cluster, (clusters,)."""
    left_out: int
    """Number of the run's images that some other run does not have."""
    purity: float
    """See `metrics.purity`; neighbours are by the first run's image embeddings."""
    agreement: float | None
    """Mean over images of the share of members that agree; None if the run has only one labelling."""
    seconds: float
    """Time of the run's stages, summed over shards, without the stages that all runs share."""


@dataclass(frozen=True)
class Pair:
    """Two runs and the one-to-one matching of their clusters that has the most images in matched clusters."""

    one: int
    other: int
    match: NDArray[np.int32]
    """(clusters of one,): the matched cluster of the other run; -1 if no unmatched cluster there shares an image."""
    both: NDArray[np.int64]
    """(clusters of one,): images that are in the cluster and in its match."""


@dataclass(frozen=True)
class Differing:
    """An image that the runs put into different clusters."""

    image_id: bytes
    uri: str
    disagreement: float
    """Mean over all pairs of runs: the product of their confidences if their clusters do not match, 0 if they do."""
    clusters: tuple[int, ...]
    """The image's cluster in each run."""
    confidences: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """The result of comparing several runs on the same images."""

    corpus: str
    runs: tuple[Compared, ...]
    images: pa.Table
    """image_id, uri, content_hash of the images that all runs have, in the first run's canonical order."""
    labels: NDArray[np.int32]
    """(runs, images): the cluster of each image."""
    ari: NDArray[np.float64]
    """(runs, runs): adjusted Rand index."""
    pairs: tuple[Pair, ...]
    """Each run with each later one."""
    differ: int
    """Number of images whose cluster does not match that of the first run in some run."""
    differing: tuple[Differing, ...]
    """At most `MOST_DIFFERING` of these images, by descending disagreement."""

    @cached_property
    def matched(self) -> list[NDArray[np.int32]]:
        """For each run, (clusters,): the first run's cluster that each cluster matches. Clusters without a match get new, unique numbers."""
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
    """Raises Refused, with a remedy, unless these are two or more finished runs of one corpus that all have clusters of their own."""
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
    """Compare runs on the images that all of them have with the same URI and the same bytes.

    The first run's image embeddings determine which images are neighbours, and the other runs' clusters are matched to its clusters.
    Raises as `check` does, Refused if the runs have fewer than two images in common, and BadShard.
    """
    runs = [first.run, *others]
    check(runs)
    configs = [run.config() for run in runs]
    common, counts = _common(runs)
    labels, confidence = (np.stack([common[f"{name} {number}"].to_numpy() for number in range(len(runs))]) for name in ("cluster", "confidence"))
    names = [run.read_table(CLUSTER_NAMES_TABLE, ["name"])["name"].to_pylist() for run in runs]
    sizes = [np.bincount(own, minlength=len(named)) for own, named in zip(labels, names, strict=True)]
    near, rows = _neighbors(first, common["row"].to_numpy())
    seconds = _seconds(runs)
    ari, pairs = np.eye(len(runs)), []
    for one, other in combinations(range(len(runs)), 2):
        ari[one, other] = ari[other, one] = adjusted_rand_score(labels[one], labels[other])
        pairs.append(_pair(one, other, labels, sizes))
    matched = _matched(pairs, [len(found) for found in sizes])
    aligned = np.stack([own[clusters] for own, clusters in zip(matched, labels, strict=True)])
    images = first.run.read_table(ASSIGNMENTS_TABLE, ["image_id", "uri", "content_hash"]).take(common["row"].to_numpy())
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
                agreement=cast("float | None", common[f"agreement {number}"].mean()),
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


def _common(runs: Sequence[Run]) -> tuple[pl.DataFrame, list[int]]:
    """The images that all runs have, and the number of images of each run.

    Columns: ``row`` (in the first run's assignments), and for each run r ``cluster r``, ``confidence r`` and ``agreement r``.
    """
    key, of_run = ["image_id", "content_hash"], ["cluster", "confidence", "agreement"]
    common, counts = pl.DataFrame(), []
    for number, run in enumerate(runs):
        rows = pl.DataFrame(run.read_table(ASSIGNMENTS_TABLE, [*key, *of_run])).rename({name: f"{name} {number}" for name in of_run})
        counts.append(len(rows))
        common = rows.with_row_index("row") if number == 0 else common.join(rows, on=key, maintain_order="left")
    if len(common) < 2:
        raise Refused(f"gsec compare: these runs have {len(common)} images in common. Compare runs of the same images: repeat the gsec run of each.")
    return common.drop(key), counts


def _neighbors(context: Context, places: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Nearest neighbours, among the images at ``places`` of a run, of a sample of these images; and the sampled rows. Both index ``places``."""
    X, n = load_embeddings(context), len(places)
    rows = sample_rows(n, PURITY_ROWS, 0)
    return neighbors_of(lambda rows: X[places[rows]], n, rows, neighbor_count(n, NEIGHBORS), n_threads=context.config.threads), rows


def _seconds(runs: Sequence[Run]) -> list[float]:
    """For each run, the seconds of the stages that not all runs share."""
    begun = [{name: record["fingerprint"] for name, record in run.stages().items()} for run in runs]
    shared = set.intersection(*(set(stages.values()) for stages in begun))
    return [round(sum(row["seconds"] for row in status.timings(run) if stages[row["stage"]] not in shared), 1) for run, stages in zip(runs, begun, strict=True)]


def _pair(one: int, other: int, labels: NDArray[np.int32], sizes: Sequence[NDArray[np.int64]]) -> Pair:
    """Match the clusters of two runs on their contingency table with the Hungarian method (Kuhn 1955)."""
    n = labels.shape[1]
    shares = coo_array((np.full(n, 1 / n), (labels[one], labels[other])), shape=(len(sizes[one]), len(sizes[other])))
    shares.sum_duplicates()
    match = lineage.match(shares)
    both = np.bincount(labels[one][match[labels[one]] == labels[other]], minlength=len(match))
    return Pair(one, other, match, both)


def _matched(pairs: Sequence[Pair], counts: Sequence[int]) -> list[NDArray[np.int32]]:
    """See `Comparison.matched`; ``counts`` are the numbers of clusters of the runs."""
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
    """`Differing.disagreement` of each image, (n,). Both arguments are (runs, n)."""
    total = np.zeros(matched.shape[1], np.float32)
    pairs = list(combinations(range(len(matched)), 2))
    for one, other in pairs:
        total += np.where(matched[one] != matched[other], confidence[one] * confidence[other], 0)
    return total / np.float32(len(pairs))


def _differing(images: pa.Table, labels: NDArray[np.int32], confidence: NDArray[np.float32], disagreement: NDArray[np.float32]) -> list[Differing]:
    """The images with the most disagreement: one for each content, and at most `OF_A_KIND` with the same combination of clusters."""
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
