"""Values for images that a user already has in a column of a file: descriptions, or labels to score a result with.

The file is Parquet or CSV, local or remote. Its column ``uri``, as in `assignments`, tells which image a row is about;
without it, a column ``image`` with the encoded images (binary, or a struct with ``bytes``, as in image data sets).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import xxhash
from fsspec import AbstractFileSystem

from gsec_core.errors import GsecError, Refused, Unreachable, shortened
from gsec_core.images.decode import content_hash
from gsec_core.sources.address import is_local, normalise_url
from gsec_core.sources.parquet import leaf_of
from gsec_core.sources.storage import file_version, open_filesystem

_URI, _IMAGE = "uri", "image"

FORMULA = r"[\s\p{Z}\p{C}]*[=+\-@＝＋－＠]|[\t\r\n]"
"""Matches, at its beginning, the text of a cell that a spreadsheet would execute (OWASP, CSV injection). `gsec export` puts an apostrophe before it."""


@dataclass(frozen=True)
class Keyed:
    """The values of one column, by image."""

    by_uri: bool
    values: Mapping[str | bytes, object]
    """Values by URI relative to the source, or by content hash (16 bytes). Rows without a value, or with NaN, are left out."""

    def lookup(self, uri: str, content_hash: bytes) -> object | None:
        """The value of an image, or None if it has none."""
        return self.values.get(uri if self.by_uri else content_hash)


def read_keyed(file: str, column: str, *, setting: str) -> Keyed:
    """Read one column of a file.

    Raises Refused, naming ``setting``, if there is no such file or column, if the file is damaged or has no column for images, or
    if an image has two different values; Unreachable if the file's store does not answer.
    """
    fs, path, url = _open(file, setting)
    values: dict[str | bytes, object] = {}
    with _in_the_users_words(url, setting), fs.open(path, "rb") as raw:
        csv = url.lower().endswith(".csv")
        schema, batches = _read_csv(raw, column) if csv else _read_parquet(raw, column)
        if schema.get_field_index(column) < 0:
            raise Refused(f"{setting}: {url} has no column {json.dumps(column)}; it has {', '.join(schema.names)}.")
        if csv and pa.types.is_binary(schema.field(column).type):  # Arrow reads texts in another encoding as bytes
            raise Refused(f"{setting}: the column {json.dumps(column)} of {url} is not UTF-8: save the file in this encoding.")
        key = _key(schema)
        if key is None:
            raise Refused(f"{setting}: the rows of {url} name no images: it needs a column `uri`, as in `assignments`, or `image` with the encoded images.")
        row = 0
        for batch in batches:
            for image, value in zip(_keys(batch, key), batch.column(column).to_pylist(), strict=True):
                row += 1
                if value != value:  # NaN, which writers of tables of numbers put where a value is missing
                    continue
                if image is not None and value is not None and values.setdefault(image, value) != value:
                    raise Refused(
                        f"{setting}: row {row} of {url} has {_shown(value)} in {json.dumps(column)}, an earlier row has {_shown(values[image])} "
                        f"for the same {key}{'' if isinstance(image, bytes) else f' {image}'}. Keep one of them."
                    )
    return Keyed(key == _URI, values)


def file_digest(file: str, *, setting: str) -> str:
    """xxh3-128 of a file's bytes, in hex. Raises as `read_keyed`."""
    fs, path, url = _open(file, setting)
    with _in_the_users_words(url, setting):
        return _digest(url, file_version(fs, path))


@lru_cache(maxsize=16)
def _digest(url: str, version: str) -> str:
    fs, path = open_filesystem(url)
    with fs.open(path, "rb") as raw:
        return hashlib.file_digest(raw, xxhash.xxh3_128).hexdigest()


