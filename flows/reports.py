"""The commands that compute nothing new: status, publish, export, report, evaluate, compare, prune.

Status, export and prune import neither torch nor Prefect; evaluate and report import what they need.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows import terminal
from flows.terminal import Json
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadShard, GsecError, Refused
from gsec_core.results import finishing
from gsec_core.results import status as state
from gsec_core.stages.base import Context
from gsec_core.store import Store
from gsec_core.store import prune as pruning
from gsec_core.tables import REPORT_TABLE

if TYPE_CHECKING:
    from gsec_core.results.formats import Format
    from gsec_core.results.images import Images

_BELOW = ("acts", "open_acts", "error")
"""Columns that are printed below the table instead of in it."""


def status(url: str, as_json: Json) -> int:
    """Print the corpora, publications, descriptions and runs of a store."""
    store = Store.open(url)
    corpora, published = state.corpora(store), state.published(store)
    descriptions, runs = state.descriptions(store), state.runs(store)
    if as_json:
        as_json({"store": store.url, "corpora": corpora, "published": published, "descriptions": descriptions, "runs": runs})
        return 0
    if not corpora:
        terminal.out.print(f"{store.url} holds no corpus yet.")
        return 0
    for title, rows in (("corpora", corpora), ("published", published)):
        if rows:
            shown = [{name: value for name, value in row.items() if name not in _BELOW} for row in rows]
            terminal.out.print(terminal.table(title, [{**row, "at": terminal.minute(row["at"])} if row.get("at") else row for row in shown]))
        for row in rows:
            if row.get("acts"):
                open_acts = "?" if row["open_acts"] is None else row["open_acts"]
                terminal.out.print(f"    {row['pipeline']}: {row['acts']} acts of curation, {open_acts} open")
            if row["error"]:
                terminal.out.print(f"    {row['error']}")
    if descriptions:
        terminal.out.print(terminal.table("descriptions", descriptions))
    for run in runs:
        done = sum(0 < stage["planned"] == stage["done"] for stage in run["stages"].values())
        begun = [f"; {name} has {stage['done']} of {stage['planned']} shards" for name, stage in run["stages"].items() if stage["done"] < stage["planned"]]
        images = ", ".join(f"{count} {status}" for status, count in run["images"].items() if count)
        terminal.out.print(f"run {run['run']}  {run['state']}")
        if run["state"] == state.DAMAGED:
            terminal.out.print(f"    {run['error']}")
            continue
        terminal.out.print(f"    {run['corpus']}, generation {run['generation']}, {run['clusters']} clusters by {run['method']}, encoder {run['encoder']}")
        terminal.out.print(f"    images: {images or '-'}; requested at {terminal.minute(run['created'])}")
        terminal.out.print(f"    {done} of {len(run['stages'])} stages are done{''.join(begun)}")
        if run["decision"]:
            terminal.out.print(f"    model: {run['decision']}")
        if run["error"]:
            terminal.out.print(f"    last error: {run['error']}")
    return 0


def methods(as_json: Json) -> int:
    """Print the methods that can train the members of the ensemble."""
    from gsec_core.methods import loaded

    rows = [
        {"method": method.name, "title": method.title, "text": ", ".join(method.texts), "what it does": method.does, "paper": method.paper}
        for method in loaded().values()
    ]
    if as_json:
        as_json({"methods": rows})
    else:
        terminal.out.print(terminal.table("methods; the first text source is the default; `encoder`: a second encoder, no text", rows))
        terminal.out.print("Several methods, separated by commas as in --method gsec,tac, are combined into one consensus.")
    return 0


def publish(url: str, run_id: str, as_json: Json) -> int:
    """Publish a finished run under its pipeline because the user asks for it."""
    from gsec_core.results import publishing

    context = _context(url, run_id)
    context.run.check_stage("lineage")
    if not context.run.is_finished():
        raise Refused(f"--run {run_id}: it is not finished. The same gsec run again finishes it.")
    with _mended_by_a_run():
        made = publishing.publish_by_hand(context, finishing.summary(context))
    if as_json:
        as_json(asdict(made))
    else:
        terminal.out.print(f"pipeline {made.pipeline} publishes run {made.run_id} (publication {made.number})")
    return 0


def export(url: str, to: Path, images: "Images | None", encoder: bool, groups: int | None, run_id: str | None, as_json: Json) -> int:
    """Export a run's result as tables, and optionally its images, encoder and groups."""
    from gsec_core.results import export as exporting

    context = _context(url, run_id)
    with _mended_by_a_run():
        written = exporting.export(context, to, images, encoder, groups)
    then = f"to cluster with it: gsec run --encoder open_clip:local-dir:{(to / exporting.ENCODER).resolve()}" if encoder else None
    return _written(context, to, written, then, as_json)


def export_as(url: str, to: Path, format: "Format", images: "Images | None", run_id: str | None, as_json: Json) -> int:
    """Export a run's result in the format of another library."""
    from gsec_core.results import formats

    context = _context(url, run_id)
    with _mended_by_a_run():
        written = formats.write(context, to, format, images)
    return _written(context, to, written, f"to load it: {formats.load(format, to.resolve(), written)}", as_json)


def _written(context: Context, to: Path, written: Mapping[str, int], then: str | None, as_json: Json) -> int:
    """Print the result of an export; ``then`` is a line that tells how to use it."""
    from gsec_core.results.export import ENCODER
    from gsec_core.results.images import IMAGES, LOST

    if as_json:
        as_json({"run_id": context.run.id, "to": str(to.resolve()), **written})
        return 0
    terminal.out.print(f"run {context.run.id} to {to}:")
    counted = {IMAGES: "images", ENCODER: "files"}
    for name, count in written.items():
        if name != LOST:
            terminal.out.print(f"  {name}: {count:,} {counted.get(name, 'rows')}")
    if then is not None:
        terminal.out.print(then)
    if written.get(LOST):
        place = to / IMAGES if IMAGES in written else to
        terminal.err.print(f"warning: {written[LOST]:,} images are gone or have changed since they were clustered, and are not in {place}.")
    return 0


