"""The commands that look. Status and prune import neither torch nor Prefect; evaluate and doctor what they need."""

import importlib
from collections.abc import Callable
from typing import Any

from flows import terminal
from gsec_core import prune as pruning
from gsec_core import status as state
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadShard, GsecError, Refused
from gsec_core.store import Run, Store

Json = Callable[[dict[str, Any]], None]


def status(url: str, as_json: Json | None) -> int:
    """Corpora and runs of a store."""
    store = Store.open(url)
    corpora, runs = state.corpora(store), state.runs(store)
    if as_json:
        as_json({"store": store.url, "corpora": corpora, "runs": runs})
        return 0
    if not corpora:
        terminal.out.print(f"{store.url} holds no corpus yet.", markup=False)
        return 0
    terminal.out.print(terminal.table("corpora", corpora))
    for run in runs:
        stages = ", ".join(f"{name} {stage['done']}/{stage['planned']}" for name, stage in run["stages"].items())
        images = ", ".join(f"{count} {status}" for status, count in run["images"].items() if count)
        terminal.out.print(f"run {run['run']}  {run['state']}", markup=False)
        terminal.out.print(f"    {run['corpus']}, generation {run['generation']}, {run['clusters']} clusters, encoder {run['encoder']}", markup=False)
        terminal.out.print(f"    shards: {stages}; images: {images or '-'}; {run['attempts']} attempts since {run['created']}", markup=False)
        if run["error"]:
            terminal.out.print(f"    last error: {run['error']}", markup=False)
    return 0


def evaluate(url: str, labels: str, column: str, run_id: str | None, as_json: Json | None) -> int:
    """Scores of a run against a file of labels."""
    from gsec_core import keyed, quality
    from gsec_core.stages.base import Context

    store = Store.open(url)
    run = store.run(run_id) if run_id is not None else _newest_finished(store)
    context = Context.of(run, run.config())
    if context.of_run is not None:
        raise Refused(f"--run {run.id}: it assigns images to the clusters of run {context.of_run.run.id} and has no labelling of its own. Name that one.")
    try:
        rows = quality.with_labels(context, keyed.read_keyed(labels, column, setting="--labels").lookup)
    except BadShard as error:
        raise GsecError(f"{error}. The next gsec run of its source mends it.") from None
    config = context.config
    if as_json:
        as_json({"run_id": run.id, "encoder": config.encode.encoder, "captioner": config.describe.captioner, "scores": rows})
    else:
        title = f"run {run.id}: encoder {config.encode.encoder}, captions by {config.describe.captioner}"
        terminal.out.print(terminal.table(title, rows))
    return 0


def _newest_finished(store: Store) -> Run:
    for run in reversed(store.runs()):
        if run.is_finished() and not run.request().get("of_run"):
            return run
    raise Refused(f"--store {store.url}: it holds no finished run. `gsec status` shows what there is.")


def doctor(config: PipelineConfig, verify: bool) -> int:
    """One line a check; 1 if one of them fails."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("packages", _packages),
        ("store", lambda: _store(config)),
        ("encoder", lambda: _encoder(config)),
        ("captioner", lambda: _captioner(config)),
        ("Prefect", _prefect),
    ]
    if verify:
        checks.append(("shards", lambda: _shards(config)))
    failed = 0
    for name, check in checks:
        try:
            terminal.out.print(f"ok    {name}: {check()}", markup=False)
        except Exception as error:  # noqa: BLE001 - what is wrong is what a check is to say
            failed += 1
            terminal.out.print(f"FAIL  {name}: {error}", markup=False)
    return 1 if failed else 0


def prune(url: str, keep_runs: int, dry_run: bool) -> int:
    """Delete what nobody needs, or say what that is."""
    deletions = pruning.plan(Store.open(url), keep_runs)
    for deletion in deletions:
        if not dry_run:
            deletion.carry_out()
        terminal.out.print(f"{'would delete' if dry_run else 'deleted'}  {deletion.path}: {deletion.why}", markup=False)
    terminal.out.print(f"{len(deletions)} files {'would be' if dry_run else 'were'} deleted or rewritten.")
    return 0


def _packages() -> str:
    from gsec_core.pipeline import provenance

    versions = provenance(PipelineConfig())["versions"]
    for module in ("torch", "torchvision", "faiss", "pyarrow", "polars"):
        importlib.import_module(module)
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _store(config: PipelineConfig) -> str:
    store = Store.open(config.store)
    store.check_writable()
    return f"{store.url} can be written; {len(store.corpora())} corpora, {len(store.runs())} runs"


def _encoder(config: PipelineConfig) -> str:
    from gsec_core.stages.encode import loaded_encoder

    encoder = loaded_encoder(config)
    joint = f", {encoder.joint_dim} shared with text" if encoder.joint_dim else ""
    return f"{config.encode.encoder}: {encoder.dim} dimensions{joint}"


def _captioner(config: PipelineConfig) -> str:
    from gsec_core.captioners import load_captioner

    captioner = load_captioner(config.describe, device=config.encode.device, threads=config.threads)
    captioner.check()
    return f"{config.describe.captioner} can be asked, {captioner.concurrency} at once"


def _prefect() -> str:
    """The versions that pip picks by itself can leave Prefect broken; a flow that runs is the only proof."""
    from prefect import flow
    from prefect.settings import PREFECT_API_URL

    @flow(name="gsec-doctor", persist_result=False)
    def nothing() -> str:
        return "a flow ran"

    return f"{nothing()} on {PREFECT_API_URL.value() or 'a temporary server of this process'}"


def _shards(config: PipelineConfig) -> str:
    damaged = state.verify(Store.open(config.store))
    if damaged:
        raise GsecError(f"{len(damaged)} damaged: {'; '.join(damaged)}. The next run of their corpus makes them anew; of a captions log it asks first.")
    return "every shard of every table is as it was written"
