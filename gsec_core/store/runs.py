"""Runs: a directory of small files, each created once. Nothing in it is ever changed.

``request.json`` holds the request, ``decision.json`` what the run decided about the published model, ``stage-NAME.json`` where a stage's tables are
(written before its first shard), ``attempt-ID-start.json`` and ``-end.json`` which process worked on the run and how that ended, ``result.json`` what a
finished run found. A run's id is a hash of its request, so the same request finds the same run and completes it.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pyarrow as pa
import xxhash

from gsec_core.config import AUTO, PipelineConfig, recorded
from gsec_core.errors import GsecError, LostTable, Refused, Unreachable
from gsec_core.store import records
from gsec_core.store.corpus import SHARED, Corpus
from gsec_core.store.files import Files
from gsec_core.store.shards import Shards
from gsec_core.tables import KEPT, REFIT_TABLE

_DECISION = "decision.json"


@dataclass(frozen=True)
class Run:
    """One request for a clustering. `Store.run` and `Store.request_run` return one."""

    files: Files
    id: str
    _read: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Records that were read, by name. No record ever changes, and a run asks for its request hundreds of times."""

    @property
    def directory(self) -> str:
        """Path of the run's records below the store."""
        return f"runs/{self.id}"

    def exists(self) -> bool:
        """Whether the run has been requested."""
        return "request.json" in self.files.files(self.directory)

    def request(self) -> dict[str, Any]:
        """The record with the keys ``config`` (all settings), ``corpus``, ``generation``, ``redo`` (stage -> counter), ``stages`` (names),
        ``created``, and, for the other runs it refers to, ``of_run``, ``counting`` and ``previous`` (see `Store.request_run`).

        Raises Refused if there is no such run.
        """
        try:
            return self._load("request.json")
        except FileNotFoundError:
            raise Refused(f"--run {self.id}: there is no such run in {self.files.url}. `gsec status` lists the runs.") from None

    def asked(self) -> PipelineConfig:
        """The settings of the request, with the present URL of the store, which may have been moved."""
        return recorded(self.request()["config"]).model_copy(update={"store": self.files.url})

    def config(self) -> PipelineConfig:
        """As `asked`, with the number of clusters decided on."""
        decision = self.decision()
        clusters = {} if decision is None or decision["clusters"] is None else {"clusters": decision["clusters"]}
        return self.asked().model_copy(update=clusters)

    def decision(self) -> dict[str, Any] | None:
        """What the run decided about the published model: the row of its table `refit`. None before the decision, or if the run makes none."""
        if _DECISION in self.files.files(self.directory):
            return self._load(_DECISION)
        if not any(REFIT_TABLE in record["tables"] for record in self.stages().values()):
            return None
        found = self._own_table(REFIT_TABLE)
        return None if found is None else dict(found[0].read(found[1][0]).to_pylist()[0])

    def stage_names(self) -> list[str]:
        """The stages of the run, in order. A run that keeps the published model has fewer than were requested."""
        names: list[str] = self.request()["stages"]
        left_out = (self.decision() or {}).get("left_out", ())
        return [name for name in names if name not in left_out]

    def model(self) -> "Run":
        """The run whose model labels the images: the run itself, or the published run if it keeps that one's model."""
        decision = self.decision()
        return self if decision is None or decision["decision"] != KEPT else Run(self.files, decision["model"])

    def begin_stage(self, stage: str, fingerprint: str, tables: Mapping[str, Sequence[str]], shared: bool = False) -> None:
        """Record where a stage's tables are and which shards each will have, before the first shard is written.

        ``shared`` tables belong to all corpora of the store. Raises GsecError if the stage was begun with other inputs than it has now:
        these were damaged, and what replaced them is different.
        """
        if decision := self.decision():  # from now on the decision is known without reading a table
            self._create(_DECISION, decision)
        record: dict[str, Any] = {"fingerprint": fingerprint, "tables": {table: list(names) for table, names in tables.items()}}
        if shared:
            record["shared"] = True
        if not self._create(f"stage-{stage}.json", record) and self.stage(stage) != record:
            raise GsecError(f"run {self.id}: the input of stage {stage} changed since the stage began. Start it again with --redo {stage}.")

    def stage(self, stage: str) -> dict[str, Any] | None:
        """The record that `begin_stage` wrote, or None if the stage has not begun."""
        try:
            return self._load(f"stage-{stage}.json")
        except FileNotFoundError:
            return None

    def fingerprint(self, stage: str) -> str:
        """The fingerprint of a stage as the run recorded it; a newer gsec may compute another one. Raises Refused if the stage has not begun."""
        record = self.stage(stage)
        if record is None:
            raise Refused(f"run {self.id} has not begun stage {stage}. Run it first: gsec stage {stage} --run {self.id}.")
        return str(record["fingerprint"])

    def place(self, record: Mapping[str, Any]) -> Corpus:
        """The corpus that holds the tables of a record of `begin_stage`: the run's own, or the one of the shared tables."""
        return Corpus(self.files, SHARED if record.get("shared") else self.request()["corpus"])

    def check_stage(self, stage: str) -> None:
        """Raises Refused if the run does not have this stage.

        Reasons: it keeps another run's model, only assigns images, only finds the number of clusters, its settings
        need no such stage, or an older gsec made it.
        """
        stages = self.stage_names()
        if stage not in stages:
            request = self.request()
            if stage in request["stages"]:
                model = self.model().id
                raise Refused(
                    f"run {self.id} keeps the model of run {model} and has no stage {stage} of its own. Name run {model}, or fit again with --redo train."
                )
            hint = " Its settings need no such stage. Or an older gsec made the run: then repeat the same gsec run, which makes one with this stage."
            if of_run := request.get("of_run"):
                hint = f" It assigns images to the clusters of run {of_run}: name that run."
            elif request["config"]["clusters"] == AUTO:
                hint = " It finds the number of clusters for another run: name that run, or give the number."
            raise Refused(f"run {self.id} has no stage {stage}; it has {', '.join(stages)}.{hint}")

    def shards_done(self, stage: str) -> tuple[int, int]:
        """How many shards of a stage exist and how many are planned; (0, 0) if it has not begun. Reads only directory listings."""
        record = self.stage(stage)
        if record is None:
            return 0, 0
        corpus = self.place(record)
        there = {table: corpus.table(table, record["fingerprint"]).names() for table in record["tables"]}
        done = [name in there[table] for table, names in record["tables"].items() for name in names]
        return sum(done), len(done)

    def is_complete(self, stage: str) -> bool:
        """Whether all planned shards of the stage exist."""
        done, planned = self.shards_done(stage)
        return 0 < planned == done

    def is_finished(self) -> bool:
        """Whether every stage of the run is complete."""
        return all(self.is_complete(stage) for stage in self.stage_names())

    def stages(self) -> dict[str, dict[str, Any]]:
        """Stage -> record, for every stage that has begun."""
        names = [name for name in self.files.files(self.directory) if name.startswith("stage-")]
        return {name.removeprefix("stage-").removesuffix(".json"): self._load(name) for name in names}

    def table(self, name: str) -> tuple[Shards, list[str]]:
        """The `Shards` of a table and the names of the table's shards. Reads tables of a finished run, without its stages.

        A table that the run does not make itself is that of the run whose model it keeps. Raises LostTable if a shard is missing, and Refused if the run
        has no such table.
        """
        found = self._own_table(name)
        if found is not None:
            return found
        stage = next((stage for stage, record in self.stages().items() if name in record["tables"]), None)
        if stage is not None:
            raise LostTable(name, self.id, stage)
        if (model := self.model()) != self:
            return model.table(name)
        raise Refused(f"run {self.id} has no complete table {name}. Finish the run first: the same gsec run again.")

    def read_table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a table, or some columns of them. Raises as `table` does, and BadShard for damaged shards."""
        shards, names = self.table(name)
        return pa.concat_tables(shards.read_all(names, columns))

    def _own_table(self, name: str) -> tuple[Shards, list[str]] | None:
        for stage in self.request()["stages"]:  # in order, so that the embeddings found are those of the first encoder
            record = self.stage(stage)
            if record is not None and name in record["tables"]:
                shards = self.place(record).table(name, record["fingerprint"])
                planned: list[str] = record["tables"][name]
                if set(planned) <= shards.names():
                    return shards, planned
        return None

    @contextmanager
    def attempt(self, provenance: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Context manager that records that this process works on the run. The items of the yielded dict are recorded at the end.

        An attempt without an end record was killed, or is still in progress.
        """
        attempt = uuid4().hex
        self._create(f"attempt-{attempt}-start.json", {"at": now(), "host": socket.gethostname(), "process": os.getpid(), **provenance})
        facts: dict[str, Any] = {}
        try:
            yield facts
        except BaseException as error:
            with suppress(OSError, Unreachable):  # on a full disk there is no end record, but the first error must be raised
                said = ": ".join(filter(None, (type(error).__name__, str(error))))  # Ctrl-C says nothing
                self._create(f"attempt-{attempt}-end.json", {"at": now(), "outcome": "failed", "error": said, **facts})
            raise
        self._create(f"attempt-{attempt}-end.json", {"at": now(), "outcome": "done", **facts})

    def finish(self, found: Mapping[str, Any]) -> None:
        """Record the results of the finished run, for lists of runs. If there is a record already, it stays."""
        self._create("result.json", {"at": now(), **found})

    def result(self) -> dict[str, Any] | None:
        """The record that `finish` wrote, or None if there is none."""
        return self._load("result.json") if "result.json" in self.files.files(self.directory) else None

    def attempts(self) -> list[dict[str, Any]]:
        """Start and end of every attempt, oldest first: ``{"start": ..., "end": ... or None}``."""
        names = self.files.files(self.directory)
        found = []
        for name in names:
            if name.startswith("attempt-") and name.endswith("-start.json"):
                end = name.replace("-start.json", "-end.json")
                found.append({"start": self._load(name), "end": self._load(end) if end in names else None})
        return sorted(found, key=lambda attempt: str(attempt["start"]["at"]))

    def _create(self, name: str, value: Mapping[str, Any]) -> bool:
        return self.files.create(f"{self.directory}/{name}", records.to_json(value))

    def _load(self, name: str) -> dict[str, Any]:
        """Raises BadRecord, or FileNotFoundError if there is no such record."""
        if name in self._read:
            return self._read[name]
        # A directory without a request is not a run. Any other record is not needed, or the next run writes the same again.
        gone = f"the directory {self.files.location(self.directory)}" if name == "request.json" else "this file"
        remedy = f"Remove {gone}: the tables of the run stay, and the same gsec run makes it again."
        self._read[name] = records.read(self.files, f"{self.directory}/{name}", dict, remedy)
        return self._read[name]


def run_id(stages: Mapping[str, Any], corpus: str, generation: int, redo: Mapping[str, int], pipeline: str | None, previous: Mapping[str, Any] | None) -> str:
    """The id of a request: a hash of everything that changes its output, and of nothing else. 32 hex digits.

    ``stages`` maps each stage to what determines its output besides its inputs and its redo counter, or to None if nothing does. ``pipeline`` is the
    pipeline that the run may publish under, and ``previous`` is the `Publication.previous` of the publication it continues.
    """
    told = [{stage: what for stage, what in stages.items() if what is not None}, corpus, generation, dict(redo), pipeline, previous and dict(previous)]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())


def fingerprint(stage: str, version: int, settings: Mapping[str, Any], inputs: list[str], redo: int | list[int]) -> str:
    """Name of the directory of a stage's tables: xxh3-128 of everything that determines their rows. 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(json.dumps([stage, version, dict(settings), inputs, redo], sort_keys=True).encode())


def now() -> str:
    """The current UTC time in ISO format with milliseconds, as in every record."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
