"""The end of a run: its summary, which is recorded and published.

A summary has the counts of images, the places of the tables, the clusters with their names, and the consensus compared with plain k-means.
"""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from gsec_core.captioners import captioner_model
from gsec_core.curation.run import curated_clusters
from gsec_core.errors import BadRecord
from gsec_core.results import publishing, quality
from gsec_core.stages import align, assign, describe, duplicates, encode, lineage, publish, refit, report
from gsec_core.stages.base import Context
from gsec_core.store import Finished, Shards, Store
from gsec_core.store.publications import pipeline_of
from gsec_core.store.runs import now
from gsec_core.tables import ASSIGNED_TABLE, ASSIGNMENTS_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE, MISSING, REJECTED


def finish(context: Context) -> dict[str, Any]:
    """Finish a run: record its `summary`, publish it, and record for its pipeline that a run has finished, even if it was finished before.

    Any process may do this, and repeat it. Returns the summary with the fields of `publishing.Verdict`.

    The first call records the result; later calls read the recorded result instead of computing it again, after reading all assignments as a check.
    Raises BadShard if these are damaged.
    """
    found = context.run.result() or {}
    if "labellings" in found:
        shards, parts = context.run.table(ASSIGNMENTS_TABLE)
        for _ in shards.read_each(parts):
            pass
        said = {**{name: found[name] for name in _FOUND}, **_places(context)}
    else:
        said = summary(context)
    said |= asdict(publishing.publish(context, said))
    if context.of_run is None:
        told = (*_FOUND, "published", "why_not", "warnings")
        context.run.finish({name: said[name] for name in told} | {"agreement": said["labellings"][0]["agreement"]})
        last = Finished(context.run.id, context.corpus.name, said["held"], now())
        Store(context.run.files).publications.note_finished(pipeline_of(context.config, context.corpus.name), last)
    else:
        context.run.finish({name: said[name] for name in ("images", "rejected", "missing")})
    return said


_FOUND = ("images", "rejected", "missing", "decision", "clusters", "moved", "labellings", "remarks", "descriptions")
"""Fields of a summary that do not change and are recorded."""


def summary(context: Context) -> dict[str, Any]:
    """Summary of a finished run: counts, locations of its tables, its clusters, and the consensus compared with k-means."""
    live = encode.encoded_rows(context)
    labellings = None if context.of_run else quality.without_labels(context)
    counts = Counter(live["status"].to_pylist())
    return {
        "images": live.num_rows,
        "rejected": counts[REJECTED],
        "missing": counts[MISSING],
        "decision": refit.in_words(context),
        "clusters": context.config.n_clusters,
        "moved": None if context.of_run else lineage.moved(context),
        "labellings": labellings,
        "remarks": [*(quality.remarks(context, labellings) if labellings else []), *encode.remarks(context), *duplicates.remarks(context)],
        "descriptions": None if context.of_run or context.keeps else {"model": captioner_model(context.config.describe), **describe.told(context)},
        **_places(context),
    }


def _places(context: Context) -> dict[str, Any]:
    """Id of a finished run, locations of its tables, and its clusters."""
    return {
        "run_id": context.run.id,
        "assignments": context.run.files.location(assignments(context).directory),
        "cluster_table": clusters(context).location("all"),
        "report": None if context.of_run else report.index(context),
        "cluster_rows": cluster_rows(context),
    }


def assignments(context: Context) -> Shards:
    """The assignments of a run: by its consensus, or of new images to the clusters of another run."""
    if context.of_run is not None:
        return context.shards(assign.STAGE, ASSIGNED_TABLE)
    return context.shards(align.STAGE, ASSIGNMENTS_TABLE)


def clusters(context: Context) -> Shards:
    """The cluster table that the run's assignments refer to."""
    return (context.of_run or context).shards(align.STAGE, CLUSTERS_TABLE)


def cluster_rows(context: Context) -> list[dict[str, Any]]:
    """The cluster table with keys and names, as one dictionary per row. With curation, names are the curated ones, with the model's in ``model_name``.

    A cluster that people merged into another has the name of that one. If the run assigns images to the clusters of another, ``assigned`` is the number of its
    images in each.
    """
    model = context.of_run or context
    names = model.read(publish.STAGE, CLUSTER_NAMES_TABLE, ["name", "description"]).to_pylist()
    keys = lineage.keys_of(model.run).tolist()
    try:
        found = curated_clusters(context)
    except BadRecord:  # publishing reports it
        found = None
    if found is not None:
        now = [found.of_model(key) for key in keys]
        names = [{"name": one.name, "model_name": name["name"], "description": one.description} for one, name in zip(now, names, strict=True)]
    if context.of_run is not None:
        into = context.run.read_table(ASSIGNED_TABLE, ["cluster"])["cluster"].to_numpy()
        names = [{**name, "assigned": count} for name, count in zip(names, np.bincount(into, minlength=len(names)).tolist(), strict=True)]
    return [
        {"cluster": row.pop("cluster"), "key": key, **name, **row}
        for row, key, name in zip(clusters(context).read("all").to_pylist(), keys, names, strict=True)
    ]
