"""The curated clusters in ``published/PIPELINE.json``, for programs that read the result of a pipeline."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from gsec_core.curation.log import Log
from gsec_core.curation.replay import Curated, replay
from gsec_core.curation.run import curated, load_model
from gsec_core.errors import BadRecord
from gsec_core.stages.base import Context
from gsec_core.store import Publication, Run, Store


def tell(store: Store, pipeline: str, context: Context | None = None) -> None:
    """Update the file if it is not in line with the log and the newest publication. Does nothing if nothing is published.

    A process that added an act may be killed before this; the next act, or the next finished run, then updates the file.
    ``context`` is that of any run: if it is the published run, the tables it has in memory are used.
    """
    store.publications.point(pipeline, partial(additions, store, context))


def additions(store: Store, context: Context | None, newest: Publication, now: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields ``clusters`` and ``curated`` for the newest publication. ``now`` has their current values, and is returned if no act was added since.

    A damaged log does not keep a run from being published: then ``clusters`` are the model's own, and ``curated`` contains the error.
    """
    log = Log(store.files, newest.pipeline)
    numbers, before = log.numbers(), now.get("curated")
    as_now = {"acts": len(numbers), "last": max(numbers, default=0), "error": None}
    if "clusters" in now and isinstance(before, dict) and before.items() >= as_now.items():
        return now
    if context is None or context.run.id != newest.run_id:
        run = Run(store.files, newest.run_id)
        context = Context.of(run, run.config())
    try:
        found = curated(context)
        about: dict[str, Any] = {"acts": found.acts, "open": len(found.open), "last": found.last, "error": None}
    except BadRecord as error:
        found = replay([], load_model(context))
        about = {"acts": len(numbers), "open": None, "last": max(numbers), "error": str(error)}
    return {"clusters": _rows(found), "curated": about}


def _rows(found: Curated) -> list[dict[str, Any]]:
    return [
        {"key": row.key, "name": row.name, "description": row.description, "size": row.size, "hidden": row.hidden, "starred": row.starred}
        for row in found.clusters
    ]


def remarks(store: Store, pipeline: str) -> list[str]:
    """Warnings about the curation of the published clusters, by the file; none if there is no problem."""
    curated = store.publications.pointer(pipeline).get("curated") or {}
    if curated.get("error"):
        return [f"The names are the model's own, as the curation log cannot be read: {curated['error']}"]
    if curated.get("open"):
        return [f"{curated['open']} of {curated['acts']} curation acts cannot be applied to these clusters: gsec curate log shows which, and why."]
    return []
