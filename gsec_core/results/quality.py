"""How good a run's labelling is: beside plain k-means without labels, and against labels where there are any."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from gsec_core.clustering.kmeans import sample_rows
from gsec_core.clustering.metrics import purity, score
from gsec_core.errors import Refused
from gsec_core.stages import align, baseline, enhance, prepare, publish, refit, text, train
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import usable
from gsec_core.tables import ALIGNMENT_TABLE, ASSIGNMENTS_TABLE, BASELINE_CLUSTERS_TABLE, BASELINE_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE

COLUMNS = ("labelling", "purity", "cohesion", "separation", "agreement", "largest", "smallest", "ARI to consensus")
"""Of `without_labels`."""

STABLE = 0.5
"""Stability of a cluster below which it counts as dissolved (Hennig 2007)."""

NEARLY_EQUAL = 0.95
"""ARI of labellings that are the same except for a few images."""

PURITY_ROWS = 20_000
"""Images whose neighbours are looked at."""

MOST_NAMED = 20
"""Clusters that a remark names."""


def without_labels(context: Context) -> list[dict[str, Any]]:
    """One row for each labelling, consensus first: purity, cohesion and agreement (means over images), separation (mean over clusters), sizes, ARI with it.

    Purity is of the neighbours in both halves, the text half counting as much as its counterparts have earned. A run that keeps the published model searches
    no neighbours and makes no k-means.
    """
    consensus, *_ = found = labellings(context)
    purities = [None] if context.keeps else _purities(context, [_clusters(assignments) for _, assignments, _ in found])
    return [
        {
            "labelling": name,
            "purity": pure,
            "cohesion": _mean(clusters["cohesion"], clusters["size"]),
            "separation": _mean(clusters["separation"]),
            "agreement": _mean(clusters["agreement"], clusters["size"]),
            "largest": max(clusters["size"].to_pylist()),
            "smallest": min(clusters["size"].to_pylist()),
            "ARI to consensus": float(adjusted_rand_score(_clusters(consensus[1]), _clusters(assignments))),
        }
        for (name, assignments, clusters), pure in zip(found, purities, strict=True)
    ]


def _purities(context: Context, labellings: Sequence[NDArray[np.int32]]) -> list[float]:
    """Of each labelling."""
    neighbors, weight = prepare.load_neighbors(context).halves, text.weight_deserved(context)
    rows, weights = sample_rows(len(neighbors[0]), PURITY_ROWS, 0), [1 - weight, weight][: len(neighbors)]
    near = [half[rows] for half in neighbors]
    return [float(np.average([purity(labels, half, rows)[1] for half in near], weights=weights)) for labels in labellings]


def remarks(context: Context, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader of a result is to know of it, in plain words; ``rows`` as `without_labels` gives them."""
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
        said.append(f"The consensus is nearly the clustering of plain k-means (ARI {kmeans['ARI to consensus']:.3f}), and adds little to it.")
    table = context.shards(align.STAGE, CLUSTERS_TABLE).read("all", ["cluster", "stability"])
    unsure = [row["cluster"] for row in table.to_pylist() if row["stability"] is not None and row["stability"] < STABLE]
    if unsure:
        shown = ", ".join(map(str, unsure[:MOST_NAMED])) + (", ..." if len(unsure) > MOST_NAMED else "")
        said.append(f"Of {len(unsure)} of the {table.num_rows} clusters the members do not agree (stability below {STABLE}): {shown}.")
    return said + ([] if context.keeps else _of_pseudo_labels(context)) + enhance.remarks(context)


