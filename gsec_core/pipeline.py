"""The pipeline as a whole: its stages in order, how a request becomes a run, and what a finished run has to say.

What is here needs no orchestrator; `flows` chain the same parts as a DAG.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from gsec_core.config import PipelineConfig
from gsec_core.errors import Refused
from gsec_core.sources import open_source, source_name
from gsec_core.sources.base import Source
from gsec_core.stages import baseline, encode
from gsec_core.stages.base import Context, Stage
from gsec_core.stages.ingest import Changes, compare, ingest
from gsec_core.store import Corpus, Run, Shards, Store, fingerprint
from gsec_core.tables import BASELINE_CLUSTERS_TABLE, BASELINE_TABLE, EMBEDDINGS_TABLE, MISSING, OK, REJECTED

STAGES: tuple[Stage, ...] = (encode.STAGE, baseline.STAGE)
"""In the order they run; ingest comes before them and has no tables of a run."""


def stage(name: str) -> Stage:
    """A stage by its name. Raises Refused if there is none."""
    for candidate in STAGES:
        if candidate.name == name:
            return candidate
    raise Refused(f"{name}: there is no such stage. The stages are {', '.join(s.name for s in STAGES)}.")


@dataclass(frozen=True)
class Place:
    """Where a request's images come from and go to, opened."""

    store: Store
    corpus: Corpus
    source: Source
    embeddings: Shards
    """What this request's encoder has done so far."""


def open_place(config: PipelineConfig) -> Place:
    """Raises Refused if the store cannot be written or the names cannot be."""
    if config.source is None:
        raise Refused("source: say where the images are: a folder, a Parquet file or glob, or WebDataset tars.")
    store = Store.open(config.store)
    store.check_writable()
    source = open_source(config.source, image_column=config.ingest.image_column)
    corpus = store.corpus(config.corpus or source_name(config.source))
    counter = corpus.redo_counters().get(encode.STAGE.name, 0)
    encoded = fingerprint(encode.STAGE.name, encode.STAGE.version, encode.STAGE.settings(config), [], counter)
    return Place(store, corpus, source, corpus.table(EMBEDDINGS_TABLE, encoded))


def request(config: PipelineConfig, redo: Sequence[str] = ()) -> tuple[Run, Changes]:
    """Bring the corpus up to date with its source and make, or find again, the run of this request.

    ``redo`` names stages that are to be done anew. Raises Refused before anything is written if the request cannot be
    carried out.
    """
    place = open_place(config)
    check_redo(redo)
    generation, changes = ingest(place.corpus, place.source, config.ingest, place.embeddings, at_least=config.clusters)
    for name in redo:
        place.corpus.redo(name)
    return run_of(place.store, place.corpus, config, generation.number), changes


def run_of(store: Store, corpus: Corpus, config: PipelineConfig, generation: int) -> Run:
    """The run of these settings on a generation, with the redo counters of now: made, or found again."""
    config = config.model_copy(update={"corpus": corpus.name})
    return store.request_run(config, corpus, generation, identity(config))


def identity(config: PipelineConfig) -> dict[str, Any]:
    """What of a request, and of this version of gsec, changes the output: for each stage its version and settings."""
    return {s.name: [s.version, dict(s.settings(config))] for s in STAGES}


def nothing_to_do(config: PipelineConfig, redo: Sequence[str] = ()) -> Run | None:
    """The finished run of this request, if the source is as it was and no shard is missing. Makes nothing.

    Raises as `request` does.
    """
    place = open_place(config)
    check_redo(redo)
    changes = compare(place.corpus, place.source, config.ingest, place.embeddings, at_least=config.clusters)
    run = place.store.wanted_run(place.corpus, changes.base.number, identity(config))
    return run if changes.none and not redo and run.exists() and run.is_finished() else None


def check_redo(names: Sequence[str]) -> None:
    """Raises Refused for a stage that there is not, or that cannot be redone."""
    for name in names:
        if name == "ingest":
            raise Refused("--redo ingest: every run lists its source anew; there is nothing to redo.")
        stage(name)


def summary(context: Context) -> dict[str, Any]:
    """What a finished run has to say: counts, and where its tables are."""
    live = encode.encoded_rows(context)
    counts = {status: live["status"].to_pylist().count(status) for status in (OK, REJECTED, MISSING)}
    assignments = context.shards(baseline.STAGE, BASELINE_TABLE)
    return {
        "run_id": context.run.id,
        "images": live.num_rows,
        "rejected": counts[REJECTED],
        "missing": counts[MISSING],
        "clusters": context.config.clusters,
        "assignments": context.run.files.location(assignments.directory),
        "cluster_table": context.shards(baseline.STAGE, BASELINE_CLUSTERS_TABLE).location("all"),
        "report": None,
    }


def too_many_rejects(context: Context, counts: dict[str, Any]) -> str | None:
    """The warning of a run with more rejects than ``max_rejects`` allows."""
    if counts["rejected"] <= context.config.max_rejects * counts["images"]:
        return None
    return (
        f"{counts['rejected']} of {counts['images']} images were rejected, more than max_rejects = {context.config.max_rejects} allows; "
        "the reasons are in the column `reason` of the embeddings."
    )


def provenance(config: PipelineConfig) -> dict[str, Any]:
    """What a run was made with and cannot be read from its settings alone; recorded with every attempt."""
    packages = ("gsec", "torch", "torchvision", "open_clip_torch", "faiss-cpu", "numpy", "pyarrow", "pillow")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {package: version(package) for package in packages},
        "device": config.encode.device,
        "threads": config.threads,
    }
