"""The pipeline as a whole: its stages in order, how a request becomes a run, and what a finished run reports.

What is here needs no orchestrator; `flows` chain the same parts as a DAG.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from gsec_core.captioners import captioner_model
from gsec_core.captioners.servers import checked_urls
from gsec_core.config import AUTO, PipelineConfig, recorded, with_runtime
from gsec_core.curation.run import curated_clusters
from gsec_core.devices import resolve
from gsec_core.errors import BadRecord, BadShard, Refused
from gsec_core.naming import namers
from gsec_core.results import publishing, quality
from gsec_core.sources import source_name
from gsec_core.sources.base import Source
from gsec_core.stages import (
    align,
    assign,
    base,
    baseline,
    count,
    describe,
    duplicates,
    encode,
    enhance,
    fuse,
    hierarchy,
    lineage,
    map,
    nouns,
    prepare,
    prototypes,
    publish,
    refit,
    report,
    text,
    train,
    vocabulary,
)
from gsec_core.stages.base import Context, Stage
from gsec_core.stages.canonical import scratch_file
from gsec_core.stages.ingest import Changes, compare, ingest, open_images
from gsec_core.store import Corpus, Run, Shards, Store
from gsec_core.store.publications import check_pipeline, pipeline_of
from gsec_core.tables import ASSIGNED_TABLE, ASSIGNMENTS_TABLE, CLUSTER_NAMES_TABLE, CLUSTERS_TABLE, EMBEDDINGS_TABLE, MISSING, OK, REJECTED

_IN_ORDER: tuple[Stage, ...] = (
    encode.STAGE,
    encode.SECOND,
    refit.STAGE,
    baseline.STAGE,
    prototypes.STAGE,
    describe.STAGE,
    fuse.STAGE,
    vocabulary.STAGE,
    nouns.STAGE,
    prepare.STAGE,
    duplicates.STAGE,
    train.STAGE,
    align.STAGE,
    enhance.STAGE,
    publish.STAGE,
    hierarchy.STAGE,
    map.STAGE,
    lineage.STAGE,
    report.STAGE,
)


def stages_of(config: PipelineConfig) -> tuple[Stage, ...]:
    """Of a run that makes clusters, in the order they run; ingest comes before them and has no tables of a run."""
    wanted = (*text.stages(config), *enhance.stages(config))
    return tuple(stage for stage in _IN_ORDER if stage in wanted or stage not in (*text.ALL_STAGES, enhance.STAGE))


COUNT_STAGES: tuple[Stage, ...] = (encode.STAGE, count.STAGE)
"""Those of a run that finds the number of clusters for another."""

ALL_STAGES = (*_IN_ORDER, assign.STAGE, count.STAGE)
"""Every stage that there is."""


def stage(name: str) -> Stage:
    """A stage by its name. Raises Refused if there is none."""
    for candidate in ALL_STAGES:
        if candidate.name == name:
            return candidate
    raise Refused(f"{name}: there is no such stage. The stages are {', '.join(s.name for s in ALL_STAGES)}.")


@dataclass(frozen=True)
class Place:
    """Where a request's images come from and go to, opened."""

    store: Store
    corpus: Corpus
    source: Source
    embeddings: tuple[Shards, ...]
    """What this request's encoders have done so far."""


def open_place(config: PipelineConfig, of_run: str | None = None) -> Place:
    """Raises Refused for a setting that some stage would stumble over, before anything is written, listed or loaded."""
    if config.source is None:
        raise Refused("source: give the place of the images: a folder, a Parquet file or glob, or WebDataset tars.")
    numbered = config.model_copy(update={"clusters": 2}) if config.clusters == AUTO else config
    identity(numbered, of_run)  # names of encoders, captioners and files
    checked_urls(config.describe.url)  # recorded with every attempt, whichever captioner describes
    vocabulary.words_of(config)  # also if no nouns are asked for, as is told of every setting that names nothing
    vocabulary.prompts_of(config)
    config.ray.check()
    resolve(config.encode.device, "encode.device")
    text.check(config)
    prepare.plan_of(numbered)
    if of_run is None:
        enhance.check(config)
    scratch_file(config).close()
    store = Store.open(config.store)
    source = open_images(config.source, config.ingest)
    corpus = store.corpus(config.corpus or source_name(config.source))
    check_pipeline(pipeline_of(config, corpus.name))
    store.check_writable()
    if of_run is None:
        publishing.published(store, config, corpus)
    redo, embeddings = corpus.redo_counters(), []
    for encoding in encode.stages(config):
        encoded = corpus.table(EMBEDDINGS_TABLE, encoding.fingerprint_of(config, redo))
        if not encoded.names():  # an encoder that has encoded exists; to ask takes seconds
            encoding.check(config)
        embeddings.append(encoded)
    return Place(store, corpus, source, tuple(embeddings))


