"""The pipeline as a whole: its stages in order, and the way from a request to a run.

This module needs no orchestrator; `flows` combines the same parts into a DAG.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from gsec_core import devices
from gsec_core.captioners.servers import checked_urls
from gsec_core.config import AUTO, PipelineConfig, recorded, with_runtime
from gsec_core.errors import BadShard, Refused, Unreachable
from gsec_core.naming import namers
from gsec_core.results import publishing
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
from gsec_core.stages.ingest import Changes, compare, ingest, open_images
from gsec_core.stages.scratch import scratch_file
from gsec_core.store import Corpus, Run, Shards, Store
from gsec_core.store.publications import check_pipeline, pipeline_of
from gsec_core.tables import EMBEDDINGS_TABLE

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
    """Stages of a run that makes clusters, in order; ingest comes before them and has no tables in the run."""
    wanted = (*text.stages(config), *enhance.stages(config))
    return tuple(stage for stage in _IN_ORDER if stage in wanted or stage not in (*text.ALL_STAGES, enhance.STAGE))


COUNT_STAGES: tuple[Stage, ...] = (encode.STAGE, count.STAGE)
"""Stages of a run that finds the number of clusters for another run."""

ALL_STAGES = (*_IN_ORDER, assign.STAGE, count.STAGE)
"""Every stage of every kind of run."""


def stage(name: str) -> Stage:
    """A stage by its name. Raises Refused if there is none."""
    for candidate in ALL_STAGES:
        if candidate.name == name:
            return candidate
    raise Refused(f"{name}: there is no such stage. The stages are {', '.join(s.name for s in ALL_STAGES)}.")


@dataclass(frozen=True)
class Place:
    """The opened source, corpus and store of a request."""

    store: Store
    corpus: Corpus
    source: Source
    embeddings: tuple[Shards, ...]
    """Embedding tables of the request's encoders in the corpus."""
    settled: bool
    """Whether the run of the request on the newest generation is finished and could read every image, so that only changes of the source remain to do."""


def open_place(config: PipelineConfig, of_run: str | None = None) -> Place:
    """Open source, corpus and store. Raises Refused for any setting at which a stage would fail, before anything is written, listed or loaded."""
    if config.source is None:
        raise Refused("source: give the place of the images: a folder, a Parquet file or glob, or WebDataset tars.")
    numbered = config.model_copy(update={"clusters": 2}) if config.clusters == AUTO else config
    identity(numbered, of_run)  # names of encoders, captioners and files
    checked_urls(config.describe.url)  # recorded with every attempt, even if the captioner uses no server
    vocabulary.words_of(config)  # even without nouns, since every setting that names nothing is an error
    vocabulary.prompts_of(config)
    config.ray.check()
    devices.check(config.encode.device, "encode.device")
    devices.check(config.train.device, "train.device")
    text.check(config)
    if of_run is None:
        enhance.check(config)
    scratch_file(config).close()
    store = Store.open(config.store)
    source = open_images(config.source, config.ingest)
    corpus = store.corpus(config.corpus or source_name(config.source))
    check_pipeline(pipeline_of(config, corpus.name))
    settled = _settled(store, corpus, config, of_run)
    if not settled or config.clusters == AUTO:  # a finished run with clusters has a plan, which it takes torch to make again
        prepare.plan_of(numbered)
    store.check_writable()
    if of_run is None:
        publishing.published(store, config, corpus)
    redo, embeddings = corpus.redo_counters(), []
    for encoding in encode.stages(config):
        encoded = corpus.table(EMBEDDINGS_TABLE, encoding.fingerprint_of(config, redo))
        if not encoded.names():  # an encoder with embeddings exists; checking takes seconds
            encoding.check(config)
        embeddings.append(encoded)
    return Place(store, corpus, source, tuple(embeddings), settled)


