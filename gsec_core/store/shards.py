"""Parquet shards: a table with a fingerprint is one flat directory, whose listing shows which shards are done.

Every shard has page checksums, which are verified on every read, and in its footer a record (rows, counters,
timings). Parquet has no checksum of the footer, so its digest is stored before it, where readers of Parquet do not look.
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
"""Prefix of the names of shards that were set aside. Readers of Parquet directories skip names with a leading underscore."""
_RECORD = b"gsec"
_DIGEST_SIZE = 16
_TAIL_SIZE = 8
"""Bytes at the end of a Parquet file: the length of the footer, and PAR1."""


@dataclass(frozen=True)
class Shards:
    """The shards in one directory of a store."""

    files: Files
    directory: str

    def names(self) -> set[str]:
        """Names of the committed shards, without their suffix, from one directory listing."""
        return {name.removesuffix(_SUFFIX) for name in self.files.files(self.directory) if name.endswith(_SUFFIX) and not self.is_aside(name)}

    def commit(self, name: str, table: pa.Table, facts: Mapping[str, Any] | None = None) -> bool:
        """Write a shard atomically, with ``facts`` (JSON-able) in its footer. Returns False if the shard exists already; then that one stays."""
        return self.files.create(self.path(name), _to_parquet(table, facts or {}))

    def read(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of a shard, verified. Raises BadShard, or FileNotFoundError if there is none."""
        return self._parse(name, lambda file: _read_verified(file, columns))

    def facts(self, name: str) -> dict[str, Any]:
        """The record in the footer: ``rows`` and what the writer added. Reads no rows."""
        return self._parse(name, _record)

    def read_each(self, names: Iterable[str], columns: Sequence[str] | None = None) -> Iterator[tuple[str, pa.Table]]:
        """Iterate over the names and rows of several shards. BadShard is raised at the end, and names all bad shards."""
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
        """Call ``look`` on each name and yield the name with the result, or with the error that it raised.

        Results come in the order of ``names``; ``Files.readers`` calls run at once.
        """

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
        """The rows of several shards, in order. Raises as `read_each` does."""
        return [table for _, table in self.read_each(names, columns)]

    def set_aside(self, name: str) -> bool:
        """Rename a bad shard, so that it counts as not done. Returns False if the shard is good or missing: another process has dealt with it."""
        aside = f"{self.directory}/{_ASIDE}{uuid4().hex[:8]}-{name}{_SUFFIX}"
        try:
            self.read(name)
        except BadShard:
            try:
                self.files.move(self.path(name), aside)
            except FileNotFoundError:
                return False
            # Between our read and our rename another run may have set the bad shard aside and written a good one.
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
        """Names of the shards that were ever set aside, from one directory listing."""
        asides = (file.removeprefix(_ASIDE) for file in self.files.files(self.directory) if self.is_aside(file))
        return {file.partition("-")[2].removesuffix(_SUFFIX) for file in asides}

    @staticmethod
    def name_of(path: str) -> str:
        """Name of the shard with this path, as a BadShard gives it."""
        return path.rpartition("/")[2].removesuffix(_SUFFIX)

    @staticmethod
    def is_aside(file: str) -> bool:
        """Whether a file's name is that of a shard that was set aside."""
        return file.startswith(_ASIDE)

    def replace(self, name: str, table: pa.Table, facts: Mapping[str, Any]) -> None:
        """Overwrite a shard. Only for maintenance that removes rows."""
        self.files.replace(self.path(name), _to_parquet(table, facts))

    def path(self, name: str) -> str:
        """Path of the shard below the store."""
        return f"{self.directory}/{name}{_SUFFIX}"

    def location(self, name: str) -> str:
        """Full path or URL of the shard, as a user would type it."""
        return self.files.location(self.path(name))

    def _parse(self, name: str, parse: Callable[[Any], T]) -> T:
        path = self.path(name)
        try:
            with self.files.open(path) as file:
                return parse(file)
        except FileNotFoundError:
            raise
        except Exception:  # noqa: BLE001 - nothing is swallowed: the full read below raises a failed read again
            # Arrow raises OSError both for a failed read and for bad bytes. Reading the whole file separates them: a failed
            # read raises again, and bytes that cannot be parsed from memory are bad.
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
    """Open the file after checking the digest of its footer. With a damaged footer pyarrow may crash or return wrong rows."""
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
    # pre_buffer=False: see `_read_verified`; pyarrow 26 reads ahead by default, in threads of its own.
    return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{field.name}.list.element" if pa.types.is_nested(field.type) else field.name for field in schema]


def _record(file: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(_open_verified(file).schema_arrow.metadata[_RECORD])
    return record


def _read_verified(file: Any, columns: Sequence[str] | None) -> pa.Table:
    # use_threads=False: an Arrow thread that still holds a Python file when the interpreter exits aborts the process.
    table = _open_verified(file).read(columns=None if columns is None else list(columns), use_threads=False)
    table.validate(full=True)
    return table.replace_schema_metadata(None)


def _is_good(data: bytes) -> bool:
    try:
        _read_verified(io.BytesIO(data), None)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True
