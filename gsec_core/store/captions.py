"""The captions log of a corpus: what captioners answered, paid once.

Its work is keys and not planned shards: content hash, model and request, the last a hash of all that was asked. Only
final answers are rows. Shards are small commits named by their rows; nothing but `prune` ever changes one.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from gsec_core.errors import BadShard, GsecError
from gsec_core.store.shards import Shards
from gsec_core.tables import CAPTIONS, FAILED

Row = dict[str, Any]
"""Of schema CAPTIONS; ``model`` and ``request`` are the log's to fill in."""


PARTS = "merged"
"""What the footer of a merged shard calls the names of its parts."""


@dataclass(frozen=True)
class CaptionsLog:
    """The part of `Corpus.captions` that one model wrote at one request."""

    shards: Shards
    model: str
    request: str
    before: tuple[str, ...] = ()
    """The same request, oldest first, as it was before its failures were to be asked again: of these the failures do not count."""

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Commit some rows; none is no commit, and the same rows again change nothing."""
        if rows:
            table = pa.Table.from_pylist([{**row, "model": self.model, "request": self.request} for row in rows], schema=CAPTIONS)
            self.shards.commit(_name(table), table)

    def rows(self, *, accept_loss: bool = False) -> dict[bytes, Row]:
        """Content hash -> row. Of several the one with the smallest (written_at, file name) counts, so that every reader has the same.

        Raises GsecError if a part of the log is damaged; with ``accept_loss`` it is set aside, and what only it held
        counts as never asked.
        """
        while True:
            requests = (*self.before, self.request)
            found: list[dict[bytes, tuple[str, str, Row]]] = [{} for _ in requests]
            try:
                for name, table in self.shards.read_each(sorted(self.shards.names())):
                    ours = table.filter(pc.and_(pc.equal(table["model"], self.model), pc.is_in(table["request"], pa.array(requests))))
                    for row in ours.to_pylist():
                        first = found[requests.index(row["request"])]
                        place = (row["written_at"], name, row)
                        if row["content_hash"] not in first or place[:2] < first[row["content_hash"]][:2]:
                            first[row["content_hash"]] = place
            except FileNotFoundError:
                continue  # set aside, or merged, by another process since it was listed
            except BadShard as error:
                if not accept_loss:
                    raise _damaged(error) from None
                for path in error.paths:
                    self.shards.set_aside(path.rpartition("/")[2].removesuffix(".parquet"))
            *before, now = [{key: row for key, (_, _, row) in first.items()} for first in found]
            for older in reversed(before):
                now |= {key: row for key, row in older.items() if row["status"] != FAILED}
            return now


def readable(shards: Shards) -> Iterator[tuple[str, pa.Table]]:
    """The parts of a log that can be read. Left out are damaged ones, of which who runs describe decides, and those that went meanwhile, being merged."""
    for name in sorted(shards.names()):
        with suppress(BadShard, FileNotFoundError):
            yield name, shards.read(name)


def merge(shards: Shards, names: Collection[str]) -> bool:
    """Write one shard with the rows of several, which stay. Its footer names them, so that they can go when nobody reads them any more.

    False if there is nothing to write: it is there, or no two of them can be read.
    """
    parts = {name: table for name, table in readable(shards) if name in names}
    if len(parts) < 2:
        return False
    table = pa.concat_tables(parts.values(), promote_options="default").cast(CAPTIONS)
    return shards.commit(_name(table), table, {PARTS: list(parts)})


def spent(shards: Shards) -> list[dict[str, Any]]:
    """What a log's answers took, by model: a row each, whatever was asked. Each answer counts once, however often a killed process wrote it."""
    rows: dict[tuple[bytes, str, str], Row] = {}
    for _, table in readable(shards):
        for row in table.drop(["text", "object", "attributes"]).to_pylist():
            key = row["content_hash"], row["model"], row["request"]
            if key not in rows or row["written_at"] < rows[key]["written_at"]:
                rows[key] = row
    found = []
    for model in sorted({model for _, model, _ in rows}):
        ours = [row for row in rows.values() if row["model"] == model]
        requests, prompt, completion = (sum(row.get(key) or 0 for row in ours) for key in ("requests", "prompt_tokens", "completion_tokens"))
        timed = [row for row in ours if row.get("seconds")]  # a batch does not say
        found.append(
            {
                "model": model,
                "answers": len(ours),
                "failed": sum(row["status"] == FAILED for row in ours),
                "requests": requests,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "seconds_a_reply": round(sum(row["seconds"] for row in timed) / sum(row["requests"] for row in timed), 3) if timed else None,
            }
        )
    return found


def _name(table: pa.Table) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(table.to_pylist(), default=bytes.hex).encode())


def _damaged(error: BadShard) -> GsecError:
    """Not a BadShard: that would be set aside and made again without a word, and here again means paid again."""
    return GsecError(
        f"describe: the captions log is damaged ({error}), and its answers would have to be asked for, and paid, again. Restore the file from a copy, "
        "or go on without it with --set describe.accept_loss=true."
    )