def _open(file: str, setting: str) -> tuple[AbstractFileSystem, str, str]:
    """The filesystem, the path on it, and the normalised address, which contains no secrets."""
    try:
        url = normalise_url(file)
        if not is_local(url) and url.partition("://")[2] != file.partition("://")[2]:
            raise Refused("")
    except Refused:  # its text is not shown, because it may contain secrets
        raise Refused(f"{setting}: give a local file or one at s3://, gs:// or abfs://, without credentials or a query, as its address is recorded.") from None
    if not url.lower().endswith((".parquet", ".csv")):
        raise Refused(f"{setting}: {url} is neither a .parquet nor a .csv file; give one of these.")
    try:
        return *open_filesystem(url), url
    except Refused as error:
        raise Refused(f"{setting}: {error}") from None


@contextmanager
def _in_the_users_words(url: str, setting: str) -> Iterator[None]:
    try:
        yield
    except GsecError:
        raise
    except FileNotFoundError:
        raise Refused(f"{setting}: there is no file {url}.") from None
    except (IsADirectoryError, PermissionError) as error:
        raise Refused(f"{setting}: {url} cannot be read ({error.strerror or error}): give one file that this user may read.") from None
    except pa.ArrowException as error:
        raise Refused(f"{setting}: {url} is damaged or not what its name says: {' '.join(str(error).split())}") from None
    except Exception as error:  # the drivers of object stores raise classes of their own
        if type(error) is OSError and error.errno is None:  # raised by Arrow for bytes that it cannot decode
            raise Refused(f"{setting}: {url} is damaged: {' '.join(str(error).split())}") from None
        raise Unreachable(f"{setting}: {url} does not answer: {type(error).__name__}: {error}") from error


_Read = tuple[pa.Schema, Iterable[pa.RecordBatch]]


def _read_csv(raw: IO[bytes], column: str) -> _Read:
    parsing = pa.csv.ParseOptions(newlines_in_values=True)
    # An empty cell is no value; a class may well be called "null" or "NA".
    converting = pa.csv.ConvertOptions(column_types={_URI: pa.string()}, strings_can_be_null=True, null_values=[""])
    table = pa.csv.read_csv(raw, parse_options=parsing, convert_options=converting)
    if (place := table.schema.get_field_index(column)) >= 0 and pa.types.is_integer(table.schema.field(place).type):
        raw.seek(0)
        converting.column_types, converting.include_columns = {column: pa.string()}, [column]
        texts = pa.csv.read_csv(raw, parse_options=parsing, convert_options=converting)[column]
        if pc.any(pc.match_substring_regex(texts, r"^\s*[+-]?0\d")).as_py():  # 007 and 7 are different classes
            table = table.set_column(place, column, texts)
    if (place := table.schema.get_field_index(_URI)) >= 0:
        table = table.set_column(place, _URI, pc.replace_substring_regex(table[_URI], f"^'({FORMULA})", r"\1"))
    return table.schema, table.to_batches()


def _read_parquet(raw: IO[bytes], column: str) -> _Read:
    """Read batches lazily, because the images may not fit in memory. Of a struct column of images only ``bytes`` is read."""
    file = pq.ParquetFile(raw, pre_buffer=False)
    schema = file.schema_arrow
    key = _key(schema)
    leaf = leaf_of(schema.field(_IMAGE)) if key == _IMAGE else key
    return schema, file.iter_batches(batch_size=256, columns=[leaf, column], use_threads=False)


def _key(schema: pa.Schema) -> str | None:
    """The column that identifies images, or None."""
    if schema.get_field_index(_URI) >= 0:
        return _URI
    return _IMAGE if schema.get_field_index(_IMAGE) >= 0 and leaf_of(schema.field(_IMAGE)) else None


def _keys(batch: pa.RecordBatch, key: str) -> list[str | None] | list[bytes | None]:
    column = batch.column(key)
    if key == _URI:
        uris: list[str | None] = column.to_pylist()
        return uris
    data = column.flatten()[0] if pa.types.is_struct(column.type) else column
    return [None if value.as_py() is None else content_hash(value.as_py()) for value in data]


def _shown(value: object) -> str:
    return shortened(json.dumps(value, default=str, ensure_ascii=False), 80)
