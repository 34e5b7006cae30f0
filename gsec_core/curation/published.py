"""What ``published/PIPELINE.json`` says of the clusters that a pipeline publishes, as people have curated them."""

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
    """Write the file again, if it is not what the log makes of what is published; nothing if nothing is.

    The process that added an act may have been killed before this: the next act, and the next run that is finished, make it good.
    ``context``, that of a run: if it is the published one, what it has read is not read again.
    """
    store.publications.point(pipeline, partial(additions, store, context))


def additions(store: Store, context: Context | None, newest: Publication, now: Mapping[str, Any]) -> Mapping[str, Any]:
    """``clusters`` and ``curated`` for what is published; ``now`` is what the file says of it at present, and stays if there is no act since.

    A damaged log does not keep a run from being published: then ``clusters`` are the model's own, and ``curated`` says what is wrong.
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


def remark(curated: Mapping[str, Any] | None) -> str | None:
    """What people are to know of the curation of what is published; ``curated`` is that of the file. None if all is well."""
    if not curated:
        return None
    if curated.get("error"):
        return f"The names are the model's own, as the curation log cannot be read: {curated['error']}"
    if curated.get("open"):
        return f"{curated['open']} of {curated['acts']} curation acts cannot be applied to these clusters: gsec curate log shows which, and why."
    return None
