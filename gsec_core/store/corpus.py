"""A corpus: images of one source, growing by generations.

A generation is a JSON file that lists its `images` shards, oldest first. Shards are named by the hash of
their rows: a writer that was killed, or lost the race for a generation, leaves only shards that no generation lists.
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
"""Valid names of corpora and pipelines: each can be a folder on every filesystem, and a part of a URL."""


SHARED = "vocabularies"
"""Folder of the tables that all corpora of a store share. It is not a corpus, and no corpus can have this name."""


class ImagesShard(NamedTuple):
    """One shard of `images`. Its name is the digest of its rows."""

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
    """Digest of the listing of the source from which the generation was made; None if an older gsec wrote the generation."""

    @property
    def shard_names(self) -> list[str]:
        """Names of the shards, oldest first."""
        return [shard.name for shard in self.shards]


EMPTY = Generation(0, ())


@dataclass(frozen=True)
class Corpus:
    """A named corpus of a store. `Store.corpus` returns one."""

    files: Files
    name: str

    @property
    def images(self) -> Shards:
        """The table `images` of all generations."""
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
        """The source that the corpus is bound to. Raises FileNotFoundError if there is no such corpus, BadRecord if its record is damaged."""
        return records.read(self.files, f"{self.name}/corpus.json", dict, "Remove this file: the next gsec run of its source writes it again.")

    def generation_numbers(self) -> list[int]:
        """Numbers of the generations in the store, ascending, from one directory listing."""
        return sorted(int(name.removesuffix(".json")) for name in self.files.files(f"{self.name}/generations"))

    def generation(self, number: int | None = None) -> Generation:
        """The generation with this number, by default the newest; before the first ingest that is EMPTY.

        Raises FileNotFoundError, or BadRecord if it cannot be read.
        """
        if number is None:
            number = max(self.generation_numbers(), default=0)
        if number == 0:
            return EMPTY
        # A damaged generation must not be removed: the next ingest would give its number to other images, and runs refer to the number.
        remedy = 'Replace it by a copy of the file before it, or by {"shards": []} if there is none: the next gsec run adds what is missing.'
        return records.read(self.files, self.generation_path(number), lambda record: Generation(number, _shards(record), record.get("listing")), remedy)

    def add_generation(self, base: Generation, rows: list[pa.Table], listing: str | None = None) -> bool:
        """Write a new generation: the shards of ``base`` and one new shard for each table of ``rows`` (schema IMAGES).

        ``listing`` is `Generation.listing`. Returns False if another writer has written a generation on ``base`` already.
        """
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
        """Whether every shard of a generation exists, from one directory listing. Reads no shard."""
        return set(generation.shard_names) <= self.images.names()

    def live_rows(self, generation: Generation) -> pa.Table:
        """The live images of a generation: of each image the row in its newest shard, unless that row is a tombstone.

        Returns the columns of `images` without ``deleted``, and ``shard``, the name of the shard that holds the row, in no
        particular order. Raises GsecError if a listed shard is missing, or is bad; bad shards are set aside.
        """
        try:
            tables = self.images.read_all(generation.shard_names)
        except (FileNotFoundError, BadShard) as error:
            if isinstance(error, BadShard):
                self._set_aside(error)
            if generation.number < max(self.generation_numbers(), default=0):
                raise GsecError(
                    f"corpus {self.name}: the image list of its generation {generation.number} is damaged ({error}). Only the newest list is ever written "
                    "again, so use a run that needs no older one: gsec run with --redo train makes one."
                ) from None
            raise GsecError(f"corpus {self.name}: its image list is damaged ({error}). The next `gsec run` of its source writes it again.") from None
        return newest_rows(tables, generation.shard_names)

    def _set_aside(self, error: BadShard) -> None:
        """Set bad shards aside. The next ingest checks only whether shards exist, so it would not notice a damaged one."""
        for path in error.paths:
            with suppress(OSError):  # a user who may only read, or a disk mounted for reading; `gsec doctor --verify` sets it aside later
                self.images.set_aside(self.images.name_of(path))

    def redo_counters(self) -> dict[str, int]:
        """How often users asked to redo each stage: stage -> count, without the stages that were never redone."""
        counters: dict[str, int] = {}
        for name in self.files.files(f"{self.name}/redo"):
            stage, _, count = name.rpartition("-")
            counters[stage] = max(counters.get(stage, 0), int(count))
        return counters

    def redo(self, stage: str, asked_by: str | None = None) -> int:
        """Raise a stage's redo counter, so that its tables get new fingerprints from now on. Returns the counter.

        A caller that may be killed and ask again passes a unique name as ``asked_by``: the counter is raised only once for each name.
        """
        asker = (asked_by or uuid4().hex).encode()  # an object store's reply to the first try may be lost
        while True:
            count = self.redo_counters().get(stage, 0)
            raised = (number for number in range(count, 0, -1) if self.files.read(f"{self.name}/redo/{stage}-{number}") == asker)
            if (mine := next(raised, None)) is not None:
                return mine
            if self.files.create(f"{self.name}/redo/{stage}-{count + 1}", asker):
                return count + 1

    def table(self, name: str, fingerprint: str) -> Shards:
        """The derived table with this name and fingerprint; it need not exist yet."""
        return Shards(self.files, f"{self.name}/{name}/{fingerprint}")

    def tables(self, name: str | None = None) -> list[Shards]:
        """All derived tables of the corpus, or those with this name. The captions log does not count as a derived table."""
        names = [name] if name else sorted(self.files.directories(self.name) - {"images", "generations", "redo", "captions"})
        return [self.table(table, fingerprint) for table in names for fingerprint in sorted(self.files.directories(f"{self.name}/{table}"))]

    def generation_path(self, number: int) -> str:
        """Path of a generation's file below the store."""
        return f"{self.name}/generations/{number:06d}.json"


def newest_rows(tables: list[pa.Table], names: list[str]) -> pa.Table:
    """The newest row of each image in ``tables`` (schema IMAGES, oldest first), without tombstones; see `Corpus.live_rows`."""
    if not tables:
        return _LIVE.empty_table()
    frames = [pl.DataFrame(table).with_columns(shard=pl.lit(name)) for table, name in zip(tables, names, strict=True)]
    rows = pl.concat(frames).unique("image_id", keep="last", maintain_order=True)
    return rows.filter(~pl.col("deleted")).drop("deleted").to_arrow().cast(_LIVE)


_LIVE = IMAGES.remove(IMAGES.get_field_index("deleted")).append(pa.field("shard", pa.string(), nullable=False))


def _digest(table: pa.Table, generation: int) -> str:
    """xxh3-128 of the generation's number and of the rows, independent of their encoding in Parquet.

    Without the number, an image that vanished and is listed again unchanged would get a shard whose name exists already.
    """
    columns = list(table.to_pydict().values())
    return xxhash.xxh3_128_hexdigest(json.dumps([generation, columns], default=bytes.hex).encode())


def _shards(record: dict[str, Any]) -> tuple[ImagesShard, ...]:
    return tuple(ImagesShard(**shard) for shard in record["shards"])


def _words(source: dict[str, Any]) -> str:
    return " ".join(f"{value}" if key == "url" else f"({key} {value})" for key, value in sorted(source.items(), key=lambda item: item[0] != "url"))
