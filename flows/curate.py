"""`gsec curate`: commands that record people's corrections of clusters. Imports neither torch nor Prefect."""

import getpass
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from flows.cli import AsJson, StoreUrl, json_output, settings_of
from gsec_core.errors import Refused
from gsec_core.stages.base import Context
from gsec_core.store import Store
from gsec_core.store.publications import pipeline_of

if TYPE_CHECKING:
    from gsec_core.curation import Act

app = App(name="curate", help="Correct clusters: rename, merge, split, move, hide. Corrections apply to all later runs too.")

Key = Annotated[int, Parameter(help="The cluster's key, as reports and tables show it.")]
Cluster = Annotated[int | None, Parameter(name=["--cluster", "-c"], help="A cluster's key, instead of images.")]
Images = Annotated[str, Parameter(help="Images: their URIs as in the table of assignments, or their ids in hex digits.")]

_ID = re.compile(r"[0-9a-f]{32}")

_OF_BOTH = ("hide", "show", "star", "unstar")
"""Acts on images, or on a cluster."""


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Options of every command: the run, and the form of the output."""

    store: StoreUrl = None
    pipeline: Annotated[str | None, Parameter(help="The pipeline. Default: the store's only pipeline, if it has one.")] = None
    run: Annotated[str | None, Parameter(help="A finished run: its id, or the beginning of its id. Default: the published run.")] = None
    as_json: AsJson = False


@Parameter(name="*")
@dataclass(frozen=True)
class Said(Where):
    """Options of every act: who says it, and why."""

    who: Annotated[str | None, Parameter(help="Your name, for the log. Default: the login name.")] = None
    why: Annotated[str | None, Parameter(help="A reason, for the log.")] = None


@app.command
def rename(key: Key, name: Annotated[str, Parameter(help="At most 200 characters. No other cluster may have this name.")], *, said: Said | None = None) -> int:
    """Rename a cluster to NAME."""
    return _add("rename", said, key=key, text=name)


@app.command
def describe(key: Key, text: Annotated[str, Parameter(help="At most 2,000 characters.")], *, said: Said | None = None) -> int:
    """Set the description of a cluster to TEXT."""
    return _add("describe", said, key=key, text=text)


@app.command
def merge(
    *keys: Annotated[int, Parameter(help="Keys of the clusters. The first cluster keeps its key and name; the others become part of it.")],
    said: Said | None = None,
) -> int:
    """Merge several clusters into one."""
    return _add("merge", said, key=keys[0] if keys else None, keys=keys[1:])


@app.command
def split(key: Key, parts: Annotated[int, Parameter(help="Number of parts.")], *, said: Said | None = None) -> int:
    """Split a cluster into PARTS parts by how its images look. The largest part keeps the key and the name; the others get new keys."""
    return _add("split", said, key=key, parts=parts)


@app.command
def move(key: Key, *images: Images, said: Said | None = None) -> int:
    """Move images to a cluster."""
    return _add("move", said, key=key, images=images)


@app.command
def hide(*images: Images, cluster: Cluster = None, said: Said | None = None) -> int:
    """Hide images, or a cluster with all its images."""
    return _add("hide", said, key=cluster, images=images)


@app.command
def show(*images: Images, cluster: Cluster = None, said: Said | None = None) -> int:
    """Show hidden images, or a hidden cluster, again."""
    return _add("show", said, key=cluster, images=images)


@app.command
def star(*images: Images, cluster: Cluster = None, said: Said | None = None) -> int:
    """Star images, or a cluster."""
    return _add("star", said, key=cluster, images=images)


@app.command
def unstar(*images: Images, cluster: Cluster = None, said: Said | None = None) -> int:
    """Take the star away from images, or from a cluster."""
    return _add("unstar", said, key=cluster, images=images)


@app.command
def undo(number: Annotated[int, Parameter(help="Number of the act, as `gsec curate log` shows it.")], *, said: Said | None = None) -> int:
    """Undo an act, as if it had never been made. To bring it back, undo the undo."""
    return _add("undo", said, undoes=number)


@app.command
def log(*, where: Where | None = None) -> int:
    """List all acts: what each corrects, who made it and when, and whether it can be applied to the run's clusters."""
    from flows import terminal
    from gsec_core.curation import curated, log_of

    where = where or Where()
    context = _context(where)
    found, acts, pipeline = curated(context), log_of(context).read(), log_of(context).pipeline
    reasons = {one.act.number: one.why for one in found.open}
    if out := json_output(where.as_json):
        rows = [{**_told(act), "open": reasons.get(act.number), "undone_by": found.undone.get(act.number)} for act in acts]
        out({"pipeline": pipeline, "run_id": context.run.id, "acts": rows, "open": len(found.open)})
        return 0
    for act in acts:
        state = f"  OPEN: {reasons[act.number]}" if act.number in reasons else ""
        if act.number in found.undone:
            state = f"  undone by {found.undone[act.number]}"
        why = f" ({act.why})" if act.why else ""
        terminal.out.print(f"{act.number:>5}  {terminal.minute(act.at)}  {act.who}: {in_words(act)}{why}{state}")
    terminal.out.print(f"{len(acts)} act{'' if len(acts) == 1 else 's'} in pipeline {pipeline}, {len(found.open)} open in run {context.run.id}")
    return 0


