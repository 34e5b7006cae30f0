"""Definition of stages and steps, and the one loop that makes the missing shards of a stage.

A stage is a list of steps; a step plans shard names and yields finished shards. The shards listed in the step's tables are
done; the planned shards that are not listed are to do. There is no other record of progress.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, update_wrapper
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar, TypeVarTuple

import pyarrow as pa

from gsec_core.config import PipelineConfig, with_runtime
from gsec_core.errors import GsecError, LostTable, Refused
from gsec_core.sources.base import Source
from gsec_core.stages.ingest import open_images
from gsec_core.store import Corpus, Generation, Run, Shards, fingerprint
from gsec_core.tables import CONTINUED, KEPT, RENEWED

_log = logging.getLogger(__name__)

T = TypeVar("T")
Args = TypeVarTuple("Args")

Progress = Callable[[int], None]
"""Callback of a step: receives the number of further units (images; outer steps of training) that were worked on, committed or not."""


def silent(by: int) -> None:
    """A Progress that does nothing."""


class once(Generic[*Args, T]):
    """Wraps the function ``load`` and keeps its last result. Slices of one process that start together load once, not once each."""

    def __init__(self, load: Callable[[*Args], T]) -> None:
        update_wrapper(self, load)
        self._load = load
        self._lock = threading.Lock()
        self._kept: tuple[tuple[*Args], T] | None = None

    def __call__(self, *args: *Args) -> T:
        with self._lock:
            if self._kept is None or self._kept[0] != args:
                self._kept = None  # so that two results are never in memory
                self._kept = args, self._load(*args)
            return self._kept[1]

    def __reduce__(self) -> str:
        """Pickle by name, as functions are: a task for another process contains stages, which refer to this object."""
        name: str = self.__qualname__  # type: ignore[attr-defined]  # update_wrapper copies it from the function
        return name

    def keep(self, result: T, *args: *Args) -> None:
        """Keep ``result`` as the result of loading with ``args``."""
        with self._lock:
            self._kept = args, result


class Finished(NamedTuple):
    """One shard name with its data, ready to be committed: one Arrow table for each name in `Step.tables`, in that order."""

    name: str
    tables: tuple[pa.Table, ...]
    facts: Mapping[str, Any] = MappingProxyType({})
    """Counters and timings for the footer; the number of rows is added without being given here."""


@dataclass(eq=False)
class Context:
    """A run, and the data about it that its stages need."""

    run: Run
    config: PipelineConfig
    corpus: Corpus
    generation: Generation
    _decision: Mapping[str, Any] | None = field(default=None, init=False)

    @classmethod
    def of(cls, run: Run, config: PipelineConfig) -> "Context":
        """The context of a run: the settings that change the output are those of the run's request, device and threads are those of ``config``."""
        request = run.request()
        config = with_runtime(run.config(), config)
        corpus = Corpus(run.files, request["corpus"])
        return cls(run, config, corpus, corpus.generation(request["generation"]))

    def open_source(self) -> Source:
        """Open the run's source. Each slice opens its own, since what a source keeps in memory suits one reader.

        Raises Refused if the run has no source.
        """
        if self.config.source is None:
            raise Refused("source: the run does not say where its images are.")
        return open_images(self.config.source, self.config.ingest)

    @cached_property
    def of_run(self) -> "Context | None":
        """The run to whose clusters the images of this run are assigned; None if this run has clusters of its own."""
        id = self.run.request().get("of_run")
        return None if id is None else Context.of(Run(self.run.files, id), self.config)

    @property
    def decision(self) -> Mapping[str, Any]:
        """The run's decision about the published model, see `Run.decision`; empty before the decision, or if the run takes none."""
        if self._decision is None:
            self._decision = self.run.decision()
        return self._decision or {}

    @property
    def keeps(self) -> bool:
        """Whether the run keeps the published model; then it uses that model's tables for stages that it does not run itself."""
        return self.decision.get("decision") == KEPT

    @property
    def continues(self) -> bool:
        """Whether the fit starts from the published model, or at least from the clusters that the images had."""
        return self.decision.get("decision") in (CONTINUED, RENEWED)

    @cached_property
    def model(self) -> "Context":
        """The run whose model is kept or continued. Only for runs that keep or continue one."""
        return Context.of(Run(self.run.files, self.decision["model"]), self.config)

    @cached_property
    def previous(self) -> Run | None:
        """The run that was published when this run was requested, or None."""
        previous = self.run.request().get("previous")
        return None if previous is None else Run(self.run.files, previous["run_id"])

    @cached_property
    def redo(self) -> Mapping[str, int]:
        """The redo counters of the run's request: stage -> count; see `Corpus.redo_counters`."""
        redo: dict[str, int] = self.run.request()["redo"]
        return redo

    @cached_property
    def live(self) -> pa.Table:
        """The generation's live rows; see `Corpus.live_rows`."""
        return self.corpus.live_rows(self.generation)

    def shards(self, stage: "Stage", table: str) -> Shards:
        """The shards of ``table`` of ``stage`` in this run. Raises Refused if the stage has not begun or is not a stage of the run."""
        record = self.run.stage(stage.name)
        if record is None:
            if self.keeps and not self.has(stage):
                return self.model.shards(stage, table)
            self.run.check_stage(stage.name)
            raise Refused(f"run {self.run.id} has no {table} yet. Run stage {stage.name} first: gsec stage {stage.name} --run {self.run.id}.")
        return self.run.place(record).table(table, record["fingerprint"])

    def read(self, stage: "Stage", table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a table that has one shard, or some columns of them. Raises as `shards` does, BadShard, and LostTable if the shard is missing."""
        shards = self.shards(stage, table)
        try:
            return shards.read("all", columns)
        except FileNotFoundError:
            run = self.run if self.has(stage) else self.model.run
            raise LostTable(table, run.id, stage.name) from None

    def has(self, stage: "Stage") -> bool:
        """Whether the run has this stage itself; one that keeps the published model has fewer (see `Run.stage_names`)."""
        return stage.name in self.run.stage_names()


@dataclass(frozen=True)
class Step:
    """A part of a stage, with its own plan of shards."""

    tables: tuple[str, ...]
    """Tables that the step writes; each shard name stands for one shard in every one of them."""
    work: Callable[[Context, Sequence[str], Progress], Iterator[Finished]]
    """Yields the named shards, in any order. A step that computes all shards at once may yield others too; `work` skips those."""
    plan: Callable[[Context], list[str]] = lambda context: ["all"]
    """Returns all shard names, done or not; an empty list means that the run does not have the step."""
    units: Callable[[Context, Sequence[str]], int] = lambda context, names: 0
    """Returns the number of progress units in the named shards."""
    whole: bool = False
    """Whether one slice makes all missing shards, because one shard costs as much work as all of them, or little compared with reading the input."""
    busy: bool = False
    """Whether one slice keeps all cores of a machine busy: a second slice on the same machine gains nothing, one slice on each of several machines does."""
    unit: str = "images"
    """Name of the progress unit, in the plural."""


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline, bound to its fingerprint."""

    name: str
    version: int
    """Increased by hand when the output changes."""
    settings: Callable[[PipelineConfig], Mapping[str, Any]]
    """Returns the settings that change the output."""
    inputs: Callable[[Context], list[str]]
    """Returns fingerprints and digests of the stage's input. Raises Refused naming the stage to run if an input is missing."""
    steps: tuple[Step, ...]
    shared: bool = False
    """Whether its tables do not depend on the corpus and belong to the whole store."""
    on_device: bool = False
    """Whether it computes on a GPU where there is one."""

    def fingerprint(self, context: Context) -> str:
        """Name of the folder of the stage's tables, see `runs.fingerprint`. Raises what ``inputs`` raises."""
        return fingerprint(self.name, self.version, self.settings(context.config), self.inputs(context), context.redo.get(self.name, 0))


def begin(context: Context, stage: Stage) -> None:
    """Record in the run where the stage's tables will be. Raises what `Stage.inputs` and `Run.begin_stage` raise."""
    planned = {table: names for step in stage.steps if (names := step.plan(context)) for table in step.tables}
    context.run.begin_stage(stage.name, stage.fingerprint(context), planned, shared=stage.shared)


def missing(context: Context, stage: Stage, step: Step) -> list[str]:
    """The planned shard names that at least one table of the step does not have yet."""
    done = set.intersection(*(context.shards(stage, table).names() for table in step.tables))
    return [name for name in step.plan(context) if name not in done]


def run_stage(context: Context, stage: Stage) -> dict[str, float]:
    """Make the missing shards of a stage in this process, without an orchestrator. Returns the sums of their facts, see `work`."""
    begin(context, stage)
    sums: dict[str, float] = {}
    for step in stage.steps:
        names = missing(context, stage, step)
        if names:
            add(sums, work(context, stage, step, names))
    return sums


def add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    """Add the counts in ``more`` to ``sums`` in place, key by key."""
    for key, value in more.items():
        sums[key] = sums.get(key, 0) + value


def slices(names: Sequence[str], most: int) -> list[list[str]]:
    """``names`` cut into at most ``most`` consecutive slices of nearly equal length."""
    count = min(most, len(names))
    return [list(names[len(names) * i // count : len(names) * (i + 1) // count]) for i in range(count)]


def work(context: Context, stage: Stage, step: Step, names: Sequence[str], progress: Progress = silent) -> dict[str, float]:
    """Make the named shards and commit them one by one. No other loop writes tables.

    Returns the sums of the numeric facts of the shards that were made, and their number as ``shards``.
    Raises GsecError if a named shard was not made.
    """
    sums: dict[str, float] = {"shards": 0}
    started = time.monotonic()
    places = [context.shards(stage, table) for table in step.tables]
    # A slice that was interrupted after its last shard has no names left.
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
