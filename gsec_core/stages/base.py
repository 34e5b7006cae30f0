"""What a stage is, what of it is missing, and the one loop that does what is missing.

A stage is a list of steps; a step plans shard names and yields finished shards. What is done is one listing of the
step's tables, what is to do is the plan minus it. There is no other record of progress.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, update_wrapper
from typing import Any, Generic, NamedTuple, TypeVar, TypeVarTuple

import pyarrow as pa

from gsec_core.config import PipelineConfig, with_runtime
from gsec_core.errors import GsecError, Refused
from gsec_core.sources.base import Source
from gsec_core.stages.ingest import open_images
from gsec_core.store import Corpus, Generation, Run, Shards, fingerprint
from gsec_core.tables import CONTINUED, KEPT, RENEWED

_log = logging.getLogger(__name__)

T = TypeVar("T")
Args = TypeVarTuple("Args")

Progress = Callable[[int], None]
"""Told now and then that so many more units (images; outer steps of training) are worked on, committed or not."""


def silent(by: int) -> None:
    """A Progress that nobody watches."""


class once(Generic[*Args, T]):
    """``load``, with its last result kept. Slices of one process that begin together load once, not once each."""

    def __init__(self, load: Callable[[*Args], T]) -> None:
        update_wrapper(self, load)
        self._load = load
        self._lock = threading.Lock()
        self._kept: tuple[tuple[*Args], T] | None = None

    def __call__(self, *args: *Args) -> T:
        with self._lock:
            if self._kept is None or self._kept[0] != args:
                self._kept = None  # so that two are never in memory
                self._kept = args, self._load(*args)
            return self._kept[1]

    def __reduce__(self) -> str:
        """By its name, as a function is pickled: a task for another process names stages, which name this."""
        name: str = self.__qualname__  # type: ignore[attr-defined]  # of what it wraps
        return name

    def keep(self, result: T, *args: *Args) -> None:
        """``result`` is what ``args`` would load."""
        with self._lock:
            self._kept = args, result


class Finished(NamedTuple):
    """One shard, ready to be committed: a table for each of the step's tables, in their order."""

    name: str
    tables: tuple[pa.Table, ...]
    facts: Mapping[str, Any]
    """Counters and timings for the footer; ``rows`` is there by itself."""


@dataclass(eq=False)
class Context:
    """A run and what its stages need of it."""

    run: Run
    config: PipelineConfig
    corpus: Corpus
    generation: Generation
    _decision: Mapping[str, Any] | None = field(default=None, init=False)

    @classmethod
    def of(cls, run: Run, config: PipelineConfig) -> "Context":
        """A run, with the settings to work with: as requested in all that changes the output, ``config``'s device and threads."""
        request = run.request()
        config = with_runtime(run.config(), config)
        corpus = Corpus(run.files, request["corpus"])
        return cls(run, config, corpus, corpus.generation(request["generation"]))

    def open_source(self) -> Source:
        """The run's source, for one slice: what it keeps in memory suits one reader."""
        if self.config.source is None:
            raise Refused("source: the run does not say where its images are.")
        return open_images(self.config.source, self.config.ingest)

    @cached_property
    def of_run(self) -> "Context | None":
        """The run whose clusters this one's images are assigned to; None for a run with clusters of its own."""
        id = self.run.request().get("of_run")
        return None if id is None else Context.of(Run(self.run.files, id), self.config)

    @property
    def decision(self) -> Mapping[str, Any]:
        """What the run decided about the published model, see `Run.decision`; nothing before that, or of a run that decides nothing."""
        if self._decision is None:
            self._decision = self.run.decision()
        return self._decision or {}

    @property
    def keeps(self) -> bool:
        """Whether the run keeps the published model, and has its tables where it has none of its own."""
        return self.decision.get("decision") == KEPT

    @property
    def continues(self) -> bool:
        """Whether its fit begins from the published model, or its images from the clusters that they had."""
        return self.decision.get("decision") in (CONTINUED, RENEWED)

    @cached_property
    def model(self) -> "Context":
        """The run whose model is kept or continued. Only of a run that does so."""
        return Context.of(Run(self.run.files, self.decision["model"]), self.config)

    @cached_property
    def previous(self) -> Run | None:
        """The run that was published when this one was asked for."""
        previous = self.run.request().get("previous")
        return None if previous is None else Run(self.run.files, previous["run_id"])

    @cached_property
    def redo(self) -> Mapping[str, int]:
        redo: dict[str, int] = self.run.request()["redo"]
        return redo

    @cached_property
    def live(self) -> pa.Table:
        """The generation's live rows; see `Corpus.live_rows`."""
        return self.corpus.live_rows(self.generation)

    def shards(self, stage: "Stage", table: str) -> Shards:
        """Where ``table`` of ``stage`` is in this run. Raises Refused if the stage has not begun, or the run does not have it."""
        record = self.run.stage(stage.name)
        if record is None:
            if self.keeps and stage.name not in self.run.stage_names():
                return self.model.shards(stage, table)
            self.run.check_stage(stage.name)
            raise Refused(f"run {self.run.id} has no {table} yet. Run stage {stage.name} first: gsec stage {stage.name} --run {self.run.id}.")
        return self.run.place(record).table(table, record["fingerprint"])