def _of_pseudo_labels(context: Context) -> list[str]:
    """Whether labels that members gave a sample themselves, if they did, are of classes that are alike, and whether they lasted."""
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
    permutations = pl.DataFrame(context.shards(align.STAGE, ALIGNMENT_TABLE).read("all", ["member", "permutation"])).explode("permutation")
    labels = groups.join(permutations.with_columns(group=pl.int_range(pl.len(), dtype=pl.Int32).over("member")), on=["member", "group"])
    now = pa.concat_tables(context.shards(align.STAGE, ASSIGNMENTS_TABLE).read_all(usable(context).part_names, ["image_id", "cluster"]))
    ended = labels.join(pl.DataFrame(now), on="image_id")
    lasted = (ended["permutation"] == ended["cluster"]).to_numpy().mean()
    return [
        "The members learnt from labels that they gave a sample themselves. Of the changes between classes behind these labels, "
        f"{within:.0%} are within a label (by chance: {chance:.0%}); {lasted:.0%} of the sample are in the cluster of their label now."
    ]


def with_labels(context: Context, label_of: Callable[[str, bytes], object]) -> list[dict[str, Any]]:
    """One row for each labelling: ACC, NMI and ARI over the images that have a label.

    ``label_of``: the label of a URI and a content hash, None where there is none. Raises Refused if no image has one.
    """
    found = labellings(context)
    truth, known = truth_of(found[0][1], label_of)
    counts = {"images": int(known.sum()), "unlabelled": int((~known).sum())}
    scores = {name: score(truth, assignments["cluster"].to_numpy()[known]) for name, assignments, _ in found}
    return [{"labelling": name, **counts, "ACC": scored.acc, "NMI": scored.nmi, "ARI": scored.ari} for name, scored in scores.items()]


def majorities(context: Context, label_of: Callable[[str, bytes], object]) -> list[dict[str, Any]]:
    """One row for each cluster of the consensus: its name, the most frequent label of its images, and that label's share of those that have one."""
    _, assignments, clusters = labellings(context)[0]
    truth, known = truth_of(assignments, label_of)
    counts = pl.DataFrame({"cluster": assignments["cluster"].to_numpy()[known], "label": truth}).group_by("cluster", "label").len()
    best = {
        row["cluster"]: row
        for row in counts.sort("len", "label", descending=[True, False]).unique("cluster", keep="first", maintain_order=True).iter_rows(named=True)
    }
    labelled = dict(counts.group_by("cluster").agg(pl.col("len").sum()).iter_rows())
    names = context.shards(publish.STAGE, CLUSTER_NAMES_TABLE).read("all", ["name"])["name"].to_pylist()
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
    """The labels that there are, in the order of ``assignments``, and of which of its rows, (rows,). Raises Refused if there is none."""
    keys = zip(assignments["uri"].to_pylist(), assignments["content_hash"].to_pylist(), strict=True)
    labels = [label_of(uri, content_hash) for uri, content_hash in keys]
    known = np.array([label is not None for label in labels])
    if not known.any():
        raise Refused(f"--labels: none of the {len(known)} images has a label there. Are its URIs the ones in the assignments?")
    return np.array([str(label) for label in labels if label is not None], np.str_), known


def labellings(context: Context) -> list[tuple[str, pa.Table, pa.Table]]:
    """Name, assignments in canonical order and cluster table of each labelling that a run makes: the consensus, then k-means, if it does that."""
    names = usable(context).part_names
    sources: Mapping[str, Any] = {
        "consensus": (align.STAGE, ASSIGNMENTS_TABLE, CLUSTERS_TABLE),
        "k-means": (baseline.STAGE, BASELINE_TABLE, BASELINE_CLUSTERS_TABLE),
    }
    return [
        (name, pa.concat_tables(context.shards(stage, assignments).read_all(names)), context.shards(stage, clusters).read("all"))
        for name, (stage, assignments, clusters) in sources.items()
        if stage.name in context.run.stage_names()
    ]


def _clusters(assignments: pa.Table) -> NDArray[np.int32]:
    found: NDArray[np.int32] = assignments["cluster"].to_numpy()
    return found


def _mean(values: pa.ChunkedArray, weights: pa.ChunkedArray | None = None) -> float | None:
    """Mean of the values that are there; None if none is."""
    there = values.is_valid().to_numpy()
    if not there.any():
        return None
    of = None if weights is None else weights.to_numpy()[there]
    return float(np.average(values.drop_null().to_numpy(), weights=of))