def request(
    config: PipelineConfig, redo: Sequence[str] = (), of_run: str | None = None, counting: str | None = None, asked_by: str | None = None
) -> tuple[Run, Changes]:
    """Bring the corpus up to date with its source and make, or find again, the run of this request.

    ``redo`` names stages that are to be done again; `describe.RETRY` among them asks for descriptions that failed, if any
    did; ``asked_by`` is that of `Corpus.redo`. With ``of_run`` the images are assigned to the clusters of that run;
    ``config`` is then what `assignment_config` gives. With ``counting`` its number of clusters is what that run found. Raises
    Refused before anything is written if the request cannot be carried out.
    """
    place = open_place(config, of_run)
    check_redo(redo, config, of_run)
    if counting is not None:
        place.store.run(counting).check_stage(count.STAGE.name)
    settled = _settled(place, config, of_run)
    generation, changes = ingest(place.corpus, place.source, config.ingest, place.embeddings, at_least=_at_least(config, of_run), settled=settled)
    for name in redo:
        if name == describe.RETRY:
            describe.retry(place.corpus, config.describe, asked_by)
        else:
            place.corpus.redo(name, asked_by)
    return run_of(place.store, place.corpus, config, generation.number, of_run, counting), changes


def _settled(place: Place, config: PipelineConfig, of_run: str | None) -> bool:
    """Whether the run of this request on the newest generation is finished and could read every image, so that only new images are something to do.

    By records and listings, so that a night with nothing new reads no shard of a corpus, however many it has.
    """
    run = _wanted(place, config, place.corpus.generation().number, of_run)
    found = run.result()
    return found is not None and not found["missing"] and run.is_finished()


def _wanted(place: Place, config: PipelineConfig, generation: int, of_run: str | None) -> Run:
    """See `Store.wanted_run`."""
    return place.store.wanted_run(place.corpus, generation, identity(config, of_run), _line(config, place.corpus, of_run))


def run_of(store: Store, corpus: Corpus, config: PipelineConfig, generation: int, of_run: str | None = None, counting: str | None = None) -> Run:
    """The run of these settings on a generation, with the redo counters of now: made, or found again."""
    config = config.model_copy(update={"corpus": corpus.name})
    return store.request_run(config, corpus, generation, identity(config, of_run), of_run, _line(config, corpus, of_run), counting)


def _line(config: PipelineConfig, corpus: Corpus, of_run: str | None) -> str | None:
    """The pipeline whose clusters the run continues; None for a run without clusters of its own."""
    return None if of_run is not None or config.clusters == AUTO else pipeline_of(config, corpus.name)


def identity(config: PipelineConfig, of_run: str | None = None) -> dict[str, Any]:
    """What of a request, and of this version of gsec, changes the output: for each stage its version and settings."""
    wanted: dict[str, Any] = {name: [stage(name).version, dict(stage(name).settings(config))] for name in _names(config, of_run)}
    for later in (refit.STAGE.name, duplicates.STAGE.name, hierarchy.STAGE.name, map.STAGE.name):
        if wanted.get(later) == [1, {}]:
            wanted[later] = None  # as it was before there was such a stage
    return wanted if of_run is None else wanted | {assign.STAGE.name: [assign.STAGE.version, {"run": of_run}]}


def _names(config: PipelineConfig, of_run: str | None) -> list[str]:
    """The stages of a run that makes clusters, that finds how many there are, or that assigns to those of another."""
    if of_run is not None:
        return [*(s.name for s in encode.stages(config)), assign.STAGE.name]
    return [s.name for s in (COUNT_STAGES if config.clusters == AUTO else stages_of(config))]


def nothing_to_do(config: PipelineConfig, redo: Sequence[str] = (), of_run: str | None = None) -> Run | None:
    """The finished run of this request, if the source is as it was and no shard is missing. Makes nothing.

    Raises as `request` does.
    """
    place = open_place(config, of_run)
    check_redo(redo, config, of_run)
    settled = _settled(place, config, of_run)
    changes = compare(place.corpus, place.source, config.ingest, place.embeddings, at_least=_at_least(config, of_run), settled=settled)
    run = _wanted(place, config, changes.base.number, of_run)
    again = [name for name in redo if name != describe.RETRY or describe.any_failed(place.corpus, config.describe)]
    return run if changes.none and not again and run.exists() and (settled or run.is_finished()) else None


def split_redo(redo: Sequence[str]) -> tuple[list[str], list[str]]:
    """Of the stages to do again those of a run that finds the number of clusters, and the others."""
    counting = {s.name for s in COUNT_STAGES}
    return [name for name in redo if name in counting], [name for name in redo if name not in counting]


def numbered_by(counting: Run, config: PipelineConfig) -> PipelineConfig:
    """The settings with the number of clusters that a run found. Raises Refused if it cannot be told."""
    return _numbered(config, count.counted(Context.of(counting, config)))


