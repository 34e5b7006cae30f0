"""The captions log of a corpus: what captioners answered, paid once.

Its work is keys and not planned shards: content hash, model and request, the last a hash of all that was asked. Only
final answers are rows. Shards are small commits named by their rows; nothing but `prune` ever changes one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from gsec_core.errors import BadShard, GsecError
from gsec_core.store.shards import Shards
from gsec_core.tables import CAPTIONS

Row = dict[str, Any]
"""Of schema CAPTIONS; ``model`` and ``request`` are the log's to fill in."""


@dataclass(frozen=True)
class CaptionsLog:
    """The part of `Corpus.captions` that one model wrote at one request."""

    shards: Shards
    model: str
    request: str

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Commit some rows; none is no commit, and the same rows again change nothing."""
        if rows:
            table = pa.Table.from_pylist([{**row, "model": self.model, "request": self.request} for row in rows], schema=CAPTIONS)
            name = xxhash.xxh3_128_hexdigest(json.dumps(table.to_pylist(), default=bytes.hex).encode())
            self.shards.commit(name, table)

    def rows(self, *, accept_loss: bool = False) -> dict[bytes, Row]:
        """Content hash -> row. Of several the one with the smallest (written_at, file name) counts, so that every reader has the same.

        Raises GsecError if a part of the log is damaged; with ``accept_loss`` it is set aside, and what only it held
        counts as never asked.
        """
        while True:
            found: dict[bytes, tuple[str, str, Row]] = {}
            try:
                for name, table in self.shards.read_each(sorted(self.shards.names())):
                    ours = table.filter(pc.and_(pc.equal(table["model"], self.model), pc.equal(table["request"], self.request)))
                    for row in ours.to_pylist():
                        place = (row["written_at"], name, row)
                        if row["content_hash"] not in found or place[:2] < found[row["content_hash"]][:2]:
                            found[row["content_hash"]] = place
            except FileNotFoundError:
                continue  # set aside by another run since it was listed
            except BadShard as error:
                if not accept_loss:
                    raise _damaged(error) from None
                for path in error.paths:
                    self.shards.set_aside(path.rpartition("/")[2].removesuffix(".parquet"))
            return {content_hash: row for content_hash, (_, _, row) in found.items()}


def _damaged(error: BadShard) -> GsecError:
    """Not a BadShard: that would be set aside and made anew without a word, and here anew means paid again."""
    return GsecError(
        f"describe: the captions log is damaged ({error}), and what it held would have to be asked, and paid, again. "
        "Put the file back from a copy, or go on without it with --set describe.accept_loss=true."
    )
