"""`gsec`: the command line. It runs the same flows as a deployment.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 3 done, but not published because something is
suspicious; 2 refused; 130 interrupted; 1 anything else.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, Token, UnusedCliTokensError, validators

from gsec_core.config import IngestConfig, PipelineConfig
from gsec_core.errors import GsecError, Refused, without_secrets
from gsec_core.section import output_settings
from gsec_core.settings import load_config

if TYPE_CHECKING:
    from gsec_core.stages.base import Context

DONE, FAILED, REFUSED = 0, 1, 2

app = App(
    name="gsec",
    help="Sorts a large collection of unlabelled images into clusters. Every stage is resumable: a rerun does only what is missing.",
    version=lambda: version("gsec"),  # by default that of a distribution `flows`, which does not exist
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` handles it
)


def _folder(kind: object, tokens: Sequence[Token]) -> Path:
    """Convert the value of an option to a folder. Raises Refused if it is empty, which `Path` takes for the current folder."""
    [token] = tokens
    if not token.value:
        raise Refused(f"{token.keyword}: it is empty. Name a folder; the current one is `.`.")
    return Path(token.value)


Source = Annotated[str, Parameter(help="A folder, a Parquet file or glob, or WebDataset tars; local or remote.")]
Clusters = Annotated[str | None, Parameter(name=["--clusters", "-k"], help="Number of clusters, or `auto`: gsec finds it from the images. Default: 10.")]
StoreUrl = Annotated[str | None, Parameter(name="--store", help="Where all tables are kept: a folder or any fsspec URL. Default: gsec-store.")]
CorpusName = Annotated[str | None, Parameter(name="--corpus", help="Name of the corpus in the store. Default: made from the source.")]
Pipeline = Annotated[
    str | None,
    Parameter(
        name="--pipeline",
        help="Name under which the clustering is published. Clusters keep the keys that they have in the last clustering published under it. "
        "Default: the corpus's name.",
    ),
]
MethodName = Annotated[
    str | None,
    Parameter(name="--method", help="Method that trains the members: one that `gsec methods` lists, or several, separated by commas. Default: gsec."),
]
Text = Annotated[
    str | None,
    Parameter(
        name="--text",
        help="Source of text: `captions`, `nouns`, `encoder` (a second encoder, text.encoder, in place of text) or `none`. "
        "Default: the first that `gsec methods` lists for the method.",
    ),
]
Encoder = Annotated[str | None, Parameter(name="--encoder", help="`lite`, or `open_clip:MODEL:PRETRAINED`. Default: lite.")]
Captioner = Annotated[
    str | None,
    Parameter(name="--captioner", help="`tagger`, `openai:MODEL` on the server at describe.url, or `table:FILE:COLUMN`. Default: tagger."),
]
FinishedRun = Annotated[
    str | None,
    Parameter(name="--run", help="The run: its id, the beginning of its id, or published/PIPELINE. Default: the newest finished run."),
]
ConfigFile = Annotated[Path | None, Parameter(name="--config", help="A TOML file of settings.")]
Set = Annotated[list[str] | None, Parameter(name="--set", negative="", help="Any setting, as section.name=value. May be repeated.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as a JSON object, on the last line of stdout.")]


@app.command
def run(
    source: Source | None = None,
    *,
    clusters: Clusters = None,
    store: StoreUrl = None,
    corpus: CorpusName = None,
    pipeline: Pipeline = None,
    method: MethodName = None,
    text: Text = None,
    encoder: Encoder = None,
    captioner: Captioner = None,
    config: ConfigFile = None,
    set_: Set = None,
    redo: Annotated[list[str] | None, Parameter(negative="", help="A stage to do again, with all stages that depend on it. May be repeated.")] = None,
    retry_failed: Annotated[bool, Parameter(negative="", help="Request the failed descriptions again, and no others.")] = False,
    as_json: AsJson = False,
) -> int:
    """Cluster the images of a source. Every stage does only the work that is missing."""
    from gsec_core.stages.describe import RETRY

    flags = {"source": source, "clusters": clusters, "store": store, "corpus": corpus, "pipeline": pipeline, "method": method}
    settings = settings_of(config, set_, encoder, captioner, text, **flags)
    return _run(settings, [*(redo or []), *([RETRY] if retry_failed else [])], as_json)


@app.command
def stage(
    name: Annotated[str, Parameter(help="`ingest`, or another stage of the pipeline.")],
    *,
    run: Annotated[str | None, Parameter(help="The run: its id, the beginning of its id, or published/PIPELINE.")] = None,
    config: ConfigFile = None,
    store: StoreUrl = None,
    set_: Set = None,
    redo: Annotated[bool, Parameter(negative="", help="Do the stage again, in a new run. The earlier run keeps its tables.")] = False,
    retry_failed: Annotated[
        bool, Parameter(negative="", help="For stage describe: request the failed descriptions again, and no others, in a new run.")
    ] = False,
    plan: Annotated[bool, Parameter(negative="", help="For stage describe: only estimate the calls and tokens that are left.")] = False,
    export_batch: Annotated[
        Path | None, Parameter(help="For stage describe: only write the requests that are left into this file, for `vllm run-batch`.")
    ] = None,
    import_batch: Annotated[
        Path | None, Parameter(help="For stage describe: only read the replies of such a batch from this file into the captions log.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Do the missing part of one stage, with the settings of a run or of a file."""
    instead = {"--redo": redo, "--retry-failed": retry_failed, "--plan": plan, "--export-batch": export_batch, "--import-batch": import_batch}
    given = [flag for flag, value in instead.items() if value]
    if len(given) > 1:
        raise Refused(f"gsec stage: {' and '.join(given)} cannot be combined. Give only one of them.")
    if given and given != ["--redo"] and name != "describe":
        raise Refused(f"gsec stage {name} {given[0]}: only stage describe takes this option.")
    if (run is None) == (config is None):
        raise Refused("gsec stage: give either --run ID or --config FILE.")
    settings = settings_of(config, set_, store=store)
    if run is not None:
        _refuse_other_output(settings, "gsec stage --run", "Give others with --config.")
    from flows import commands

    if plan or export_batch or import_batch:
        return commands.describe_offline(settings, run, export_batch, import_batch, json_output(as_json))
    if name == "ingest":
        return commands.run_ingest(settings, run, redo, json_output(as_json))
    return commands.run_one_stage(name, settings, run, redo, json_output(as_json), retry_failed)