def numbered_before(config: PipelineConfig, redo: Sequence[str]) -> tuple[PipelineConfig, str] | None:
    """The settings with the number of clusters of the published clustering, and the run that found it; None if it is to be found now.

    A night does not count again: with another number nothing would stay what it was. `train.refit = always`, other settings, or to redo a stage of the counting
    asks for it.
    """
    store = Store.open(config.store)
    corpus = store.corpus(config.corpus or source_name(config.source or ""))
    newest = publishing.published(store, config, corpus)
    if newest is None or config.train.refit == refit.ALWAYS or split_redo(redo)[0]:
        return None
    store.check_there(newest)
    run = store.run(newest.run_id)
    counting: str | None = run.request()["counting"]
    if counting is None:
        return None
    before = recorded(run.request()["config"])
    now = _numbered(config, before.n_clusters)
    try:
        count.load_counts(Context.of(store.run(counting), config))
    except (BadShard, Refused):  # counting again repairs it
        return None
    return None if refit.changed(now, before) else (now, counting)


def _numbered(config: PipelineConfig, clusters: int) -> PipelineConfig:
    """Where the number is found, new things are clusters of their own."""
    return config.model_copy(update={"clusters": clusters, "train": config.train.model_copy(update={"grow": True})})


def _at_least(config: PipelineConfig, of_run: str | None) -> int:
    if of_run is not None:
        return 1
    return 2 if config.clusters == AUTO else config.n_clusters


def assignment_config(run: Run, config: PipelineConfig) -> PipelineConfig:
    """The settings of a run, for the source that ``config`` names.

    Raises Refused if that is the run's own corpus, or if nothing can be assigned by the run.
    """
    if config.source is None:
        raise Refused("gsec assign: give the place of the new images: a folder, a Parquet file or glob, or WebDataset tars.")
    name = config.corpus or source_name(config.source)
    if name == run.request()["corpus"]:
        raise Refused(f"gsec assign: {config.source} is the source of run {run.id} itself. For its new images use gsec run, or give another --corpus.")
    assign.check_model(Context.of(run, config))
    return with_runtime(run.config(), config).model_copy(update={"source": config.source, "store": config.store, "corpus": name})


def begun(context: Context, until: str | None = None) -> Iterator[tuple[Stage, bool]]:
    """The stages of a run in order, each begun, and whether it is complete; ends before ``until`` and after the first that is not.

    A new run finds what another has made of its stages.
    """
    done: set[str] = set()
    while left := [name for name in context.run.stage_names() if name not in done]:  # the decision of stage refit may leave out some
        name = left[0]
        if name == until:
            return
        base.begin(context, stage(name))
        complete = context.run.is_complete(name)
        yield stage(name), complete
        if not complete:
            return
        done.add(name)


def newest_run(config: PipelineConfig) -> Run:
    """The run of these settings on the newest generation: made, or found again. Lists no source. Raises Refused if nothing was ever ingested."""
    place = open_place(config)
    generation = place.corpus.generation()
    if not generation.number:
        raise Refused(f"corpus {place.corpus.name} has no images yet. Run stage ingest first: gsec stage ingest --config FILE.")
    return run_of(place.store, place.corpus, config, generation.number)


def run_for_stage(
    name: str, config: PipelineConfig, run_id: str | None, redo: bool = False, retry_failed: bool = False, asked_by: str | None = None
) -> tuple[Run, bool]:
    """The run that one stage is to be worked on in alone, and whether there is a failed description to ask for again.

    It is the run ``run_id``, or else the newest of these settings. ``redo`` and ``retry_failed`` make another of it,
    and the same one if they are ``asked_by`` the same again (see `Corpus.redo`). Raises
    Refused if it does not have the stage, or naming the first stage above that is not complete.
    """
    stage(name)
    store = Store.open(config.store)
    found = newest_run(config) if run_id is None else store.run(run_id)
    config = with_runtime(found.config(), config)
    found.check_stage(name)
    check_inputs(found, config, name)
    corpus = store.corpus(found.request()["corpus"])
    failed = retry_failed and describe.retry(corpus, config.describe, asked_by)
    if redo:
        corpus.redo(name, asked_by)
    if redo or failed:
        request = found.request()
        found = run_of(store, corpus, config, request["generation"], request.get("of_run"), request.get("counting"))
        check_inputs(found, config, name)
    return found, failed


def check_inputs(run: Run, config: PipelineConfig, name: str) -> None:
    """Raises Refused naming the first stage above ``name`` that is not complete."""
    context = Context.of(run, config)
    for above, complete in begun(context, until=name):
        if not complete and above is refit.STAGE:  # takes no time, and nobody redoes a stage to be asked for another first
            base.run_stage(context, above)
            check_inputs(run, config, name)
        elif not complete:
            first = f"gsec stage {above.name} --run {run.id}"
            raise Refused(f"stage {name} comes after stage {above.name}, which is not complete in run {run.id}. First: {first}")


