"""The captions log of a corpus: the answers of captioners, so that each is paid for only once.

A row is found by its key (content hash, model, request), where the request is a hash of everything that was asked; there is no
plan of shards. Only final answers become rows. Each commit writes a small shard named by the hash of its rows, which only `prune` ever changes.
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
"""A row of schema CAPTIONS. `CaptionsLog.append` fills in ``model`` and ``request``."""


PARTS = "merged"
"""Key in the footer of a merged shard; the value is the list of the names of the merged parts."""


@dataclass(frozen=True)
class CaptionsLog:
    """The rows of `Corpus.captions` for one model and one request."""

    shards: Shards
    model: str
    request: str
    before: tuple[str, ...] = ()
    """Former hashes of the same request, oldest first, each from before a user had its failures asked again. Their failed answers do not count."""

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Commit rows as one shard. Without rows nothing is written, and rows that were committed before change nothing."""
        if rows:
            table = pa.Table.from_pylist([{**row, "model": self.model, "request": self.request} for row in rows], schema=CAPTIONS)
            self.shards.commit(_name(table), table)

    def rows(self, *, accept_loss: bool = False) -> dict[bytes, Row]:
        """The rows by content hash. If a key has several rows, the one with the smallest (written_at, file name) counts for every reader.

        Raises GsecError if a shard of the log is damaged. With ``accept_loss`` the shard is set aside instead, and answers
        that only it held count as never asked.
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
                continue  # another process has set the shard aside, or merged it, since it was listed
            except BadShard as error:
                if not accept_loss:
                    raise _damaged(error) from None
                for path in error.paths:
                    self.shards.set_aside(self.shards.name_of(path))
            *before, now = [{key: row for key, (_, _, row) in first.items()} for first in found]
            for older in reversed(before):
                now |= {key: row for key, row in older.items() if row["status"] != FAILED}
            return now


def readable(shards: Shards) -> Iterator[tuple[str, pa.Table]]:
    """The readable shards of a log. Damaged ones are left out (the user who runs describe decides about them), as are those removed meanwhile."""
    for name in sorted(shards.names()):
        with suppress(BadShard, FileNotFoundError):
            yield name, shards.read(name)


def merge(shards: Shards, names: Collection[str]) -> bool:
    """Write one shard with the rows of several others, which stay. Its footer names them, so that `prune` can remove them later.

    Returns False if nothing was written: the merged shard exists already, or fewer than two of the others can be read.
    """
    parts = {name: table for name, table in readable(shards) if name in names}
    if len(parts) < 2:
        return False
    table = pa.concat_tables(parts.values(), promote_options="default").cast(CAPTIONS)
    return shards.commit(_name(table), table, {PARTS: list(parts)})


def spent(shards: Shards) -> list[dict[str, Any]]:
    """Answers, requests, tokens and time by model: one row for each, over all requests. An answer that was written repeatedly counts once."""
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
        timed = [row for row in ours if row.get("seconds")]  # replies of an offline batch have no time
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
    """A GsecError, not a BadShard: a bad shard is set aside and made again without asking, and these answers would be paid for again."""
    return GsecError(
        f"describe: the captions log is damaged ({error}), and its answers would have to be requested, and paid for, again. Restore the file from a "
        "copy, or continue without it: --set describe.accept_loss=true."
    )