@app.command
def publish(
    *,
    run: Annotated[str, Parameter(help="The finished run: its id, or the beginning of its id.")],
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> int:
    """Publish a run that was held back, after you have looked at it, or go back to a run that was published before."""
    from flows import reports

    return reports.publish(settings_of(store=store).store, run, json_output(as_json))


@app.command
def status(*, store: StoreUrl = None, as_json: AsJson = False) -> int:
    """Show the corpora and runs of a store, and how far each run is. Reads only the store."""
    from flows import reports

    return reports.status(settings_of(store=store).store, json_output(as_json))


@app.command
def doctor(
    *,
    store: StoreUrl = None,
    encoder: Encoder = None,
    captioner: Captioner = None,
    config: ConfigFile = None,
    set_: Set = None,
    verify: Annotated[bool, Parameter(negative="", help="Read every shard. Damaged shards are set aside, so that the next run makes them again.")] = False,
) -> int:
    """Check the environment, the store, the encoder, the captioner and Prefect, and say what to fix."""
    settings = settings_of(config, set_, store=store, encoder=encoder, captioner=captioner)
    from flows import doctor as checks

    return checks.doctor(settings, verify)


@app.command
def prune(
    *,
    store: StoreUrl = None,
    keep_runs: Annotated[int, Parameter(validator=validators.Number(gte=1), help="Number of newest runs of each corpus to keep.")] = 5,
    dry_run: Annotated[bool, Parameter(negative="", help="Only show what would be deleted.")] = False,
) -> int:
    """Delete tables and runs that are no longer needed, but nothing younger than a day, and no embeddings or descriptions of live images."""
    from flows import reports

    return reports.prune(settings_of(store=store).store, keep_runs, dry_run)


@app.command
def assign(
    source: Source,
    *,
    run: Annotated[str, Parameter(help="The run to whose clusters the images are assigned: its id, the beginning of its id, or published/PIPELINE.")],
    store: StoreUrl = None,
    corpus: CorpusName = None,
    set_: Set = None,
    as_json: AsJson = False,
) -> int:
    """Assign new images to the clusters of a run. The run and its corpus do not change."""
    from flows import commands

    settings = settings_of(settings=set_, source=source, store=store, corpus=corpus)
    of_source = settings.ingest.model_copy(update={"image_column": IngestConfig().image_column})
    _refuse_other_output(settings.model_copy(update={"ingest": of_source}), "gsec assign", "Leave them out.")
    return commands.assign(settings, run, json_output(as_json))


@app.command
def evaluate(
    *,
    labels: Annotated[
        str, Parameter(help="A CSV or Parquet file with the label of each image, and its URI in a column `uri` or its bytes in a column `image`.")
    ],
    column: Annotated[str, Parameter(help="The column with the labels.")] = "label",
    run: FinishedRun = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> int:
    """Score a run and plain k-means against labels that you have: ACC, NMI and ARI. The labels do not influence the run."""
    from flows import reports

    return reports.evaluate(settings_of(store=store).store, labels, column, run, json_output(as_json))


@app.command
def compare(
    *runs: Annotated[str, Parameter(help="Two or more finished runs of one corpus: ids, beginnings of ids, or published/PIPELINE.")],
    labels: Annotated[str | None, Parameter(help="A file with labels, as for `gsec evaluate`, to show ACC, NMI and ARI too.")] = None,
    column: Annotated[str, Parameter(help="The column with the labels.")] = "label",
    to: Annotated[
        Path | None,
        Parameter(
            converter=_folder, help="Folder in which to write compare.html: the same figures, matched clusters, and the images on which the runs differ."
        ),
    ] = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> int:
    """Compare runs on their common images: quality without labels, and how similar the runs are. Purity uses neighbours by the first run's encoder."""
    from flows import reports

    return reports.compare(settings_of(store=store), runs, labels, column, to, json_output(as_json))


@app.command
def export(
    *,
    to: Annotated[Path, Parameter(converter=_folder, help="Folder to write into, new or existing. Files of an earlier export are replaced.")],
    format_: Annotated[
        Literal["tables", "huggingface", "fiftyone", "coco", "embedding-atlas"],
        Parameter(name="--format", help="What to write: tables, or files that another library loads."),
    ] = "tables",
    images: Annotated[
        Literal["links", "copies"] | None, Parameter(help="Also write one folder for each cluster, with links to its images or copies of them.")
    ] = None,
    encoder: Annotated[
        bool, Parameter(negative="", help="Also write a folder `encoder` with the CLIP encoder that the run has adapted to its clusters, for later runs.")
    ] = False,
    groups: Annotated[
        int | None, Parameter(help="Also write a table `groups.csv`, in which the run's tree puts the clusters into this number of groups.")
    ] = None,
    run: FinishedRun = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> int:
    """Write the results of a run: assignments with names (Parquet, CSV), clusters (JSON, CSV), unusable images (CSV); or the format of another library."""
    if format_ != "tables" and (encoder or groups is not None):
        raise Refused(f"{'--encoder' if encoder else '--groups'}: --format {format_} does not include this. Use --format tables.")
    from flows import reports

    place = settings_of(store=store).store
    if format_ != "tables":
        return reports.export_as(place, to, format_, images, run, json_output(as_json))
    return reports.export(place, to, images, encoder, groups, run, json_output(as_json))


@app.command
def report(
    *,
    run: FinishedRun = None,
    to: Annotated[
        Path | None,
        Parameter(
            converter=_folder,
            help="Folder in which to write the report, drawn again from the run's tables. Default: only print where the report is in the store.",
        ),
    ] = None,
    store: StoreUrl = None,
    as_json: AsJson = False,
) -> int:
    """Print where a run's report is, or write it into a folder."""
    from flows import reports

    return reports.report(settings_of(store=store).store, to, run, json_output(as_json))


@app.command
def methods(*, as_json: AsJson = False) -> int:
    """List the methods: what each does, its paper, and the text sources that it can use."""
    from flows import reports

    return reports.methods(json_output(as_json))


@app.command
def serve(
    *,
    store: Annotated[list[str] | None, Parameter(name="--store", negative="", help="A store to show. May be repeated. Default: gsec-store.")] = None,
    host: Annotated[str, Parameter(help="Address to listen on. If other machines can reach it, set a token in GSEC_REPORTS_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on.")] = 4280,
    curate: Annotated[
        bool,
        Parameter(
            negative="",
            help="Let users rename, merge and split clusters and move images. Needs a token; if GSEC_REPORTS_TOKEN is not set and only this machine is "
            "served, gsec makes one.",
        ),
    ] = False,
) -> int:
    """Serve all runs of a store to a browser, with their images and reports, and metrics to Prometheus. Read-only without --curate."""
    from flows.serve import server

    return server.serve([settings_of(store=one).store for one in store or [settings_of().store]], host, port, curate)


@app.command
def demo(
    source: Source | None = None,
    *,
    clusters: Annotated[str | None, Parameter(name=["--clusters", "-k"], help="With SOURCE: number of clusters, or `auto`. Default: 10.")] = None,
    directory: Annotated[Path, Parameter(name="--directory", converter=_folder, help="Folder for the demo's images and its store.")] = Path("gsec-demo"),
    as_json: AsJson = False,
) -> int:
    """Cluster images that come with installed programs, or your own SOURCE. Needs no GPU, server or model hub."""
    from flows import demo as demonstration
    from flows import terminal

    store = str(directory / "store")
    if source is not None:
        return _run(settings_of(source=source, clusters=clusters, store=store), [], as_json)
    if clusters is not None:
        raise Refused("--clusters: the number of clusters of the demo's own photographs is fixed. Give --clusters together with a SOURCE.")
    shown = demonstration.prepare(directory)
    terminal.err.print(f"{shown.images}: {shown.settings['source']}")
    return _run(settings_of(**shown.settings, store=store), [], as_json, then=lambda context: demonstration.show_scores(context, shown.remark))


app.command("flows.curate:app", name="curate", help="Correct clusters: rename, merge, split, move, hide. Corrections apply to all later runs too.")

# These commands are in a layer above this one, and imported only when they are called.
app.command("deployments.commands:up", name="up", help="Run gsec as a service on this machine: start its services, and deploy the pipelines of a stack file.")
app.command("deployments.commands:down", name="down", help="Stop the services that `gsec up` started.")
app.command("deployments.commands:deploy", name="deploy", help="Deploy the pipelines of a stack file to the Prefect server at PREFECT_API_URL.")


def _run(config: PipelineConfig, redo: list[str], as_json: bool, then: "Callable[[Context], None] | None" = None) -> int:
    from flows import commands

    return commands.run(config, redo, json_output(as_json), then)


def _refuse_other_output(settings: PipelineConfig, command: str, remedy: str) -> None:
    if output_settings(settings) != output_settings(settings_of()):
        raise Refused(f"{command}: settings that change the output are taken from the run. {remedy}")


def json_output(as_json: bool) -> Callable[[dict[str, Any]], None] | None:
    """A function that prints a result as JSON; None if results are shown as text."""
    return (lambda result: print(json.dumps(result), flush=True)) if as_json else None


def settings_of(
    file: Path | None = None,
    settings: list[str] | None = None,
    encoder: str | None = None,
    captioner: str | None = None,
    text: str | None = None,
    **flags: Any,
) -> PipelineConfig:
    """The settings: ``--set`` overrides flags, these override the environment, and that overrides the file. Flags that are None are ignored."""
    values: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    if encoder is not None:
        values["encode"] = {"encoder": encoder}
    if captioner is not None:
        values["describe"] = {"captioner": captioner}
    if text is not None:
        values["text"] = {"source": text}
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise Refused(f"--set {setting}: write it as section.name=value.")
        *sections, last = name.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise Refused(f"--set {setting}: {section} is a setting, not a section.")
        place[last] = value
    return load_config(file, values)


def _quiet_prefect() -> None:
    """Set Prefect's defaults for use as a library: no log output and no telemetry. Variables that the environment sets already stay."""
    defaults = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _complain(what: str) -> None:
    """Print an error on one line of stderr, even if the message has several, and without secrets."""
    print(f"error: {without_secrets(' '.join(what.splitlines()))}", file=sys.stderr)


def _at_home(word: str) -> str:
    """Expand the ~ of ``--to=~/sorted``, which shells leave as it is: a folder called ~ would be made."""
    option, _, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if option.startswith("--") and value.startswith("~/") else word


def _print_anything() -> None:
    """Let stdout escape what its encoding lacks, as stderr does: a result with a foreign letter, or a file name that is no UTF-8, is no fault."""
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def main(arguments: list[str] | None = None) -> None:
    """The entry point: every outcome becomes an exit code, every foreseen error one sentence."""
    _quiet_prefect()
    _print_anything()
    try:
        code = app(list(map(_at_home, sys.argv[1:] if arguments is None else arguments)), exit_on_error=False, print_error=False, result_action="return_value")
    except UnusedCliTokensError as error:
        first, *more = error.unused_tokens or [""]
        others = f" and {len(more):,} more arguments are" if more else " is"
        _complain(f"{first}{others} not expected. If the shell expanded a glob, put the glob in quotes, or name the folder. See gsec --help.")
        code = REFUSED
    except CycloptsError as error:
        _complain(f"{error} See gsec --help.")
        code = REFUSED
    except GsecError as error:
        _complain(str(error))
        code = error.exit_code
    except OSError as error:
        _complain(f"{error}. What was committed stays; a rerun continues.")
        code = FAILED
    except KeyboardInterrupt:
        print("interrupted. What was committed stays; a rerun continues.", file=sys.stderr)
        code = 130
    except Exception:  # noqa: BLE001 - unforeseen errors end here; the traceback is shown
        traceback.print_exc()
        print("error: a fault in gsec, please report it. What was committed stays; a rerun continues.", file=sys.stderr)
        code = FAILED
    sys.exit(code or DONE)