def check_servers(context: Context) -> None:
    """Raises Refused if descriptions or names are to be made and nobody answers: before anything costly is done for them."""
    undecided = refit.STAGE.name in context.run.request()["stages"] and not context.decision
    if describe.STAGE.name not in context.run.stage_names() or (undecided and context.previous is not None):
        return
    asks = namers.namer_of(context.config) not in (namers.TERMS, namers.NOUNS)
    if asks and publish.STAGE.name not in {done.name for done, complete in begun(context) if complete}:
        namers.load_namer(context.config).check()
    decides = (refit.STAGE,) if context.decision else ()
    for needed in (*encode.stages_of(context.run), *decides, prototypes.STAGE, describe.STAGE):  # and not the baseline, which descriptions do not wait for
        base.begin(context, needed)
        if not context.run.is_complete(needed.name):
            if needed is not describe.STAGE or describe.unanswered(context):
                describe.check(context)
            return


def check_redo(names: Sequence[str], config: PipelineConfig, of_run: str | None = None) -> None:
    """Raises Refused for a stage that such a run does not have, or that cannot be redone."""
    for name in names:
        if name == "ingest":
            raise Refused("--redo ingest: every run lists its source again; there is nothing to redo.")
        if name == describe.RETRY and describe.STAGE.name in _names(config, of_run):
            continue
        if name not in _names(config, of_run):
            raise Refused(f"--redo {name}: there is no such stage. The stages are {', '.join(_names(config, of_run))}.")


def finish(context: Context) -> dict[str, Any]:
    """The last step of a finished run, whichever process comes to it and however often: its `summary`, recorded, and its publication.

    Adds the fields of `publishing.Verdict`. What is recorded is how it was when a process first came to it; one that comes later reads its result, and
    not again what that was found by. Raises BadShard if the result is damaged.
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
    return said


_FOUND = ("images", "rejected", "missing", "decision", "clusters", "moved", "labellings", "remarks", "descriptions")
"""What of a summary is the same whenever it is asked for."""


def summary(context: Context) -> dict[str, Any]:
    """What a finished run reports: counts, where its tables are, its clusters, and how the consensus is beside k-means."""
    live = encode.encoded_rows(context)
    labellings = None if context.of_run else quality.without_labels(context)
    counts = {status: live["status"].to_pylist().count(status) for status in (OK, REJECTED, MISSING)}
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
    """Which run it is, where the tables of a finished one are, and its clusters."""
    return {
        "run_id": context.run.id,
        "assignments": context.run.files.location(assignments(context).directory),
        "cluster_table": clusters(context).location("all"),
        "report": None if context.of_run else report.index(context),
        "cluster_rows": cluster_rows(context),
    }


def assignments(context: Context) -> Shards:
    """The assignments that a run makes: its consensus, or new images assigned to another's."""
    if context.of_run is not None:
        return context.shards(assign.STAGE, ASSIGNED_TABLE)
    return context.shards(align.STAGE, ASSIGNMENTS_TABLE)


def clusters(context: Context) -> Shards:
    """The cluster table that the run's assignments refer to."""
    return (context.of_run or context).shards(align.STAGE, CLUSTERS_TABLE)


def cluster_rows(context: Context) -> list[dict[str, Any]]:
    """The cluster table with the clusters' keys and names, a dictionary a row. Where people named clusters, the names are theirs, the model's own beside.

    Of a cluster that they merged it is that of the one that it is part of now.
    """
    model = context.of_run or context
    names = model.shards(publish.STAGE, CLUSTER_NAMES_TABLE).read("all", ["name", "description"]).to_pylist()
    keys = lineage.keys_of(model.run).tolist()
    try:
        found = curated_clusters(context)
    except BadRecord:  # publishing says so
        found = None
    if found is not None:
        now = [found.of_model(key) for key in keys]
        names = [{"name": one.name, "model_name": name["name"], "description": one.description} for one, name in zip(now, names, strict=True)]
    return [
        {"cluster": row.pop("cluster"), "key": key, **name, **row}
        for row, key, name in zip(clusters(context).read("all").to_pylist(), keys, names, strict=True)
    ]


def provenance(config: PipelineConfig) -> dict[str, Any]:
    """What a run was made with and cannot be read from its settings alone; recorded with every attempt."""
    packages = ("gsec", "torch", "torchvision", "open_clip_torch", "faiss-cpu", "numpy", "pyarrow", "pillow")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {package: version(package) for package in packages},
        "device": {"encode": config.encode.device, "train": config.train.device},
        "captioner_urls": checked_urls(config.describe.url),
        "threads": config.threads,
    }
