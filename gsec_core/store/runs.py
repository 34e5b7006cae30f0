"""Runs: a directory of small files, each created once. Nothing in it is ever changed.

``request.json`` says what was asked, ``decision.json`` what became of the published model, ``stage-NAME.json`` where a stage's tables are (written before
its first shard), ``attempt-ID-start.json`` and ``-end.json`` who worked on it and how it ended, ``result.json`` what a finished run found. A run's identity is
what was asked, so the same request finds its run again and does what is missing.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import xxhash

from gsec_core.config import AUTO, PipelineConfig, recorded
from gsec_core.errors import GsecError, Refused, Unreachable
from gsec_core.store import records
from gsec_core.store.corpus import SHARED, Corpus
from gsec_core.store.files import Files
from gsec_core.store.shards import Shards
from gsec_core.tables import KEPT, REFIT_TABLE

_DECISION = "decision.json"


@dataclass(frozen=True)
class Run:
    """One request for a clustering. Made by `Store.run` and `Store.request_run`."""

    files: Files
    id: str

    @property
    def directory(self) -> str:
        return f"runs/{self.id}"

    def exists(self) -> bool:
        """Whether the run was ever asked for."""
        return "request.json" in self.files.files(self.directory)

    def request(self) -> dict[str, Any]:
        """``config`` (all settings), ``corpus``, ``generation``, ``redo`` (stage -> counter), ``stages`` (names), ``created``; and the runs it is
        about: ``of_run``, ``counting``, ``previous`` (see `Store.request_run`)."""
        try:
            return self._load("request.json")
        except FileNotFoundError:
            raise Refused(f"--run {self.id}: there is no such run in {self.files.url}. `gsec status` lists the runs.") from None

    def config(self) -> PipelineConfig:
        """The settings of the request, with this store as the store (it may have been moved) and as many clusters as were decided on."""
        decision = self.decision()
        clusters = {} if decision is None or decision["clusters"] is None else {"clusters": decision["clusters"]}
        return recorded(self.request()["config"]).model_copy(update={"store": self.files.url, **clusters})

    def decision(self) -> dict[str, Any] | None:
        """What the run decided about the published model, the row of its table `refit`; None before that, or if it decides nothing."""
        if _DECISION in self.files.files(self.directory):
            return self._load(_DECISION)
        if not any(REFIT_TABLE in record["tables"] for record in self.stages().values()):
            return None
        found = self._own_table(REFIT_TABLE)
        return None if found is None else dict(found[0].read(found[1][0]).to_pylist()[0])

    def stage_names(self) -> list[str]:
        """The stages that it takes to finish the run, in order. Those of a run that keeps the published model are fewer than were asked for."""
        names: list[str] = self.request()["stages"]
        left_out = (self.decision() or {}).get("left_out", ())
        return [name for name in names if name not in left_out]

    def model(self) -> "Run":
        """The run whose model labels this one's images: itself, but for a run that keeps the published one."""
        decision = self.decision()
        return self if decision is None or decision["decision"] != KEPT else Run(self.files, decision["model"])

    def begin_stage(self, stage: str, fingerprint: str, tables: Mapping[str, Sequence[str]], shared: bool = False) -> None:
        """Record where a stage's tables are and which shards each will have, before the first is written; ``shared`` ones are the store's.

        Raises GsecError if the stage was begun with other inputs than it has now: they were damaged and could not be
        restored as they were.
        """
        if decision := self.decision():  # from now on that is known without a table
            self._create(_DECISION, decision)
        record: dict[str, Any] = {"fingerprint": fingerprint, "tables": {table: list(names) for table, names in tables.items()}}
        if shared:
            record["shared"] = True
        if not self._create(f"stage-{stage}.json", record) and self.stage(stage) != record:
            raise GsecError(f"run {self.id}: the input of stage {stage} changed since the stage began. Start it again with --redo {stage}.")

    def stage(self, stage: str) -> dict[str, Any] | None:
        """What `begin_stage` recorded; None if the stage has not begun."""
        try:
            return self._load(f"stage-{stage}.json")
        except FileNotFoundError:
            return None

    def place(self, record: Mapping[str, Any]) -> Corpus:
        """Where the tables are of which `begin_stage` recorded this: below the run's corpus, or below what all corpora share."""
        return Corpus(self.files, SHARED if record.get("shared") else self.request()["corpus"])

    def check_stage(self, stage: str) -> None:
        """Raises Refused unless the run has this stage: it assigns, finds the number of clusters, or an older gsec asked for it."""
        stages = self.stage_names()
        if stage not in stages:
            request = self.request()
            if stage in request["stages"]:
                model = self.model().id
                raise Refused(
                    f"run {self.id} keeps the model of run {model} and has no stage {stage} of its own. Name that run, or fit again with --redo train."
                )
            older = " An older gsec made it: the same gsec run again makes one with this stage."
            if request.get("of_run"):
                older = ""
            elif request["config"]["clusters"] == AUTO:
                older = " It finds the number of clusters for another run: name that run, or give the number."
            raise Refused(f"run {self.id} has no stage {stage}; it has {', '.join(stages)}.{older}")

    def shards_done(self, stage: str) -> tuple[int, int]:
        """How many shards a stage has and how many it will have; (0, 0) if it has not begun. Reads listings, no rows."""
        record = self.stage(stage)
        if record is None:
            return 0, 0
        corpus = self.place(record)
        there = {table: corpus.table(table, record["fingerprint"]).names() for table in record["tables"]}
        done = [name in there[table] for table, names in record["tables"].items() for name in names]
        return sum(done), len(done)

    def is_complete(self, stage: str) -> bool:
        """Whether nothing of the stage is missing, by what the run recorded."""
        done, planned = self.shards_done(stage)
        return 0 < planned == done

    def is_finished(self) -> bool:
        """Whether every stage that the request wants is complete."""
        return all(self.is_complete(stage) for stage in self.stage_names())

    def stages(self) -> dict[str, dict[str, Any]]:
        """Every stage that has begun."""
        names = [name for name in self.files.files(self.directory) if name.startswith("stage-")]
        return {name.removeprefix("stage-").removesuffix(".json"): self._load(name) for name in names}

    def table(self, name: str) -> tuple[Shards, list[str]]:
        """Where a table of this run is, and the names of its shards. For readers of finished tables that need no stage.

        Raises Refused unless every shard is there.
        """
        found = self._own_table(name)
        if found is not None:
            return found
        if not any(name in record["tables"] for record in self.stages().values()) and (model := self.model()) != self:
            return model.table(name)
        raise Refused(f"run {self.id} has no complete table {name}. Finish the run first: the same gsec run again, or gsec stage NAME --run {self.id}.")

    def _own_table(self, name: str) -> tuple[Shards, list[str]] | None:
        for stage in self.request()["stages"]:  # in their order: embeddings are those of the first encoder
            record = self.stage(stage)
            if record is not None and name in record["tables"]:
                shards = self.place(record).table(name, record["fingerprint"])
                planned: list[str] = record["tables"][name]
                if set(planned) <= shards.names():
                    return shards, planned
        return None

    @contextmanager
    def attempt(self, provenance: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Record that a process works on the run. What the block puts into the yielded dict is recorded at its end.

        An attempt without an end was killed, or is still in progress.
        """
        attempt = uuid4().hex
        self._create(f"attempt-{attempt}-start.json", {"at": now(), "host": socket.gethostname(), "process": os.getpid(), **provenance})
        facts: dict[str, Any] = {}
        try:
            yield facts
        except BaseException as error:
            with suppress(OSError, Unreachable):  # on a full disk it stays without an end; what went wrong first is to be heard
                self._create(f"attempt-{attempt}-end.json", {"at": now(), "outcome": "failed", "error": f"{type(error).__name__}: {error}", **facts})
            raise
        self._create(f"attempt-{attempt}-end.json", {"at": now(), "outcome": "done", **facts})

    def finish(self, found: Mapping[str, Any]) -> None:
        """Record what the finished run found, for lists of runs; the first record stays."""
        self._create("result.json", {"at": now(), **found})

    def result(self) -> dict[str, Any] | None:
        """What `finish` recorded; None if the run is not finished."""
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
        # Without its request a run is none. Any other record is missed by nobody, or made again as it was.
        gone = f"the directory {self.files.location(self.directory)}" if name == "request.json" else "this file"
        remedy = f"Remove {gone}: the tables of the run stay, and the same gsec run makes it again."
        return records.read(self.files, f"{self.directory}/{name}", dict, remedy)


def run_id(stages: Mapping[str, Any], corpus: str, generation: int, redo: Mapping[str, int], pipeline: str | None, previous: Mapping[str, Any] | None) -> str:
    """The identity of a request: all that changes its output, and nothing else. 32 hex digits.

    ``stages`` holds, for each stage, all that determines its output beside its inputs and its redo counter, or None if that is nothing; ``pipeline`` names
    where the clustering is to be published, and ``previous`` what of the published one it continues.
    """
    told = [{stage: what for stage, what in stages.items() if what is not None}, corpus, generation, dict(redo), pipeline, previous and dict(previous)]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())


def fingerprint(stage: str, version: int, settings: Mapping[str, Any], inputs: list[str], redo: int | list[int]) -> str:
    """Where a stage's tables are: xxh3-128 over all that determines their rows. 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(json.dumps([stage, version, dict(settings), inputs, redo], sort_keys=True).encode())


def now() -> str:
    """UTC, to the millisecond, as every record has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