def report(url: str, to: Path | None, run_id: str | None, as_json: Json) -> int:
    """Print where a run's report is, or draw it again into the folder ``to``."""
    from gsec_core.report import collect, pages
    from gsec_core.results.files import make_folder
    from gsec_core.stages import report as stage

    context = _context(url, run_id)
    if context.of_run is not None:
        raise Refused(f"--run {context.run.id}: it assigns images to the clusters of run {context.of_run.run.id}, whose report shows them. Name that one.")
    if to is None:
        context.run.table(REPORT_TABLE)
        place = stage.index(context)
    else:
        with _mended_by_a_run():
            for page, data in pages.pages(collect.collect(context)):
                make_folder((to / page).parent)
                (to / page).write_bytes(data)
        place = str(to.resolve() / "index.html")
    if as_json:
        as_json({"run_id": context.run.id, "report": place})
    else:
        terminal.out.print(place)
    return 0


def evaluate(url: str, labels: str, column: str, run_id: str | None, as_json: Json) -> int:
    """Print the scores of a run against a file of labels."""
    from gsec_core.results import quality
    from gsec_core.sources import keyed
    from gsec_core.stages.encode import encoders_of

    context = _context(url, run_id)
    if context.of_run is not None:
        raise Refused(
            f"--run {context.run.id}: it assigns images to the clusters of run {context.of_run.run.id} and has no labelling of its own. Name that one."
        )
    with _mended_by_a_run():
        label_of = keyed.read_keyed(labels, column, setting="--labels").lookup
        scores, majorities = quality.with_labels(context, label_of), quality.majorities(context, label_of)
    config = context.config
    if as_json:
        facts = {"run_id": context.run.id, "encoder": encoders_of(context.run), "captioner": config.describe.captioner}
        as_json({**facts, "scores": scores, "clusters": majorities})
    else:
        title = f"run {context.run.id}: encoder {encoders_of(context.run)}, captions by {config.describe.captioner}"
        terminal.out.print(terminal.table(title, scores))
        terminal.out.print(terminal.table("the most frequent label of each cluster", majorities))
    return 0


def compare(config: PipelineConfig, run_ids: Sequence[str], labels: str | None, column: str, to: Path | None, as_json: Json) -> int:
    """Compare runs; print the result, and draw it as a page into the folder ``to``."""
    from gsec_core.report import pages
    from gsec_core.results import compare as comparing
    from gsec_core.results.files import make_folder
    from gsec_core.sources import keyed
    from gsec_core.stages import canonical

    store = Store.open(config.store)
    runs = [store.run(run_id) for run_id in run_ids]
    comparing.check(runs)
    label_of = keyed.read_keyed(labels, column, setting="--labels").lookup if labels is not None else None
    if to is not None:
        make_folder(to)
    first = Context.of(runs[0], config)
    with _mended_by_a_run():
        found = comparing.compare(first, runs[1:])
        scores = found.scores(label_of) if label_of is not None else []
        if to is not None:
            thumbnails = dict(canonical.thumbnails(first, [image.image_id for image in found.differing]))
            (to / "compare.html").write_bytes(pages.compared(found, scores, thumbnails))
    page = None if to is None else str(to.resolve() / "compare.html")
    rows, ari = found.rows(), found.ari.tolist()
    if as_json:
        runs_as_json = [{**row, **scored} for row, scored in zip(rows, scores or [{}] * len(rows), strict=True)]
        as_json({"corpus": found.corpus, "images": found.images.num_rows, "differ": found.differ, "runs": runs_as_json, "ari": ari, "page": page})
        return 0
    short = [run.id[:8] for run in runs]
    none = [name for name in ("empty", "left out") if not any(row[name] for row in rows)]
    shown = [{name: value for name, value in row.items() if name not in ("run", *none)} for row in rows]
    alike = [dict(zip(short, values, strict=True)) for values in ari]
    for title, part in ((f"{found.images.num_rows:,} images of corpus {found.corpus}", shown), ("how similar: ARI", alike), ("against labels", scores)):
        if part:
            terminal.out.print(terminal.table(title, [{"run": id, **row} for id, row in zip(short, part, strict=True)]))
    if page is not None:
        terminal.out.print(page)
    return 0


def _context(url: str, run_id: str | None) -> Context:
    """Context of a run of a store; without an id, of the newest finished run."""
    from gsec_core.results.frames import find_run

    run = find_run(Store.open(url), run_id)
    return Context.of(run, run.config())


@contextmanager
def _mended_by_a_run() -> Iterator[None]:
    try:
        yield
    except BadShard as error:
        raise GsecError(f"{error}. The next gsec run of its source repairs it.") from None


def prune(url: str, keep_runs: int, dry_run: bool) -> int:
    """Delete what nobody needs, or with ``dry_run`` only print it."""
    count = 0
    for deletion in pruning.plan(Store.open(url), keep_runs):
        if not (dry_run or deletion.carry_out()):
            continue
        count += 1
        terminal.out.print(f"{'would be pruned' if dry_run else 'pruned'}  {deletion.path}: {deletion.why}")
    terminal.out.print(f"{count} files {'would be' if dry_run else 'were'} deleted or rewritten.")
    return 0