@dataclass(frozen=True)
class Step:
    """A part of a stage with a plan of its own."""

    tables: tuple[str, ...]
    """What each shard name stands for: a shard in each of these."""
    plan: Callable[[Context], list[str]]
    """All shard names, done or not; none: the run does not have the step."""
    work: Callable[[Context, Sequence[str], Progress], Iterator[Finished]]
    """Makes the named shards, in any order; a step that computes as a whole ignores that some are there already."""
    units: Callable[[Context, Sequence[str]], int]
    """How many units of progress the named shards are."""
    whole: bool = False
    """Whether one slice does all that is missing: the work on one shard is that on all, or little beside reading what it needs."""
    busy: bool = False
    """Whether a slice keeps every core of a machine busy by itself: then a machine gains nothing by a second, but several machines do by one each."""
    unit: str = "images"
    """What a unit of progress is, in the plural."""


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline, bound to its fingerprint."""

    name: str
    version: int
    """Raised by hand when the output changes."""
    settings: Callable[[PipelineConfig], Mapping[str, Any]]
    """What of the configuration changes the output."""
    inputs: Callable[[Context], list[str]]
    """Fingerprints and digests of what the stage reads. Raises Refused naming the stage to run if something is missing."""
    steps: tuple[Step, ...]
    shared: bool = False
    """Whether its tables know nothing of the corpus and are the store's."""
    on_device: bool = False
    """Whether it computes on a GPU where there is one."""

    def fingerprint(self, context: Context) -> str:
        return fingerprint(self.name, self.version, self.settings(context.config), self.inputs(context), context.redo.get(self.name, 0))


def begin(context: Context, stage: Stage) -> None:
    """Record where the stage's tables will be. Raises as `Stage.inputs` and `Run.begin_stage` do."""
    planned = {table: names for step in stage.steps if (names := step.plan(context)) for table in step.tables}
    context.run.begin_stage(stage.name, stage.fingerprint(context), planned, shared=stage.shared)


def missing(context: Context, stage: Stage, step: Step) -> list[str]:
    """The planned names minus what every table of the step has: what is to do."""
    done = set.intersection(*(context.shards(stage, table).names() for table in step.tables))
    return [name for name in step.plan(context) if name not in done]


def run_stage(context: Context, stage: Stage) -> dict[str, float]:
    """Do what is missing of a stage in this process, without an orchestrator. Returns the sums of what was made."""
    begin(context, stage)
    sums: dict[str, float] = {}
    for step in stage.steps:
        names = missing(context, stage, step)
        if names:
            add(sums, work(context, stage, step, names))
    return sums


def add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    """Add counts to counts, key by key."""
    for key, value in more.items():
        sums[key] = sums.get(key, 0) + value


def slices(names: Sequence[str], most: int) -> list[list[str]]:
    """``names`` cut into at most ``most`` runs of nearly equal length."""
    count = min(most, len(names))
    return [list(names[len(names) * i // count : len(names) * (i + 1) // count]) for i in range(count)]


def work(context: Context, stage: Stage, step: Step, names: Sequence[str], progress: Progress = silent) -> dict[str, float]:
    """Make the named shards and commit them one by one. This loop is the only one that writes tables.

    Returns the sums of the facts of the shards that were made, and ``shards``, their number.
    """
    sums: dict[str, float] = {"shards": 0}
    started = time.monotonic()
    places = [context.shards(stage, table) for table in step.tables]
    # Of a slice that was cut behind its last shard nothing is left to do.
    for finished in step.work(context, names, progress) if names else ():
        if finished.name not in names:
            continue
        now = time.monotonic()
        facts = {**finished.facts, "seconds": round(now - started, 3), "run": context.run.id}
        started = now
        for place, rows in zip(places, finished.tables, strict=True):
            place.commit(finished.name, rows, facts)
        told = {"run": context.run.id, "stage": stage.name, "shard": finished.name, "seconds": facts["seconds"]}
        _log.info("%s: shard %s in %.1f s", stage.name, finished.name, facts["seconds"], extra=told)
        add(sums, {"shards": 1, **{key: value for key, value in finished.facts.items() if isinstance(value, int | float)}})
    undone = set(names) & set(missing(context, stage, step))
    if undone:
        raise GsecError(f"stage {stage.name} did not make its shards {', '.join(sorted(undone)[:3])}: a fault in the stage.")
    return sums
