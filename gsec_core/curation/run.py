"""The curated clustering of a run. Reads its tables and the log of its pipeline; imports no torch."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gsec_core.curation.log import Log
from gsec_core.curation.replay import Curated, Model, Named, replay
from gsec_core.stages.base import Context, once
from gsec_core.stages.canonical import load_embeddings, usable
from gsec_core.store import Run
from gsec_core.store.publications import pipeline_of
from gsec_core.tables import ASSIGNED_TABLE, ASSIGNMENTS_TABLE, CLUSTER_NAMES_TABLE, LINEAGE_TABLE


@once
def log_of(context: Context) -> Log:
    """The curation log for a run's clusters: that of its pipeline, or, if it only assigns, of the pipeline of the run whose clusters it uses."""
    model = context.of_run or context
    return Log(context.run.files, pipeline_of(model.config, model.corpus.name))


def curated(context: Context) -> Curated:
    """The clustering of a finished run as people have curated it, in the order of `usable`.

    If the run assigns images to another run's clusters, acts on single images are about that run's images, so they are left out of ``open``.
    Raises Refused if a table is not complete, BadRecord if a file of the log is damaged, BadShard.
    """
    found = replay(log_of(context).read(), load_model(context))
    if context.of_run is None:
        return found
    return replace(found, open=tuple(one for one in found.open if not one.act.images))


def curated_clusters(context: Context) -> Curated | None:
    """The curated clusters without images, so all sizes are 0; None if the log is empty. Raises as `curated` does."""
    acts = log_of(context).read()
    return replay(acts, _without_images((context.of_run or context).run)) if acts else None


@once
def load_model(context: Context) -> Model:
    """The clustering of a run before curation. Raises as `curated` does."""
    rows = usable(context).rows
    labels = context.run.read_table(ASSIGNMENTS_TABLE if context.of_run is None else ASSIGNED_TABLE, ["cluster"])["cluster"].to_numpy()
    clusters = _clusters((context.of_run or context).run)

    def embeddings(of: NDArray[np.int64]) -> NDArray[np.float16]:
        return load_embeddings(context)[of]

    keys = np.array([cluster.key for cluster in clusters], np.int32)[labels]
    ids, hashes = (rows[name].combine_chunks() for name in ("image_id", "content_hash"))
    if context.of_run is not None:  # an image of the other run may have the same URI and bytes, and is another image
        ids, hashes = ids[:0], hashes[:0]
    return Model(ids, hashes, keys, clusters, context.config.encode.encoder, embeddings)


def _without_images(run: Run) -> Model:
    none = pa.array([], pa.binary(16))
    return Model(none, none, np.empty(0, np.int32), _clusters(run), run.config().encode.encoder, lambda rows: np.empty((0, 0), np.float16))


def _clusters(run: Run) -> tuple[Named, ...]:
    """The clusters of a run in the order of their numbers."""
    keys, named = run.read_table(LINEAGE_TABLE, ["cluster_key"]), run.read_table(CLUSTER_NAMES_TABLE, ["name", "description"])
    columns = keys["cluster_key"], named["name"], named["description"]
    return tuple(Named(*row) for row in zip(*(column.to_pylist() for column in columns), strict=True))