def request(
    config: PipelineConfig, redo: Sequence[str] = (), of_run: str | None = None, counting: str | None = None, asked_by: str | None = None
) -> tuple[Run, Changes]:
    """Bring the corpus up to date with its source, and create or find the run of this request. Returns the run and the changes of the corpus.

    ``redo`` names stages to be done again; `describe.RETRY` among them asks again for failed descriptions, if there are any;
    ``asked_by`` is passed to `Corpus.redo`. With ``of_run``, the images are assigned to the clusters of that run, and ``config`` must
    be a result of `assignment_config`. ``counting`` is the run that found the number of clusters in ``config``. Raises Refused
    before anything is written if the request cannot be carried out.
    """
    place = open_place(config, of_run)
    check_redo(redo, config, of_run)
    if counting is not None:
        place.store.run(counting).check_stage(count.STAGE.name)
    generation, changes = ingest(place.corpus, place.source, config.ingest, place.embeddings, at_least=_at_least(config, of_run), settled=place.settled)
    for name in redo:
        if name == describe.RETRY:
            describe.retry(place.corpus, config.describe, asked_by)
        else:
            place.corpus.redo(name, asked_by)
    return run_of(place.store, place.corpus, config, generation.number, of_run, counting), changes


def _settled(store: Store, corpus: Corpus, config: PipelineConfig, of_run: str | None) -> bool:
    """See `Place.settled`. Reads only records and listings, so that a rerun without changes reads no shard, however large the corpus is."""
    try:
        run = _wanted(store, corpus, config, corpus.generation().number, of_run)
        found = run.result()
        return found is not None and not found["missing"] and run.is_finished()
    except (OSError, Unreachable):  # `Store.check_writable` says what is wrong with the store
        return False


def _wanted(store: Store, corpus: Corpus, config: PipelineConfig, generation: int, of_run: str | None) -> Run:
    """The run of these settings on a generation; it need not exist. See `Store.wanted_run`."""
    return store.wanted_run(corpus, generation, identity(config, of_run), _line(config, corpus, of_run), corpus.redo_counters())[0]


def run_of(store: Store, corpus: Corpus, config: PipelineConfig, generation: int, of_run: str | None = None, counting: str | None = None) -> Run:
    """Create or find the run of these settings on a generation, with the current redo counters."""
    config = config.model_copy(update={"corpus": corpus.name})
    return store.request_run(config, corpus, generation, identity(config, of_run), of_run, _line(config, corpus, of_run), counting)


def _line(config: PipelineConfig, corpus: Corpus, of_run: str | None) -> str | None:
    """The pipeline whose clusters the run continues; None for a run without clusters of its own."""
    return None if of_run is not None or config.clusters == AUTO else pipeline_of(config, corpus.name)


def identity(config: PipelineConfig, of_run: str | None = None) -> dict[str, Any]:
    """Everything in a request and in this version of gsec that changes the output: version and settings of each stage."""
    wanted: dict[str, Any] = {name: [stage(name).version, dict(stage(name).settings(config))] for name in _names(config, of_run)}
    for later in (refit.STAGE.name, duplicates.STAGE.name, hierarchy.STAGE.name, map.STAGE.name):
        if wanted.get(later) == [1, {}]:
            wanted[later] = None  # the same identity as before there was such a stage
    return wanted if of_run is None else wanted | {assign.STAGE.name: [assign.STAGE.version, {"run": of_run}]}


def _names(config: PipelineConfig, of_run: str | None) -> list[str]:
    """Names of the stages of a run: one that makes clusters, finds their number, or assigns images to the clusters of another run."""
    if of_run is not None:
        return [*(s.name for s in encode.stages(config)), assign.STAGE.name]
    return [s.name for s in (COUNT_STAGES if config.clusters == AUTO else stages_of(config))]


