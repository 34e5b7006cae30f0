"""Quality of a run's labelling: without labels, compared with plain k-means, and against labels if there are any."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.clustering.kmeans import sample_rows
from gsec_core.errors import Refused
from gsec_core.stages import align, baseline, enhance, prepare, publish, refit, text, train
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import read_parts
from gsec_core.tables import ALIGNMENT_TABLE, ASSIGNMENTS_TABLE, BASELINE_CLUSTERS_TABLE, BASELINE_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE

COLUMNS = ("labelling", "purity", "cohesion", "separation", "agreement", "largest", "smallest", "ARI to consensus")
"""Columns of `without_labels`."""

STABLE = 0.5
"""A cluster with a stability below this counts as dissolved (Hennig 2007)."""

NEARLY_EQUAL = 0.95
"""Two labellings count as nearly equal from this ARI on."""

PURITY_ROWS = 20_000
"""Number of sampled images from whose neighbours purity is measured."""

MOST_NAMED = 20
"""Maximal number of clusters that a remark names."""


def without_labels(context: Context) -> list[dict[str, Any]]:
    """One row for each labelling, consensus first.

    Columns are purity, cohesion and agreement (means over images), separation (mean over clusters), sizes, and ARI to the consensus. Purity is the
    weighted mean over the neighbours in the image half and in the text half, with the weight of `text.weight_deserved` for the text. A run that keeps the
    published model searches no neighbours and fits no k-means: its purity is None, and it has one row.
    """
    from sklearn.metrics import adjusted_rand_score

    found = labellings(context)
    labels = [assignments["cluster"].to_numpy() for _, assignments, _ in found]
    purities = [None] if context.keeps else _purities(context, labels)
    return [
        {
            "labelling": name,
            "purity": pure,
            "cohesion": _mean(clusters["cohesion"], clusters["size"]),
            "separation": _mean(clusters["separation"]),
            "agreement": _mean(clusters["agreement"], clusters["size"]),
            "largest": max(clusters["size"].to_pylist()),
            "smallest": min(clusters["size"].to_pylist()),
            "ARI to consensus": float(adjusted_rand_score(labels[0], own)),
        }
        for (name, _, clusters), own, pure in zip(found, labels, purities, strict=True)
    ]


def _purities(context: Context, labellings: Sequence[NDArray[np.int32]]) -> list[float]:
    """Purity of each labelling."""
    from gsec_core.clustering.metrics import purity

    neighbors, weight = prepare.load_neighbors(context).halves, text.weight_deserved(context)
    rows, weights = sample_rows(len(neighbors[0]), PURITY_ROWS, 0), [1 - weight, weight][: len(neighbors)]
    near = [half[rows] for half in neighbors]
    return [float(np.average([purity(labels, half, rows)[1] for half in near], weights=weights)) for labels in labellings]


def remarks(context: Context, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Remarks on a result in plain words, for its readers; ``rows`` are those of `without_labels`."""
    said = []
    if decided := refit.in_words(context):
        said.append(decided)
    consensus, kmeans = rows[0], rows[-1]
    if context.keeps:
        pass
    elif consensus["purity"] <= kmeans["purity"]:
        said.append(
            "The consensus adds nothing over plain k-means: neighbours of an image are not more often in its cluster (purity "
            f"{consensus['purity']:.3f} against {kmeans['purity']:.3f})."
        )
    elif kmeans["ARI to consensus"] >= NEARLY_EQUAL:
        said.append(f"The consensus is nearly the same as plain k-means (ARI {kmeans['ARI to consensus']:.3f}), and adds little to it.")
    table = context.read(align.STAGE, CLUSTERS_TABLE, ["cluster", "size", "stability"]).to_pylist()
    unsure = [row["cluster"] for row in table if row["stability"] is not None and row["stability"] < STABLE]
    if unsure:
        said.append(f"The members do not agree on {len(unsure)} of the {len(table)} clusters (stability below {STABLE}): {_numbers(unsure)}.")
    empty = [row["cluster"] for row in table if not row["size"]]
    if empty:
        said.append(f"{len(empty)} of the {len(table)} clusters {'has' if len(empty) == 1 else 'have'} no images: {_numbers(empty)}.")
    return said + ([] if context.keeps else _of_pseudo_labels(context)) + enhance.remarks(context)


def _numbers(clusters: Sequence[int]) -> str:
    return ", ".join(map(str, clusters[:MOST_NAMED])) + (", ..." if len(clusters) > MOST_NAMED else "")


