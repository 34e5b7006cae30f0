"""The commands that compute: run, assign, and one stage. Prefect is imported only if there is something to do."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from flows import terminal
from flows.orchestrator import orchestrator
from flows.terminal import Json
from gsec_core import pipeline
from gsec_core.config import AUTO, PipelineConfig, with_runtime
from gsec_core.errors import BadShard, GsecError, without_secrets
from gsec_core.results import finishing, publishing, quality
from gsec_core.stages import base, count, describe, offline, publish, report
from gsec_core.store import Run, Store

DONE, HELD = 0, 3


def run(config: PipelineConfig, redo: list[str], as_json: Json, then: Callable[[base.Context], None] | None = None, of_run: str | None = None) -> int:
    """Run the whole pipeline; ``then`` is called with the context of the finished run. Returns the exit code."""
    started = time.monotonic()
    counting, summary = _done(config, redo, of_run)
    if summary is not None:
        terminal.err.print(f"run {summary['run_id']} is finished and nothing has changed: nothing to do.")
    else:
        summary = _run_flow(config, redo, of_run)
    context = base.Context.of(Store.open(config.store).run(summary["run_id"]), config)
    summary["seconds"] = round(time.monotonic() - started, 1)
    terminal.warn(publishing.told(summary))
    if config.clusters == AUTO:
        _show_counts(base.Context.of(counting or Store.open(config.store).run(summary["counting"]), config))
    _show(context, summary)
    if then is not None:
        then(context)
    _show_places(context, summary)
    if as_json:
        as_json({key: summary[key] for key in JSON_KEYS})
    return HELD if summary["held"] else DONE


def assign(config: PipelineConfig, run_id: str, as_json: Json) -> int:
    """Assign the images of the source in ``config`` to the clusters of a run. Returns the exit code."""
    of_run = Store.open(config.store).run(run_id)
    return run(pipeline.assignment_config(of_run, config), [], as_json, of_run=of_run.id)


JSON_KEYS = (
    "run_id",
    "images",
    "rejected",
    "missing",
    "decision",
    "clusters",
    "assignments",
    "cluster_table",
    "report",
    "moved",
    "published",
    "why_not",
    "warnings",
    "remarks",
    "seconds",
)


def run_ingest(config: PipelineConfig, run_id: str | None, redo: bool, as_json: Json) -> int:
    """List the images of the source in ``config``, or of the run ``run_id``. Returns the exit code."""
    of_run = counting = None
    if run_id is not None:
        found = Store.open(config.store).run(run_id)
        config, of_run, counting = with_runtime(found.asked(), config), found.request().get("of_run"), found.request().get("counting")
    pipeline.check_redo(["ingest"] if redo else [], config)
    with _watched():
        from flows.ingest import ingest

        made, counts = ingest(config, [], of_run, counting)
    terminal.err.print(f"run {made}")
    if as_json:
        as_json({"run_id": made, **counts})
    return DONE


def run_one_stage(name: str, config: PipelineConfig, run_id: str | None, redo: bool, as_json: Json, retry_failed: bool = False) -> int:
    """Do what is missing of a stage after ingest, in the run ``run_id`` or in the run that ``config`` requests. Returns the exit code."""
    with _damage_set_aside(config):
        found, failed = pipeline.run_for_stage(name, config, run_id, redo, retry_failed)
    if retry_failed and not failed:
        terminal.err.print("no description has failed: there is nothing to request again.")
    sums = _stage_flow(with_runtime(found.config(), config), found, name)
    if not sums["shards"]:
        terminal.err.print(f"stage {name}: nothing is missing.")
    held = name == report.STAGE.name and _publish(base.Context.of(found, config))  # report is the last stage
    terminal.err.print(f"run {found.id}")
    if as_json:
        as_json({"run_id": found.id, **sums})
    return HELD if held else DONE


def _publish(context: base.Context) -> bool:
    """Finish and publish a run whose stages were done one by one. Returns whether it was held back."""
    said = finishing.finish(context)
    terminal.warn(publishing.told(said))
    return bool(said["held"])


def describe_offline(config: PipelineConfig, run_id: str | None, export: Path | None, import_: Path | None, as_json: Json) -> int:
    """The parts of describe that ask no server. Returns the exit code.

    With ``export``, write the remaining requests into this file; with ``import_``, read replies from this file; else estimate what is left to ask.
    """
    name = describe.STAGE.name
    found, _ = pipeline.run_for_stage(name, config, run_id)
    context = base.Context.of(found, config)
    if export is not None:
        done: dict[str, Any] = offline.export(context, export)
        terminal.err.print(f"{export}: {_words(done)}. Then: vllm run-batch -i {export} -o REPLIES --model MODEL")
    elif import_ is not None:
        done = offline.import_(context, import_)
        terminal.err.print(f"{import_}: {_words(done)}. Ask for the rest with gsec stage describe --run {found.id}")
    else:
        done = describe.plan(context)
        tokens = f"about {done['prompt_tokens']:,} tokens of prompts and {done['completion_tokens']:,} of replies ({done['basis']})"
        terminal.err.print(f"describe: {done['calls']:,} calls are left, {tokens}")
    if as_json:
        as_json({"run_id": found.id, **done})
    return DONE


def _done(config: PipelineConfig, redo: list[str], of_run: str | None) -> tuple[Run | None, dict[str, Any] | None]:
    """The run that found the number of clusters, if there is one, and the summary of `finishing.finish`, or None if something is left to do.

    A damaged shard counts as something to do, because the flow repairs it.
    """
    counting: Run | None = None
    try:
        if config.clusters == AUTO and of_run is None:
            now, later = pipeline.split_redo(redo, config)
            if before := pipeline.numbered_before(config, redo):
                counting, finished = Store.open(config.store).run(before[1]), pipeline.nothing_to_do(before[0], later)
            else:
                counting = pipeline.nothing_to_do(config, now)
                finished = counting and pipeline.nothing_to_do(pipeline.numbered_by(counting, config), later)
        else:
            finished = pipeline.nothing_to_do(config, redo, of_run)
        return counting, finishing.finish(base.Context.of(finished, config)) if finished is not None else None
    except BadShard:
        return counting, None


def _run_flow(config: PipelineConfig, redo: list[str], of_run: str | None) -> dict[str, Any]:
    number = "as many clusters as gsec finds" if config.clusters == AUTO else f"{config.n_clusters} clusters"
    into = f"the clusters of run {of_run}" if of_run else number
    terminal.err.print(without_secrets(f"starting: the images of {config.source} into {into}, store {config.store}"))
    with _watched():
        from flows.pipeline import run_pipeline

        summary = cast(dict[str, Any], run_pipeline(config, cast(list[Any], redo), of_run))
    for path in summary["set_aside"]:
        terminal.err.print(f"damaged, set aside and made again: {path}")
    return summary


def _stage_flow(config: PipelineConfig, found: Run, name: str) -> dict[str, float]:
    with _watched(), _damage_set_aside(config):
        from flows.stages import run_flow

        if name in (describe.STAGE.name, publish.STAGE.name):
            pipeline.check_servers(base.Context.of(found, config))
        return run_flow(config, found.id, name)


@contextmanager
def _watched() -> Iterator[None]:
    """Context manager in which flows can run; their progress is shown."""
    with orchestrator():
        from tasks.progress import signals_kept, watched

        with signals_kept(), terminal.watcher() as watcher, watched(watcher):
            yield


@contextmanager
def _damage_set_aside(config: PipelineConfig) -> Iterator[None]:
    """Context manager for a single stage: sets damaged shards aside, and raises GsecError with the command that makes them again."""
    try:
        yield
    except BadShard as error:
        from flows.pipeline import set_bad_aside

        set_bad_aside(config, error, [])
        raise GsecError(f"{error}. It was set aside; `gsec run` or the stage that made it makes it again.") from None


MOST_SHOWN = 40
"""Number of clusters that a terminal shows; the report and the cluster table have all."""


def _show(context: base.Context, summary: dict[str, Any]) -> None:
    found, title = summary["cluster_rows"], f"clusters of run {context.run.id}"
    if context.of_run:
        found = sorted((row for row in found if row["assigned"]), key=lambda row: -row["assigned"])
        title = f"images assigned to the clusters of run {context.of_run.run.id}"
    hidden = ("description", *(("key",) if all(row["cluster"] == row["key"] for row in found) else ()))
    rows = [{key: value for key, value in row.items() if key not in hidden} for row in found]
    terminal.err.print(terminal.table(title, rows[:MOST_SHOWN]))
    if len(rows) > MOST_SHOWN:
        terminal.err.print(f"and {len(rows) - MOST_SHOWN:,} smaller clusters")
    if summary["labellings"]:
        labellings = [{column: row.get(column) for column in quality.COLUMNS} for row in summary["labellings"]]  # a record is sorted by key
        beside = " beside plain k-means on the image embeddings" if len(labellings) > 1 else ""
        terminal.err.print(terminal.table(f"the consensus{beside}", labellings))
    for remark in summary["remarks"]:
        terminal.err.print(f"note: {remark}")


def _show_places(context: base.Context, summary: dict[str, Any]) -> None:
    assigned = summary["images"] - summary["rejected"] - summary["missing"]
    clusters = f"{summary['clusters']} clusters"
    if context.of_run:
        clusters = f"{sum(row['assigned'] > 0 for row in summary['cluster_rows'])} of {clusters}"
    counts = f"{assigned} images in {clusters}, {summary['rejected']} rejected, {summary['missing']} missing"
    terminal.err.print(f"\n{counts}; {terminal.duration(summary['seconds'])}")
    for name in ("assignments", "cluster_table", "report"):
        if summary[name]:
            terminal.err.print(f"{name.replace('_', ' '):<14} {summary[name]}")
    if not context.of_run:
        gsec = "gsec" if shutil.which("gsec") else sys.argv[0]
        serve = shlex.join([gsec, "serve", "--store", context.config.store, "--curate"])
        terminal.err.print(f"{'look into it':<14} {serve}")


def _show_counts(context: base.Context) -> None:
    rows = count.load_counts(context).to_pylist()
    found = next(row["clusters"] for row in rows if row["suggested"])
    near = [row for row in rows if row["clusters"] <= 2 * found]
    terminal.err.print(terminal.table(f"purity by number of clusters; up to {found} clusters are separated, and not more", near))


def _words(counts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:,.1f}" if isinstance(value, float) else f"{key} {value:,}" for key, value in counts.items())