def nothing_to_do(config: PipelineConfig, redo: Sequence[str] = (), of_run: str | None = None) -> Run | None:
    """The finished run of this request if the source has not changed and no shard is missing, else None. Creates nothing.

    Raises what `request` raises.
    """
    place = open_place(config, of_run)
    check_redo(redo, config, of_run)
    changes = compare(place.corpus, place.source, config.ingest, place.embeddings, at_least=_at_least(config, of_run), settled=place.settled)
    run = _wanted(place.store, place.corpus, config, changes.base.number, of_run)
    again = [name for name in redo if name != describe.RETRY or describe.any_failed(place.corpus, config.describe)]
    return run if changes.none and not again and run.exists() and (place.settled or run.is_finished()) else None


def split_redo(redo: Sequence[str], config: PipelineConfig) -> tuple[list[str], list[str]]:
    """Split stages to redo into those of a run that finds the number of clusters, and the others.

    Raises Refused as `check_redo`, so that a wrong name is refused before the number is searched for.
    """
    counting = {s.name for s in COUNT_STAGES}
    later = [name for name in redo if name not in counting]
    check_redo(later, _numbered(config, 2))  # any number: the stages are the same
    return [name for name in redo if name in counting], later


def numbered_by(counting: Run, config: PipelineConfig) -> PipelineConfig:
    """The settings with the number of clusters that the run ``counting`` found. Raises Refused if it suggests none."""
    return _numbered(config, count.counted(Context.of(counting, config)))


def numbered_before(config: PipelineConfig, redo: Sequence[str]) -> tuple[PipelineConfig, str] | None:
    """The settings with the number of clusters of the published run, and the id of the run that found it; None if it must be found now.

    Usually the number is not found again, since no cluster would persist with another number. It is found again with `train.refit = always`, after a change
    of settings, or if a stage of the counting run is redone.
    """
    store = Store.open(config.store)
    corpus = store.corpus(config.corpus or source_name(config.source or ""))
    newest = publishing.published(store, config, corpus)
    if newest is None or config.train.refit == refit.ALWAYS or split_redo(redo, config)[0]:
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
    except (BadShard, FileNotFoundError, Refused):  # damaged, or set aside already: finding the number again repairs it
        return None
    return None if refit.changed(now, before) else (now, counting)


def _numbered(config: PipelineConfig, clusters: int) -> PipelineConfig:
    """The settings with this number of clusters, and with ``train.grow``: if the number is found automatically, groups of new images may become clusters."""
    return config.model_copy(update={"clusters": clusters, "train": config.train.model_copy(update={"grow": True})})


def _at_least(config: PipelineConfig, of_run: str | None) -> int:
    if of_run is not None:
        return 1
    return 2 if config.clusters == AUTO else config.n_clusters


def assignment_config(run: Run, config: PipelineConfig) -> PipelineConfig:
    """The settings of a run, with the source that ``config`` names.

    Raises Refused if that source is the run's own corpus, or if the run cannot assign images.
    """
    if config.source is None:
        raise Refused("gsec assign: give the place of the new images: a folder, a Parquet file or glob, or WebDataset tars.")
    assign.check_model(Context.of(run, config))
    name = config.corpus or source_name(config.source)
    if name == run.request()["corpus"]:
        raise Refused(f"gsec assign: {config.source} is the source of run {run.id} itself. For its new images use gsec run, or give another --corpus.")
    found = with_runtime(run.config(), config)
    column = {"image_column": config.ingest.image_column} if "image_column" in config.ingest.model_fields_set else {}  # the new source may have another
    ingest = found.ingest.model_copy(update=column)
    return found.model_copy(update={"source": config.source, "store": config.store, "corpus": name, "ingest": ingest})


