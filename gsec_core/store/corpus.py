"""A corpus: images of one source, growing by generations.

A generation is a JSON file that lists the `images` shards which count, oldest first. Shards are named by the hash of
their rows, so that a writer that was killed, or lost the race for a generation, leaves nothing that counts.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import uuid4

import polars as pl
import pyarrow as pa
import xxhash

from gsec_core.errors import BadShard, GsecError, Refused
from gsec_core.store import records
from gsec_core.store.files import Files
from gsec_core.store.shards import Shards
from gsec_core.tables import IMAGES

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
"""What a corpus or a pipeline may be called: a folder's name on every filesystem, and a part of an address."""


SHARED = "vocabularies"
"""The folder of tables that all corpora of a store share. It is no corpus, and no corpus is called so."""


class ImagesShard(NamedTuple):
    """One shard of `images`: its name is the digest of its rows."""

    name: str
    rows: int
    generation: int
    """The generation that wrote it."""


@dataclass(frozen=True)
class Generation:
    """One state of a corpus: number 0 is the empty corpus before its first ingest."""

    number: int
    shards: tuple[ImagesShard, ...]
    listing: str | None = None
    """Digest of the source's listing that its live rows are; None of a generation that an older gsec wrote."""

    @property
    def shard_names(self) -> list[str]:
        return [shard.name for shard in self.shards]


EMPTY = Generation(0, ())


@dataclass(frozen=True)
class Corpus:
    """A named corpus of a store. Made by `Store.corpus`."""

    files: Files
    name: str

    @property
    def images(self) -> Shards:
        return Shards(self.files, f"{self.name}/images")

    @property
    def captions(self) -> Shards:
        """The captions log; see `captions`."""
        return Shards(self.files, f"{self.name}/captions/log")

    def bind(self, source: dict[str, Any]) -> None:
        """Tie the corpus to its source at the first ingest. Raises as `check_bound` does."""
        if not self.files.create(f"{self.name}/corpus.json", records.to_json(source)):
            self.check_bound(source)

    def check_bound(self, source: dict[str, Any]) -> None:
        """Raises Refused if the corpus is tied to another source."""
        try:
            bound = self.source()
        except FileNotFoundError:
            return
        if bound != source:
            raise Refused(f"corpus {self.name} belongs to {_words(bound)}, not to {_words(source)}. Choose another name with --corpus.")

    def source(self) -> dict[str, Any]:
        """What the corpus is bound to. FileNotFoundError if there is no such corpus, BadRecord if that cannot be read."""
        return records.read(self.files, f"{self.name}/corpus.json", dict, "Remove this file: the next gsec run of its source writes it again.")

    def generation_numbers(self) -> list[int]:
        return sorted(int(name.removesuffix(".json")) for name in self.files.files(f"{self.name}/generations"))

    def generation(self, number: int | None = None) -> Generation:
        """The generation of that number; without a number the newest, which is EMPTY before the first ingest.

        Raises FileNotFoundError, or BadRecord if it cannot be read.
        """
        if number is None:
            number = max(self.generation_numbers(), default=0)
        if number == 0:
            return EMPTY
        # It is not to be removed: another of its number would list other images, and a run is known by the number.
        remedy = 'Replace it by a copy of the file before it, or by {"shards": []} if there is none: the next gsec run adds what is missing.'
        return records.read(self.files, self.generation_path(number), lambda record: Generation(number, _shards(record), record.get("listing")), remedy)

    def add_generation(self, base: Generation, rows: list[pa.Table], listing: str | None = None) -> bool:
        """Write ``rows`` (tables of schema IMAGES, a shard each) on top of ``base``; ``listing`` is `Generation`'s. False if another writer was first."""
        number = base.number + 1
        new = []
        for table in rows:
            name = _digest(table, number)
            self.images.commit(name, table)
            new.append(ImagesShard(name, table.num_rows, number))
        record: dict[str, Any] = {"shards": [shard._asdict() for shard in (*base.shards, *new)]}
        if listing is not None:
            record["listing"] = listing
        return self.files.create(self.generation_path(number), records.to_json(record))

    def is_listed(self, generation: Generation) -> bool:
        """Whether every shard of a generation is there, by one listing; reads none."""
        return set(generation.shard_names) <= self.images.names()

    def live_rows(self, generation: Generation) -> pa.Table:
        """Which images count in a generation: for each the row in its newest shard, unless that is a tombstone.

        Returns the columns of `images` but ``deleted``, and ``shard``, the name of the shard the row is in, in no
        particular order. Raises GsecError if a listed shard is bad, which is set aside then, or not there.
        """
        try:
            tables = self.images.read_all(generation.shard_names)
        except (FileNotFoundError, BadShard) as error:
            if isinstance(error, BadShard):
                self._set_aside(error)
            raise GsecError(f"corpus {self.name}: its image list is damaged ({error}). The next `gsec run` of its source writes it again.") from None
        return newest_rows(tables, generation.shard_names)

    def _set_aside(self, error: BadShard) -> None:
        """So that the next ingest, which reads no list that is there as a whole, sees that some of it is gone."""
        for path in error.paths:
            with suppress(PermissionError):  # of those who may only read; `gsec doctor --verify` does it then
                self.images.set_aside(path.rpartition("/")[2].removesuffix(".parquet"))

    def redo_counters(self) -> dict[str, int]:
        """How often each stage was asked to be done again: stage -> count, stages never redone left out."""
        counters: dict[str, int] = {}
        for name in self.files.files(f"{self.name}/redo"):
            stage, _, count = name.rpartition("-")
            counters[stage] = max(counters.get(stage, 0), int(count))
        return counters

    def redo(self, stage: str, asked_by: str | None = None) -> int:
        """Raise a stage's redo counter: from now on its tables have other fingerprints. Returns the counter.

        A caller that may be killed and ask again gives a name of its own as ``asked_by``: the counter that was raised for it is
        not raised for it again.
        """
        asker = (asked_by or uuid4().hex).encode()  # of an object store the answer to a first try may be lost
        while True:
            count = self.redo_counters().get(stage, 0)
            raised = (number for number in range(count, 0, -1) if self.files.read(f"{self.name}/redo/{stage}-{number}") == asker)
            if (mine := next(raised, None)) is not None:
                return mine
            if self.files.create(f"{self.name}/redo/{stage}-{count + 1}", asker):
                return count + 1

    def table(self, name: str, fingerprint: str) -> Shards:
        """The derived table of that name and fingerprint; it need not exist yet."""
        return Shards(self.files, f"{self.name}/{name}/{fingerprint}")

    def tables(self, name: str | None = None) -> list[Shards]:
        """Every derived table there is, or every one of that name; the captions log is none."""
        names = [name] if name else sorted(self.files.directories(self.name) - {"images", "generations", "redo", "captions"})
        return [self.table(table, fingerprint) for table in names for fingerprint in sorted(self.files.directories(f"{self.name}/{table}"))]

    def generation_path(self, number: int) -> str:
        """Path of a generation's file below the store."""
        return f"{self.name}/generations/{number:06d}.json"


