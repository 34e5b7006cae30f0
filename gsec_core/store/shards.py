"""Parquet shards: one table of one fingerprint is one flat directory, and its listing says what is done.

Every shard carries page checksums, verified on every read, and in its footer a record (rows, counters,
timings). Parquet has no checksum of the footer: a digest of it stands before it, where readers of Parquet do not look.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gsec_core.errors import BadShard
from gsec_core.store.files import Files

T = TypeVar("T")

_SUFFIX = ".parquet"
_ASIDE = "_bad-"
"""How the name of a shard that was set aside begins. Readers of Parquet directories skip what begins with an underscore."""
_RECORD = b"gsec"
_DIGEST_SIZE = 16
_TAIL_SIZE = 8
"""Length of the footer, and PAR1."""


@dataclass(frozen=True)
class Shards:
    """The shards below one directory of a store."""

    files: Files
    directory: str

    def names(self) -> set[str]:
        """What is done: the names of the committed shards, without their suffix. One listing."""
        return {name.removesuffix(_SUFFIX) for name in self.files.files(self.directory) if name.endswith(_SUFFIX) and not self.is_aside(name)}

    def commit(self, name: str, table: pa.Table, facts: Mapping[str, Any] | None = None) -> bool:
        """Write a shard whole, with ``facts`` (JSON-able) in its footer. False if there was one already: the first stays."""
        return self.files.create(self.path(name), _to_parquet(table, facts or {}))

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a shard, verified. Raises BadShard, or FileNotFoundError if there is none."""
        return self._parse(name, lambda file: _read_verified(file, columns))

    def facts(self, name: str) -> dict[str, Any]:
        """What the footer says: ``rows`` and what the writer added. Reads no rows."""
        return self._parse(name, _record)

    def read_each(self, names: Iterable[str], columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Several shards with their names, one after the other. BadShard comes last, so that one pass finds all that is bad."""
        bad = []
        for name, found in self.look_at(names, partial(self.read, columns=columns)):
            if isinstance(found, BadShard):
                bad.append(found)
            elif isinstance(found, FileNotFoundError):
                raise found
            else:
                yield name, found
        if bad:
            raise BadShard.of(bad)

    def look_at(self, names: Iterable[str], look: Callable[[str], T]) -> Iterator[tuple[str, T | BadShard | FileNotFoundError]]:
        """What ``look`` finds of each of several shards, or why it cannot; in order, and as many at once as the store's files are read."""

        def looked(name: str) -> T | BadShard | FileNotFoundError:
            try:
                return look(name)
            except (BadShard, FileNotFoundError) as error:
                return error

        if self.files.readers == 1:
            yield from ((name, looked(name)) for name in names)
            return
        with ThreadPoolExecutor(self.files.readers, thread_name_prefix="read") as pool:
            left = iter(names)
            while some := list(islice(left, self.files.readers)):
                yield from zip(some, pool.map(looked, some), strict=True)

    def read_all(self, names: Iterable[str], columns: Sequence[str] | None = None) -> list[pa.Table]:
        """Several shards, in order. Raises as `read_each` does."""
        return [table for _, table in self.read_each(names, columns)]

    def set_aside(self, name: str) -> bool:
        """Rename a bad shard, so that it counts as not done. False if it is good, or gone: another process has seen to it."""
        aside = f"{self.directory}/{_ASIDE}{uuid4().hex[:8]}-{name}{_SUFFIX}"
        try:
            self.read(name)
        except BadShard:
            try:
                self.files.move(self.path(name), aside)
            except FileNotFoundError:
                return False
            # Between our look and our rename another run may have set it aside and made it again.
            data = self.files.read(aside)
            if _is_good(data):
                self.files.create(self.path(name), data)
                self.files.remove(aside)
                return False
            return True
        except FileNotFoundError:
            return False
        return False

    def names_set_aside(self) -> set[str]:
        """Names of which a bad shard was ever set aside. One listing."""
        asides = (file.removeprefix(_ASIDE) for file in self.files.files(self.directory) if self.is_aside(file))
        return {file.partition("-")[2].removesuffix(_SUFFIX) for file in asides}

    @staticmethod
    def is_aside(file: str) -> bool:
        """Whether a file's name is that of a shard that was set aside."""
        return file.startswith(_ASIDE)

    def replace(self, name: str, table: pa.Table, facts: Mapping[str, Any]) -> None:
        """Write a shard over the one there is. For maintenance that takes rows away, nothing else."""
        self.files.replace(self.path(name), _to_parquet(table, facts))

    def path(self, name: str) -> str:
        """Path of the shard below the store."""
        return f"{self.directory}/{name}{_SUFFIX}"

    def location(self, name: str) -> str:
        """What a user types to open the shard."""
        return self.files.location(self.path(name))

    def _parse(self, name: str, parse: Callable[[Any], T]) -> T:
        path = self.path(name)
        try:
            with self.files.open(path) as file:
                return parse(file)
        except FileNotFoundError:
            raise
        except Exception:  # noqa: BLE001 - nothing is swallowed: the whole read below fails in turn, or its bytes are bad or good
            # Arrow reports both a failed read and bad bytes as OSError. Which it was, a whole read tells: it raises the
            # former by itself, and what cannot be parsed from memory is bad.
            data = self.files.read(path)
            try:
                return parse(io.BytesIO(data))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise BadShard(path, str(error)) from None


def _to_parquet(table: pa.Table, facts: Mapping[str, Any]) -> bytes:
    record = {**facts, "rows": table.num_rows}
    text = json.dumps(record, sort_keys=True).encode()
    table = table.replace_schema_metadata({_RECORD: text})
    # Vectors and JPEGs do not compress; the rest does.
    plain = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type) or field.type == pa.binary()]
    compression = {path: "none" if path.split(".")[0] in plain else "zstd" for path in _leaves(table.schema)}
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression=compression,
        use_dictionary=[name for name in table.schema.names if name not in plain],
        write_page_checksum=True,
        store_schema=True,
    )
    return _with_digest(buffer.getvalue())


def _with_digest(parquet: bytes) -> bytes:
    footer = len(parquet) - _TAIL_SIZE - int.from_bytes(parquet[-_TAIL_SIZE:-4], "little")
    return parquet[:footer] + xxhash.xxh3_128_digest(parquet[footer:]) + parquet[footer:]


def _open_verified(file: Any) -> pq.ParquetFile:
    """The file, if its footer is what was written: pyarrow may crash on another one, or read other rows from it."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL_SIZE))
    tail = file.read(_TAIL_SIZE)
    start = size - _TAIL_SIZE - int.from_bytes(tail[:4], "little") - _DIGEST_SIZE
    if start < 0:
        raise ValueError("its end is missing")
    file.seek(start)
    digest, footer = file.read(_DIGEST_SIZE), file.read()
    if xxhash.xxh3_128_digest(footer) != digest:
        raise ValueError("the footer does not match its digest")
    return pq.ParquetFile(file, page_checksum_verification=True)


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{field.name}.list.element" if pa.types.is_nested(field.type) else field.name for field in schema]


def _record(file: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(_open_verified(file).schema_arrow.metadata[_RECORD])
    return record


def _read_verified(file: Any, columns: Sequence[str] | None) -> pa.Table:
    # In this thread: a thread of Arrow's that still holds a Python file when the interpreter ends aborts the process.
    table = _open_verified(file).read(columns=None if columns is None else list(columns), use_threads=False)
    table.validate(full=True)
    return table.replace_schema_metadata(None)


def _is_good(data: bytes) -> bool:
    try:
        _read_verified(io.BytesIO(data), None)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True