def in_words(act: "Act") -> str:
    """An act on one line, as a user would type it."""
    if act.unknown:
        return f"{act.kind} (from a newer gsec)"
    words = [act.kind, *([str(act.key)] if act.key is not None else []), *([f'"{act.text}"'] if act.text is not None else [])]
    if act.kind == "split":
        return f"{' '.join(words)} {len(act.keys) + 1}, making {', '.join(map(str, act.keys))}"
    if act.images:
        words.append(act.images[0].id if len(act.images) == 1 else f"{len(act.images)} images")
    return " ".join([*words, *map(str, act.keys), *([str(act.undoes)] if act.undoes is not None else [])])


def _add(kind: str, said: Said | None, **what: Any) -> int:
    from flows import terminal
    from gsec_core.curation import add, log_of

    said = said or Said()
    context = _context(said)
    if what.get("images"):
        what["images"] = _ids(context, kind, what["images"])
    act = add(context, kind, who=_login() if said.who is None else said.who, why=said.why, **what)
    if out := json_output(said.as_json):
        out({"pipeline": log_of(context).pipeline, "run_id": context.run.id, **_told(act)})
    else:
        terminal.out.print(f"act {act.number} of pipeline {log_of(context).pipeline}: {in_words(act)}")
    return 0


def _told(act: "Act") -> dict[str, Any]:
    """An act as JSON, without the centres of a split."""
    return {name: value for name, value in asdict(act).items() if name != "centres"}


def _context(where: Where) -> Context:
    """Context of the run that is curated: the named one, or the published one."""
    store = Store.open(settings_of(store=where.store).store)
    run = store.run(_published(store, where.pipeline) if where.run is None else where.run)
    context = Context.of(run, run.config())
    pipeline = pipeline_of(context.config, context.corpus.name)
    if where.run is not None and where.pipeline not in (None, pipeline):
        raise Refused(f"--pipeline {where.pipeline}: run {run.id} is of pipeline {pipeline}. Leave out one of the two.")
    return context


def _published(store: Store, pipeline: str | None) -> str:
    if pipeline is None:
        names = store.publications.pipelines()
        if len(names) != 1:
            said = f"it publishes {', '.join(names)}. Give one as --pipeline" if names else "nothing is published. Name a finished run with --run"
            raise Refused(f"--store {store.url}: {said}.")
        [pipeline] = names
    newest = store.publications.newest(pipeline)
    if newest is None:
        raise Refused(f"--pipeline {pipeline}: {store.url} publishes nothing under that name. gsec status shows what it publishes.")
    store.check_there(newest)
    return newest.run_id


def _ids(context: Context, kind: str, named: Sequence[str]) -> list[str]:
    """Convert URIs or ids of images to image ids (hex digits). Raises Refused for a URI that no usable image has."""
    import polars as pl

    from gsec_core.stages.canonical import usable

    uris = [name.encode(errors="replace").decode() for name in named]  # no URI has the bytes of a file name that are not UTF-8
    rows = pl.DataFrame(usable(context).rows.select(["image_id", "uri"])).filter(pl.col("uri").is_in(uris))
    ids = dict(rows.select("uri", pl.col("image_id").bin.encode("hex")).iter_rows())
    for name in named:
        if name not in ids and not _ID.fullmatch(name):
            missing = f'image "{name}": run {context.run.id} has no usable image of this URI.'
            if kind in _OF_BOTH and name.isdecimal():
                raise Refused(f"{missing} If you mean cluster {name}, write: --cluster {name}")
            raise Refused(f"{missing} Give it as in the table of assignments, or give its id.")
    return [ids.get(name, name) for name in named]


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise Refused("--who: this process has no login name. Give your name.") from None
