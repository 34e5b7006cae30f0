"""Which files of a store nobody needs any more.

Kept are runs that are published, unfinished, or among the newest of their corpus, and those whose clusters they assign
to or continue; the tables they name; the generations they read and every corpus's newest. Embeddings and descriptions of live images
are kept whoever made them: they are what costs. Nothing younger than a day is deleted, so that a run that has not written
its request yet is safe, and files that were set aside are never deleted.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from gsec_core.config import AUTO
from gsec_core.errors import BadShard
from gsec_core.store import Corpus, Generation, Run, Shards, Store
from gsec_core.store.captions import PARTS, merge, readable
from gsec_core.tables import EMBEDDINGS_TABLE, THUMBNAILS_TABLE

GRACE = timedelta(hours=24)
"""Nothing younger is deleted."""

KEEP_RUNS = 5
"""Newest runs of each corpus that are kept."""


MANY, LARGE, MOST_MERGED = 16, 4096, 65_536
"""So many parts of a captions log become one, if they have less than so many rows each, up to so many together."""


@dataclass(frozen=True)
class Deletion:
    """One thing to delete, or to write anew, and why."""

    path: str
    why: str
    carry_out: Callable[[], None]


def plan(store: Store, keep_runs: int = KEEP_RUNS) -> list[Deletion]:
    """What `prune` would delete, in an order in which being killed half-way leaves a good store."""
    oldest = datetime.now(UTC) - GRACE
    kept = _kept_runs(store, keep_runs)
    dropped = sorted(store.files.directories("runs") - {run.id for run in kept})
    found = [deletion for id in dropped for deletion in _files_of(store, f"runs/{id}", "the run is old")]
    for corpus in store.corpora():
        found += _of_corpus(store, corpus, [run for run in kept if run.request()["corpus"] == corpus.name], oldest)
    return [deletion for deletion in found if _is_older(store, deletion.path, oldest)] + [
        merging for corpus in store.corpora() for merging in _mergings(store, corpus.captions, oldest)
    ]


def _is_older(store: Store, path: str, than: datetime) -> bool:
    try:
        return store.files.modified(path) < than
    except FileNotFoundError:
        return False  # a temporary file that became a shard, or another prune's prey


def _kept_runs(store: Store, keep_runs: int) -> list[Run]:
    kept = []
    published = store.published_runs()
    newest: Counter[tuple[str, bool]] = Counter()
    for run in reversed(store.runs()):
        request = run.request()
        kind = request["corpus"], request["config"]["clusters"] == AUTO  # those that find a number for others count by themselves
        newest[kind] += 1
        if newest[kind] <= keep_runs or run.id in published or not run.is_finished():
            kept.append(run)
    needed = {run.request().get("of_run") for run in kept}  # whose clusters a kept run's images are assigned to
    needed |= {(run.request().get("previous") or {}).get("run_id") for run in kept if not run.is_finished()}  # whose cluster keys it continues
    return kept + [run for run in store.runs() if run.id in needed - {run.id for run in kept}]


def _of_corpus(store: Store, corpus: Corpus, kept: list[Run], oldest: datetime) -> Iterator[Deletion]:
    numbers = {run.request()["generation"] for run in kept} | {max(corpus.generation_numbers(), default=0)}
    generations = [corpus.generation(number) for number in sorted(numbers - {0})]
    listed = {name for generation in generations for name in generation.shard_names}
    named = {(table, record["fingerprint"]) for run in kept for record in run.stages().values() for table in record["tables"]}
    for number in corpus.generation_numbers():
        if number not in numbers:
            yield _file(store, corpus.generation_path(number), "no kept run reads this generation")
    for shards in [corpus.images, corpus.captions, *corpus.tables()]:
        by_image_shard = shards.directory.split("/")[1] in ("images", EMBEDDINGS_TABLE, THUMBNAILS_TABLE)
        if not by_image_shard and shards != corpus.captions and tuple(shards.directory.split("/")[1:]) not in named:
            yield from _files_of(store, shards.directory, "no kept run names this table")
            continue
        for folder in [shards.directory, *(f"{shards.directory}/{name}" for name in sorted(store.files.directories(shards.directory)))]:
            for leftover in sorted(store.files.leftovers(folder)):
                yield _file(store, f"{folder}/{leftover}", "left by a killed writer")
        for name in sorted(shards.names()) if by_image_shard else ():
            if name not in listed:
                yield _file(store, shards.path(name), "its images are in no kept generation")
    if generations:
        yield from _thumbnails_of_deleted(corpus, generations[-1], listed)
        yield from _captions_of_deleted(corpus, generations[-1])
    yield from _merged(store, corpus.captions, oldest)


def _thumbnails_of_deleted(corpus: Corpus, newest: Generation, listed: set[str]) -> Iterator[Deletion]:
    """Deleted images lose their pictures, unless a live image has the same bytes."""
    live = corpus.live_rows(newest).select(["image_id", "shard"])
    live_shards = set(live["shard"].to_pylist())
    for thumbnails in corpus.tables(THUMBNAILS_TABLE):
        embeddings = corpus.table(EMBEDDINGS_TABLE, thumbnails.directory.rpartition("/")[2])
        if not live_shards <= embeddings.names():
            continue  # of an image that is not encoded yet nobody knows whose bytes it has
        names = sorted(thumbnails.names() & embeddings.names() & listed)
        hashes = pa.concat_tables([_with_shard(name, embeddings.read(name, ["image_id", "content_hash"])) for name in names]) if names else None
        if hashes is None:
            continue
        alive = hashes.join(live, ["image_id", "shard"], join_type="inner")["content_hash"]
        doomed = hashes.filter(pc.invert(pc.is_in(hashes["content_hash"], alive)))
        for name in sorted(set(doomed["shard"].to_pylist())):
            gone = doomed.filter(pc.equal(doomed["shard"], name))["image_id"]
            pictures = thumbnails.read(name)
            left = pictures.filter(pc.invert(pc.is_in(pictures["image_id"], gone)))
            if left.num_rows < pictures.num_rows:
                why = f"{pictures.num_rows - left.num_rows} thumbnails of deleted images"
                yield Deletion(thumbnails.path(name), why, _rewriting(thumbnails, name, left))


def _captions_of_deleted(corpus: Corpus, newest: Generation) -> Iterator[Deletion]:
    """Deleted images lose their descriptions, unless a live image has the same bytes."""
    alive = _live_contents(corpus, newest)
    if alive is None:
        return
    for name, captions in readable(corpus.captions):
        left = captions.filter(pc.is_in(captions["content_hash"], alive))
        if left.num_rows < captions.num_rows:
            why = f"{captions.num_rows - left.num_rows} descriptions of deleted images"
            yield Deletion(corpus.captions.path(name), why, _rewriting(corpus.captions, name, left))


def _merged(store: Store, captions: Shards, oldest: datetime) -> Iterator[Deletion]:
    """Parts of a captions log whose rows stand in a merged one that is there for a day, so that whoever listed the parts has read them."""
    names = captions.names()
    for name in sorted(names):
        try:
            parts = names & set(captions.facts(name).get(PARTS, ()))
            if not parts or not _is_older(store, captions.path(name), oldest):
                continue
            captions.read(name)  # only what can be read makes its parts needless
        except (BadShard, FileNotFoundError):
            continue
        for part in sorted(parts):
            yield _file(store, captions.path(part), f"its descriptions are in {name}")


def _mergings(store: Store, captions: Shards, oldest: datetime) -> Iterator[Deletion]:
    """Many small parts of a captions log become a large one."""
    small, rows, merged = [], 0, set()
    for name in sorted(captions.names()):
        try:
            facts = captions.facts(name)
        except (BadShard, FileNotFoundError):
            continue
        merged |= set(facts.get(PARTS, ()))
        if facts["rows"] < LARGE and rows < MOST_MERGED and _is_older(store, captions.path(name), oldest):
            small.append(name)
            rows += facts["rows"]
    small = [name for name in small if name not in merged]
    if len(small) >= MANY:
        yield Deletion(captions.directory, f"its {len(small)} small parts become one, and go a day later", partial(merge, captions, small))


def _live_contents(corpus: Corpus, newest: Generation) -> pa.ChunkedArray | None:
    """Content hashes of the live images; None if some are not encoded yet, as nobody knows whose bytes those have.

    An image that cannot be read for now is taken to have the bytes that it ever had, whichever encoder read them.
    """
    live = corpus.live_rows(newest).select(["image_id", "shard"])
    live_shards = set(live["shard"].to_pylist())
    tables = [(embeddings, names) for embeddings in corpus.tables(EMBEDDINGS_TABLE) if (names := embeddings.names())]
    if not any(live_shards <= names for _, names in tables):
        return None
    rows = pa.concat_tables(_with_shard(name, embeddings.read(name, ["image_id", "content_hash"])) for embeddings, names in tables for name in sorted(names))
    now = rows.join(live, ["image_id", "shard"], join_type="inner")
    unread = now.filter(pc.is_null(now["content_hash"]))["image_id"]
    before = rows.filter(pc.is_in(rows["image_id"], unread))["content_hash"]
    return pa.chunked_array([*now["content_hash"].chunks, *before.chunks], rows.schema.field("content_hash").type)


def _rewriting(shards: Shards, name: str, left: pa.Table) -> Callable[[], None]:
    def rewrite() -> None:
        with suppress(FileNotFoundError):  # another prune was here
            shards.replace(name, left, shards.facts(name))

    return rewrite


def _with_shard(name: str, table: pa.Table) -> pa.Table:
    return table.append_column("shard", pa.array([name] * table.num_rows, pa.string()))


def _file(store: Store, path: str, why: str) -> Deletion:
    def remove() -> None:
        with suppress(FileNotFoundError):  # another prune was here
            store.files.remove(path)

    return Deletion(path, why, remove)


def _files_of(store: Store, directory: str, why: str) -> list[Deletion]:
    """All files of a directory, and below it, but those that were set aside; a run's request first, so that half of a run is none."""
    names = store.files.files(directory) | store.files.leftovers(directory)
    ordered = sorted((name for name in names if not Shards.is_aside(name)), key=lambda name: (name != "request.json", name))
    below = [deletion for name in sorted(store.files.directories(directory)) for deletion in _files_of(store, f"{directory}/{name}", why)]
    return [*below, *(_file(store, f"{directory}/{name}", why) for name in ordered)]