def begun(context: Context, until: str | None = None) -> Iterator[tuple[Stage, bool]]:
    """Begin the stages of a run in order; yields each and whether it is complete. Ends before ``until``, and after the first incomplete stage.

    Stages of a new run may be complete already, with tables that another run has made.
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


def newest_run(config: PipelineConfig, name: str | None = None) -> Run:
    """Create or find the run of these settings on the newest generation, without listing the source. Raises Refused if nothing was ever ingested.

    With ``clusters = auto`` it is the run that finds the number, or, for a stage ``name`` that this run does not have, the run with the number that
    was found for the published run.
    """
    place = open_place(config)
    counting: str | None = None
    if config.clusters == AUTO and name not in (None, *_names(config, None)):
        config, counting = numbered_before(config, ()) or (config, None)
    generation = place.corpus.generation()
    if not generation.number:
        raise Refused(f"corpus {place.corpus.name} has no images yet. Run stage ingest first: gsec stage ingest --config FILE.")
    return run_of(place.store, place.corpus, config, generation.number, counting=counting)


def run_for_stage(
    name: str, config: PipelineConfig, run_id: str | None, redo: bool = False, retry_failed: bool = False, asked_by: str | None = None
) -> tuple[Run, bool]:
    """The run in which a single stage is to be done, and whether failed descriptions will be asked for again.

    It is the run ``run_id``, or else the newest run of these settings. ``redo`` and ``retry_failed`` lead to another run,
    which is the same for repeated requests with the same ``asked_by`` (see `Corpus.redo`). Raises Refused if the run does
    not have the stage, or naming the first earlier stage that is not complete.
    """
    stage(name)
    store = Store.open(config.store)
    found = newest_run(config, name) if run_id is None else store.run(run_id)
    config = with_runtime(found.asked(), config)  # without the clusters that it decided on: the run of a redo decides itself
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
    """Raises Refused naming the first stage before ``name`` that is not complete.

    Runs stage refit itself if necessary, and all stages of a run that keeps the published model: they are quick.
    """
    context = Context.of(run, config)
    for above, complete in begun(context, until=name):
        if not complete and (above is refit.STAGE or context.keeps):
            base.run_stage(context, above)
            check_inputs(run, config, name)
        elif not complete:
            first = f"gsec stage {above.name} --run {run.id}"
            raise Refused(f"stage {name} comes after stage {above.name}, which is not complete in run {run.id}. First: {first}")


def check_servers(context: Context) -> None:
    """Raises Refused if servers that descriptions or names will need do not answer, before the costly stages start."""
    undecided = refit.STAGE.name in context.run.request()["stages"] and not context.decision
    if undecided and context.previous is not None:
        return
    describes = context.has(describe.STAGE)
    asks = namers.namer_of(context.config) not in (namers.TERMS, namers.NOUNS) and (describes or (context.keeps and publish.renames(context)))
    if asks and publish.STAGE.name not in {done.name for done, complete in begun(context) if complete}:
        namers.load_namer(context.config).check()
    if not describes:
        return
    decides = (refit.STAGE,) if context.decision else ()
    for needed in (*encode.stages_of(context.run), *decides, prototypes.STAGE, describe.STAGE):  # without the baseline, on which descriptions do not depend
        base.begin(context, needed)
        if not context.run.is_complete(needed.name):
            if needed is not describe.STAGE or describe.unanswered(context):
                describe.loaded_captioner(context.config).check()
            return


def check_redo(names: Sequence[str], config: PipelineConfig, of_run: str | None = None) -> None:
    """Raises Refused for stages in ``names`` that the run of these settings does not have, or that cannot be redone."""
    for name in names:
        if name == "ingest":
            raise Refused("--redo ingest: every run lists its source again; there is nothing to redo.")
        if name == describe.RETRY and describe.STAGE.name in _names(config, of_run):
            continue
        if name not in _names(config, of_run):
            raise Refused(f"--redo {name}: there is no such stage. The stages are {', '.join(_names(config, of_run))}.")


def provenance(config: PipelineConfig) -> dict[str, Any]:
    """Versions, machine and devices of an attempt, which cannot be read from the settings alone; recorded with every attempt."""
    packages = ("gsec", "torch", "torchvision", "open_clip_torch", "faiss-cpu", "numpy", "pyarrow", "pillow")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {package: version(package) for package in packages},
        "device": {"encode": config.encode.device, "train": config.train.device},
        "captioner_urls": checked_urls(config.describe.url),
        "threads": config.threads,
    }
