"""Artifacts of a run on the dashboard: its clusters, its stages, rejected images, and a link to its report."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.events import emit_event

from gsec_core.results import publishing
from tasks.progress import shown

REPORTS = "GSEC_REPORTS_URL"
"""Environment variable with the address of the report server, for links on the dashboard."""

MOST_ROWS = 1_000
"""Maximal number of rows of a table on the dashboard; the report and the store's tables have all."""

_COUNTS = ("shards", "there", "seconds")


def show_run(summary: Mapping[str, Any], reasons: Iterable[Mapping[str, Any]]) -> None:
    """Create the artifacts of a finished run. ``summary`` is that of `flows.pipeline.run_pipeline`; ``reasons`` tell why images have no cluster."""
    run, report = summary["run_id"], summary["report"]
    where = report_url(run) if report else None
    about = f"of run {run}. Report: {where or report or 'that of the run whose clusters they are'}"
    if where:
        shown(create_link_artifact, where, link_text="the report", key="report", description=f"The report of run {run}.")
    _table("clusters", summary["cluster_rows"], f"The {min(MOST_ROWS, summary['clusters'])} largest of {summary['clusters']} clusters {about}")
    _table("stages", list(_stages(summary["made"])), f"What was made now {about}")
    _table("rejects", list(reasons), f"Images without a cluster {about}")
    if summary["descriptions"]:
        _table("descriptions", [summary["descriptions"]], f"The descriptions of run {run}, and what they cost, also in earlier runs.")
    if summary["decision"]:
        shown(create_markdown_artifact, plain(summary["decision"]), key="model", description=f"What happened to the published model in run {run}.")
    if warnings := publishing.told(summary):
        shown(create_markdown_artifact, "\n".join(f"* {plain(warning)}" for warning in warnings), key="warnings", description=f"Run {run}.")


def tell(summary: Mapping[str, Any], pipeline: str) -> None:
    """Emit an event for automations: ``gsec.clustering.published``, ``.held`` or ``.kept``, and also ``.moved`` if too many images moved."""
    what = "published" if summary["replaces"] else "held" if summary["held"] else "kept"
    facts = {name: summary[name] for name in ("run_id", "images", "rejected", "missing", "clusters", "moved", "warnings", "why_not")}
    for event in [what, *(["moved"] if summary["moved_far"] else [])]:
        shown(emit_event, f"gsec.clustering.{event}", resource={"prefect.resource.id": f"gsec.pipeline.{pipeline}"}, payload=facts)


def show_deletions(store: str, deletions: Sequence[tuple[str, str]], dry_run: bool) -> None:
    """Create the artifact of maintenance: the files that were deleted, or would be."""
    rows = [{"path": path, "why": why} for path, why in deletions]
    _table("deletions", rows, f"{len(rows)} {'would be deleted' if dry_run else 'were deleted'} of {store}.")


def report_url(run: str) -> str | None:
    """Address of a run's report on the report server; None if the environment names no server."""
    base = os.environ.get(REPORTS)
    return f"{base.rstrip('/')}/runs/{run}/report/index.html" if base else None


def _stages(made: Mapping[str, Mapping[str, float]]) -> Iterable[dict[str, Any]]:
    for stage, sums in made.items():
        seconds, shards = sums.get("seconds", 0), int(sums.get("shards", 0))
        counts = ", ".join(f"{name} {value:,.6g}" for name, value in sums.items() if name not in _COUNTS)
        row = {"stage": stage, "shards made": shards, "shards there": int(sums.get("there", 0)), "seconds": round(seconds, 1)}
        images = sums.get("encoded", sums.get("requests", 0))
        yield row | {"a second": round(images / seconds, 1) if seconds and images else None, "counts": counts}


def _table(key: str, rows: Iterable[Mapping[str, Any]], about: str) -> None:
    cut = [{name: plain(value) for name, value in row.items()} for row in list(rows)[:MOST_ROWS]]
    if cut:
        shown(create_table_artifact, cut, key=key, description=about)


def plain(value: object) -> object:
    """Make the dashboard show a text literally. It renders cells as Markdown and HTML, so that a caption could make it fetch a picture from anywhere.

    An invisible word joiner is put after each character that could begin a tag or an address. Entities would be shown as they are written.
    """
    return re.sub(r"[<\]]|:(?=//)", "\\g<0>\u2060", value) if isinstance(value, str) else value