def _of_pseudo_labels(context: Context) -> list[str]:
    """For members that labelled a sample themselves: whether classes with one label are alike, and how many labels agree with the final clusters."""
    found = train.load_pseudo_labels(context)
    if found is None:
        return []
    transitions, groups = map(pl.DataFrame, found)
    classes = groups.select("member", "class", "group").unique()
    changes = transitions.join(classes, on=["member", "class"])
    changes = changes.join(classes, left_on=["member", "next_class"], right_on=["member", "class"], suffix="_next")
    if changes.is_empty():
        return ["No image changed its class during the training, so the labels that the members learnt from are arbitrary. Give more steps."]
    within = np.average((changes["group"] == changes["group_next"]).to_numpy(), weights=changes["count"].to_numpy())
    of_a_label, of_all = (classes.group_by(keys).len()["len"].to_numpy().astype(float) for keys in (["member", "group"], ["member"]))
    chance = (of_a_label * (of_a_label - 1)).sum() / (of_all * (of_all - 1)).sum()
    permutations = pl.DataFrame(context.read(align.STAGE, ALIGNMENT_TABLE, ["member", "permutation"])).explode("permutation")
    labels = groups.join(permutations.with_columns(group=pl.int_range(pl.len(), dtype=pl.Int32).over("member")), on=["member", "group"])
    now = read_parts(context, align.STAGE, ASSIGNMENTS_TABLE, ["image_id", "cluster"])
    ended = labels.join(pl.DataFrame(now), on="image_id")
    lasted = (ended["permutation"] == ended["cluster"]).to_numpy().mean()
    return [
        "The members learnt from labels that they gave a sample themselves. Of the changes between classes behind these labels, "
        f"{within:.0%} are within a label (by chance: {chance:.0%}); {lasted:.0%} of the sample are in the cluster of their label now."
    ]


def with_labels(context: Context, label_of: Callable[[str, bytes], object]) -> list[dict[str, Any]]:
    """One row for each labelling: ACC, NMI and ARI over the images that have a label.

    ``label_of`` returns the label for a URI and a content hash, or None if there is none. Raises Refused if no image has a label.
    """
    from gsec_core.clustering.metrics import score

    found = labellings(context)
    truth, known = truth_of(found[0][1], label_of)
    counts = {"images": int(known.sum()), "unlabelled": int((~known).sum())}
    scores = {name: score(truth, assignments["cluster"].to_numpy()[known]) for name, assignments, _ in found}
    return [{"labelling": name, **counts, "ACC": scored.acc, "NMI": scored.nmi, "ARI": scored.ari} for name, scored in scores.items()]


def majorities(context: Context, label_of: Callable[[str, bytes], object]) -> list[dict[str, Any]]:
    """One row for each cluster of the consensus: its name, its size, its most frequent label, and the share of that label among its labelled images."""
    _, assignments, clusters = labellings(context)[0]
    truth, known = truth_of(assignments, label_of)
    counts = pl.DataFrame({"cluster": assignments["cluster"].to_numpy()[known], "label": truth}).group_by("cluster", "label").len()
    best = {
        row["cluster"]: row
        for row in counts.sort("len", "label", descending=[True, False]).unique("cluster", keep="first", maintain_order=True).iter_rows(named=True)
    }
    labelled = dict(counts.group_by("cluster").agg(pl.col("len").sum()).iter_rows())
    names = context.read(publish.STAGE, CLUSTER_NAMES_TABLE, ["name"])["name"].to_pylist()
    return [
        {
            "cluster": cluster,
            "name": name,
            "size": size,
            "label": best[cluster]["label"] if cluster in best else None,
            "share": best[cluster]["len"] / labelled[cluster] if cluster in best else None,
        }
        for cluster, (name, size) in enumerate(zip(names, clusters["size"].to_pylist(), strict=True))
    ]


def truth_of(assignments: pa.Table, label_of: Callable[[str, bytes], object]) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """The labels of the labelled images, in the order of ``assignments``, and a mask of its labelled rows, (rows,). Raises Refused if none has a label."""
    keys = zip(assignments["uri"].to_pylist(), assignments["content_hash"].to_pylist(), strict=True)
    labels = [label_of(uri, content_hash) for uri, content_hash in keys]
    known = np.array([label is not None for label in labels])
    if not known.any():
        example = f", such as {assignments['uri'][0]}" if len(known) else ""
        raise Refused(f"--labels: none of the {len(known)} images has a label there. If it has a column uri, write URIs as in the assignments{example}.")
    return np.array([str(label) for label in labels if label is not None], np.str_), known


def labellings(context: Context) -> list[tuple[str, pa.Table, pa.Table]]:
    """Name, assignments in canonical order, and cluster table of each labelling of a run: the consensus, then k-means if the run fits it."""
    sources: Mapping[str, Any] = {
        "consensus": (align.STAGE, ASSIGNMENTS_TABLE, CLUSTERS_TABLE),
        "k-means": (baseline.STAGE, BASELINE_TABLE, BASELINE_CLUSTERS_TABLE),
    }
    return [
        (name, read_parts(context, stage, assignments), context.read(stage, clusters))
        for name, (stage, assignments, clusters) in sources.items()
        if context.has(stage)
    ]


def _mean(values: pa.ChunkedArray, weights: pa.ChunkedArray | None = None) -> float | None:
    """Mean of the values that are not null; None if all are null."""
    there = values.is_valid().to_numpy()
    if not there.any():
        return None
    of = None if weights is None else weights.to_numpy()[there]
    return float(np.average(values.drop_null().to_numpy(), weights=of))
