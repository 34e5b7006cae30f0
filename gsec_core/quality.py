"""How good a run's labelling is: beside plain k-means without labels, and against labels where somebody has them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from gsec_core.clustering.metrics import score
from gsec_core.errors import Refused
from gsec_core.stages import align, baseline, publish
from gsec_core.stages.base import Context
from gsec_core.stages.canonical import usable
from gsec_core.tables import ASSIGNMENTS_TABLE, BASELINE_CLUSTERS_TABLE, BASELINE_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE


def without_labels(context: Context) -> list[dict[str, Any]]:
    """One row a labelling, consensus first: cohesion and agreement (means over images), separation (mean over clusters), sizes, and ARI with the consensus."""
    consensus, *_ = found = labellings(context)
    return [
        {
            "labelling": name,
            "cohesion": _mean(clusters["cohesion"], clusters["size"]),
            "separation": _mean(clusters["separation"]),
            "agreement": _mean(clusters["agreement"], clusters["size"]),
            "largest": max(clusters["size"].to_pylist()),
            "smallest": min(clusters["size"].to_pylist()),
            "ARI to consensus": float(adjusted_rand_score(consensus[1]["cluster"].to_numpy(), assignments["cluster"].to_numpy())),
        }
        for name, assignments, clusters in found
    ]


def with_labels(context: Context, label_of: Callable[[str, bytes], object]) -> list[dict[str, Any]]:
    """One row a labelling: ACC, NMI and ARI over the images that have a label.

    ``label_of``: the label of a URI and a content hash, None where there is none. Raises Refused if no image has one.
    """
    found = labellings(context)
    truth, known = truth_of(found[0][1], label_of)
    if not known.any():
        raise Refused(f"--labels: none of the {len(known)} images of run {context.run.id} has a label there. Are its URIs those of the assignments?")
    counts = {"images": int(known.sum()), "unlabelled": int((~known).sum())}
    scores = {name: score(truth, assignments["cluster"].to_numpy()[known]) for name, assignments, _ in found}
    return [{"labelling": name, **counts, "ACC": scored.acc, "NMI": scored.nmi, "ARI": scored.ari} for name, scored in scores.items()]


def majorities(context: Context, label_of: Callable[[str, bytes], object]) -> list[dict[str, Any]]:
    """One row a cluster of the consensus: its name, the most frequent label of its images, and that label's share of those that have one."""
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
    """The labels that there are, in the order of ``assignments``, and of which of its rows, (rows,)."""
    keys = zip(assignments["uri"].to_pylist(), assignments["content_hash"].to_pylist(), strict=True)
    labels = [label_of(uri, content_hash) for uri, content_hash in keys]
    known = np.array([label is not None for label in labels])
    return np.array([str(label) for label in labels if label is not None], np.str_), known


def labellings(context: Context) -> list[tuple[str, pa.Table, pa.Table]]:
    """Name, assignments in canonical order and cluster table of each labelling that a run makes: the consensus, then k-means."""
    names = usable(context).part_names
    sources: Mapping[str, Any] = {
        "consensus": (align.STAGE, ASSIGNMENTS_TABLE, CLUSTERS_TABLE),
        "k-means": (baseline.STAGE, BASELINE_TABLE, BASELINE_CLUSTERS_TABLE),
    }
    return [
        (name, pa.concat_tables(context.shards(stage, assignments).read_all(names)), context.shards(stage, clusters).read("all"))
        for name, (stage, assignments, clusters) in sources.items()
    ]


def _mean(values: pa.ChunkedArray, weights: pa.ChunkedArray | None = None) -> float | None:
    """Mean of the values that are there; None if none is."""
    there = values.is_valid().to_numpy()
    if not there.any():
        return None
    of = None if weights is None else weights.to_numpy()[there]
    return float(np.average(values.drop_null().to_numpy(), weights=of))