def newest_rows(tables: list[pa.Table], names: list[str]) -> pa.Table:
    """Of ``tables`` (schema IMAGES, oldest first) each image's newest row, tombstones dropped; see `Corpus.live_rows`."""
    if not tables:
        return _LIVE.empty_table()
    frames = [pl.DataFrame(table).with_columns(shard=pl.lit(name)) for table, name in zip(tables, names, strict=True)]
    rows = pl.concat(frames).unique("image_id", keep="last", maintain_order=True)
    return rows.filter(~pl.col("deleted")).drop("deleted").to_arrow().cast(_LIVE)


_LIVE = IMAGES.remove(IMAGES.get_field_index("deleted")).append(pa.field("shard", pa.string(), nullable=False))


def _digest(table: pa.Table, generation: int) -> str:
    """xxh3-128 of the rows themselves, whatever writes them to Parquet, and of the generation that wants them.

    Without the latter an image that was missing and is listed again unchanged would find its old shard done.
    """
    columns = [[value.hex() if isinstance(value, bytes) else value for value in column] for column in table.to_pydict().values()]
    return xxhash.xxh3_128_hexdigest(json.dumps([generation, columns]).encode())


def _shards(record: dict[str, Any]) -> tuple[ImagesShard, ...]:
    return tuple(ImagesShard(**shard) for shard in record["shards"])


def _words(source: dict[str, Any]) -> str:
    return " ".join(f"{value}" if key == "url" else f"({key} {value})" for key, value in sorted(source.items(), key=lambda item: item[0] != "url"))
