"""Descriptions that a user already has, in a Parquet or CSV file."""

import re

from gsec_core.captioners.base import Answer, Subject
from gsec_core.captioners.template import VERSION, failed, parse
from gsec_core.errors import Refused
from gsec_core.sources.keyed import file_digest, read_keyed

_SETTING = "describe.captioner"
_REFERENCE = re.compile(r"(?P<file>.+\.(?:parquet|csv))(?::(?P<column>.+))?", re.IGNORECASE)
"""FILE, or FILE:COLUMN. Both may contain colons, so they are separated after the file name's extension."""


class TableCaptioner:
    """Looks up each image by its URI, or by its bytes if the file contains images: see `gsec_core.sources.keyed`."""

    concurrency = 1
    form = "as it was written"

    def __init__(self, reference: str) -> None:
        file, column = file_and_column(reference)
        self.model = table_model(reference)
        self._descriptions = read_keyed(file, column, setting=_SETTING)
        odd = next((value for value in self._descriptions.values.values() if not isinstance(value, str)), None)
        if odd is not None:
            raise Refused(f"{_SETTING}: the column {column!r} holds {type(odd).__name__} values; descriptions are text, so name a column of text.")

    def check(self) -> None:
        """Nothing to check: the file was read at construction."""

    async def describe(self, subject: Subject) -> Answer:
        description = self._descriptions.lookup(subject.uri, subject.content_hash)
        return parse(description) if isinstance(description, str) else failed("the table has no description of this image")


def table_identity(reference: str) -> dict[str, object]:
    """Identity for fingerprints: digest of the file, and column. Raises Refused if there is no such file."""
    file, column = file_and_column(reference)
    return {"name": "table", "digest": file_digest(file, setting=_SETTING), "column": column, "template": VERSION}


def table_model(reference: str) -> str:
    """Name of the model: ``table:COLUMN``, independent of the file."""
    return f"table:{file_and_column(reference)[1]}"


def file_and_column(reference: str) -> tuple[str, str]:
    """The parts of FILE:COLUMN; the default column is `text`. Raises Refused for another form."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise Refused(f"{_SETTING}: write `table:FILE:COLUMN`, FILE being a .parquet or .csv file.")
    return match["file"], match["column"] or "text"
