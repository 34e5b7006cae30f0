"""Find the files of a store that nobody needs any more.

Kept runs: those that are published, unfinished, worked on within a day, or among the newest of their corpus; the runs whose clusters,
model or number of clusters these use; and the runs that published and unfinished runs continue. Also kept: the tables of these runs, the
generations they read, and the newest generation of each corpus. Embeddings and descriptions of live images are kept whichever run made them,
because they are expensive. Nothing younger than a day is deleted, so that a run that has not begun a stage yet is safe. Files that were set
aside are never deleted.

Other processes may use the store meanwhile. Therefore the runs are read again before a run or a table is deleted, and the list of
generations before anything that depends on it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial

import pyarrow as pa
import pyarrow.compute as pc

from gsec_core.config import AUTO
from gsec_core.errors import BadShard
from gsec_core.store import Corpus, Run, Shards, Store
from gsec_core.store.captions import PARTS, merge, readable
from gsec_core.store.files import Files
from gsec_core.tables import EMBEDDINGS_TABLE, THUMBNAILS_TABLE

_log = logging.getLogger(__name__)

GRACE = timedelta(hours=24)
"""Nothing younger is deleted."""

KEEP_RUNS = 5
"""How many of the newest runs of each corpus are kept."""


MANY, LARGE, MOST_MERGED = 16, 4096, 65_536
"""At least MANY shards of a captions log are merged into one, if each has fewer than LARGE rows and all together at most MOST_MERGED."""


@dataclass(frozen=True)
class Deletion:
    """One file to delete or to rewrite, or one captions log to merge, and why."""

    path: str
    why: str
    carry_out: Callable[[], bool]
    """Does it, and returns whether anything was done. It is not done if another run needs the file by now, or another prune has removed it."""


def plan(store: Store, keep_runs: int = KEEP_RUNS) -> list[Deletion]:
    """What `prune` would delete, in an order that leaves an intact store if the process is killed halfway.

    Raises Refused if a published run is missing.
    """
    oldest = datetime.now(UTC) - GRACE
    known = store.files.directories("runs")
    for publication in store.published():
        store.check_there(publication)  # only the run's records tell which tables must stay
    kept = _kept_runs(store, keep_runs, oldest)
    found: list[Deletion] = []
    for id in sorted(known - {run.id for run in kept}):
        found += _files_of(store, f"runs/{id}", "the run is old", cache(partial(_is_still_old, store, id, known, oldest)))
    names = _Names(store.files)
    for corpus in store.corpora():
        found += _of_corpus(store, corpus, [run for run in kept if run.request()["corpus"] == corpus.name], names, oldest)
    named = {path for run in kept for path in _named(run)[0]}
    for shards in store.shared_tables():
        if shards.directory not in named:
            found += _files_of(store, shards.directory, "no kept run names this table", cache(partial(names.lack, shards.directory)))
    return [deletion for deletion in found if _is_older(store, deletion.path, oldest)] + [
        merging for corpus in store.corpora() for merging in _mergings(store, corpus.captions, oldest)
    ]


def _is_older(store: Store, path: str, than: datetime) -> bool:
    try:
        return store.files.modified(path) < than
    except FileNotFoundError:
        return False  # a temporary file that became a shard, or a file that another prune has deleted


def _is_at_rest(store: Store, run: Run, oldest: datetime) -> bool:
    """Whether all of a run's records are older than ``oldest``."""
    return all(_is_older(store, f"{run.directory}/{name}", oldest) for name in store.files.files(run.directory))


def _kept_runs(store: Store, keep_runs: int, oldest: datetime) -> list[Run]:
    kept = []
    published = store.published_runs()
    newest: Counter[tuple[str, bool]] = Counter()
    for run in reversed(store.runs()):
        request = run.request()
        kind = request["corpus"], request["config"]["clusters"] == AUTO  # runs that only find the number of clusters are counted separately
        newest[kind] += 1
        if newest[kind] <= keep_runs or run.id in published or not run.is_finished() or not _is_at_rest(store, run, oldest):
            kept.append(run)
    # Runs whose cluster keys a kept run continues: its own keys can be computed only from those.
    continued = {_continued(run) for run in kept if run.id in published or not run.is_finished()}
    needed = _with_used(store, {run.id for run in kept} | continued)
    return kept + [run for run in store.runs() if run.id in needed - {run.id for run in kept}]


def _with_used(store: Store, ids: Set[str | None]) -> set[str | None]:
    """Ids of runs, and of all runs that these use: those whose clusters they assign to, whose model they keep, or that found the number of clusters."""
    found: set[str | None] = set()
    while new := ids - found:
        found |= new
        runs = [run for id in new if id is not None and (run := Run(store.files, id)).exists()]
        ids = {id for run in runs for id in (run.request().get("of_run"), run.model().id, run.request().get("counting"))}
    return found


def _continued(run: Run) -> str | None:
    return (run.request().get("previous") or {}).get("run_id")


def _is_still_old(store: Store, id: str, known: Set[str], oldest: datetime) -> bool:
    """Whether, since the plan was made, nobody has worked on the run, published it, or requested a new run (not in ``known``) that needs it."""
    runs = [Run(store.files, other) for other in store.published_runs() | (store.files.directories("runs") - known)]
    needed = _with_used(store, {run.id for run in runs} | {_continued(run) for run in runs if run.exists()})
    return id not in needed and _is_at_rest(store, Run(store.files, id), oldest)


def _named(run: Run) -> tuple[set[str], bool]:
    """Paths of the generation that a run reads and of its tables, and whether that is all it will ever name, because every stage has begun."""
    request, stages = run.request(), run.stages()
    corpus = Corpus(run.files, request["corpus"])
    tables = {run.place(record).table(table, record["fingerprint"]).directory for record in stages.values() for table in record["tables"]}
    return tables | {corpus.generation_path(request["generation"])}, set(run.stage_names()) <= stages.keys()


class _Names:
    """The paths that existing runs name. Each question reads the runs again, except those that have begun all their stages."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._all: dict[str, set[str]] = {}
        """Run id -> paths, for the runs that will name nothing more."""

    def lack(self, path: str) -> bool:
        """Whether no run names this generation or table."""
        return not any(path in self._of(Run(self._files, id)) for id in self._files.directories("runs"))

    def _of(self, run: Run) -> set[str]:
        if run.id in self._all:
            return self._all[run.id]
        named, are_all = _named(run) if run.exists() else (set(), False)
        if are_all:
            self._all[run.id] = named
        return named


def _of_corpus(store: Store, corpus: Corpus, kept: list[Run], names: _Names, oldest: datetime) -> Iterator[Deletion]:
    there = corpus.generation_numbers()
    read = {run.request()["generation"] for run in kept} | {max(there, default=0)}
    staying = [number for number in there if number in read or not _is_older(store, corpus.generation_path(number), oldest)]
    generations = [corpus.generation(number) for number in staying]
    listed = {name for generation in generations for name in generation.shard_names}
    named = {path for run in kept for path in _named(run)[0]}
    newest_is_lost = max(read) > max(there, default=0)  # its list of shards is unknown, and the next ingest may list them again

    def is_as_planned() -> bool:
        """Whether exactly the planned generations are left: no new one, and none that was not removed because a new run needs it."""
        return corpus.generation_numbers() == staying

    for number in there:
        if number not in staying:
            path = corpus.generation_path(number)
            yield _file(store, path, "no kept run reads this generation", partial(names.lack, path))
    for shards in [corpus.images, corpus.captions, *corpus.tables()]:
        by_image_shard = shards.directory.split("/")[1] in ("images", EMBEDDINGS_TABLE, THUMBNAILS_TABLE)
        if not by_image_shard and shards != corpus.captions and shards.directory not in named:
            yield from _files_of(store, shards.directory, "no kept run names this table", cache(partial(names.lack, shards.directory)))
            continue
        for folder in [shards.directory, *(f"{shards.directory}/{name}" for name in sorted(store.files.directories(shards.directory)))]:
            for leftover in sorted(store.files.leftovers(folder)):
                yield _file(store, f"{folder}/{leftover}", "left by a killed writer")
        for name in sorted(shards.names()) if by_image_shard and not newest_is_lost else ():
            if name not in listed:
                yield _file(store, shards.path(name), "its images are in no kept generation", is_as_planned)
    if generations and not newest_is_lost:
        live = corpus.live_rows(generations[-1]).select(["image_id", "shard"])
        yield from _unless_damaged(_of_deleted_images(corpus, live, listed, is_as_planned))
    yield from _merged(store, corpus.captions, oldest)


def _unless_damaged(found: Iterator[Deletion]) -> Iterator[Deletion]:
    """The deletions, up to a damaged shard: no run may ever read it again, and prune must not fail every night because of it."""
    try:
        yield from found
    except BadShard as error:
        _log.warning("%s. What is left of deleted images is kept, because this shard is damaged. `gsec doctor --verify` sets it aside.", error)


def _of_deleted_images(corpus: Corpus, live: pa.Table, listed: set[str], still: Callable[[], bool]) -> Iterator[Deletion]:
    """Remove the thumbnails and descriptions of deleted images, except where a ``live`` image has the same bytes."""
    alive = _live_contents(corpus, live)
    if alive is None:
        return
    for thumbnails in corpus.tables(THUMBNAILS_TABLE):
        yield from _unless_damaged(_thumbnails_of_deleted(corpus, thumbnails, alive, listed, still))
    yield from _captions_of_deleted(corpus, alive, still)


def _thumbnails_of_deleted(corpus: Corpus, thumbnails: Shards, alive: pa.ChunkedArray, listed: set[str], still: Callable[[], bool]) -> Iterator[Deletion]:
    """Remove thumbnails from a table whose content is not in ``alive``, also where no run encodes with these settings any more."""
    embeddings = corpus.table(EMBEDDINGS_TABLE, thumbnails.directory.rpartition("/")[2])
    for name, hashes in embeddings.read_each(sorted(thumbnails.names() & embeddings.names() & listed), ["image_id", "content_hash"]):
        gone = _without("content_hash", alive, hashes)["image_id"]
        if len(gone) and (count := pc.sum(pc.is_in(thumbnails.read(name, ["image_id"])["image_id"], gone)).as_py()):
            why = f"{count} thumbnails of deleted images"
            yield Deletion(thumbnails.path(name), why, _rewriting(thumbnails, name, partial(_without, "image_id", gone), still))


def _captions_of_deleted(corpus: Corpus, alive: pa.ChunkedArray, still: Callable[[], bool]) -> Iterator[Deletion]:
    """Remove descriptions of contents that are not in ``alive``."""
    for name, captions in readable(corpus.captions):
        left = captions.filter(pc.is_in(captions["content_hash"], alive))
        if left.num_rows < captions.num_rows:
            why = f"{captions.num_rows - left.num_rows} descriptions of deleted images"
            yield Deletion(corpus.captions.path(name), why, _rewriting(corpus.captions, name, partial(_with, "content_hash", alive), still))


def _merged(store: Store, captions: Shards, oldest: datetime) -> Iterator[Deletion]:
    """Remove shards of a captions log whose rows are in a merged shard that is a day old. By then a reader that listed them has read them."""
    names = captions.names()
    for name in sorted(names):
        try:
            parts = names & set(captions.facts(name).get(PARTS, ()))
            if not parts or not _is_older(store, captions.path(name), oldest):
                continue
            captions.read(name)  # the parts are superfluous only if the merged shard can be read
        except (BadShard, FileNotFoundError):
            continue
        for part in sorted(parts):
            yield _file(store, captions.path(part), f"its descriptions are in {name}")


def _mergings(store: Store, captions: Shards, oldest: datetime) -> Iterator[Deletion]:
    """Merge many small shards of a captions log into a large one."""
    facts = {name: found for name, found in captions.look_at(sorted(captions.names()), captions.facts) if isinstance(found, dict)}
    merged = {part for found in facts.values() for part in found.get(PARTS, ())}
    small, rows = [], 0
    for name, found in facts.items():
        if name not in merged and found["rows"] < LARGE and rows + found["rows"] <= MOST_MERGED and _is_older(store, captions.path(name), oldest):
            small.append(name)
            rows += found["rows"]
    if len(small) >= MANY:
        yield Deletion(captions.directory, f"its {len(small)} small parts become one, and go a day later", partial(merge, captions, small))


def _live_contents(corpus: Corpus, live: pa.Table) -> pa.ChunkedArray | None:
    """Content hashes of the ``live`` images; None if some are not encoded yet, because their hashes are unknown.

    For an image that could not be read last time, all content hashes that any encoder has ever recorded for it are included.
    """
    live_shards = set(live["shard"].to_pylist())
    tables = [(embeddings, names) for embeddings in corpus.tables(EMBEDDINGS_TABLE) if (names := embeddings.names())]
    if not any(live_shards <= names for _, names in tables):
        return None
    rows = pa.concat_tables(_with_shard(name, embeddings.read(name, ["image_id", "content_hash"])) for embeddings, names in tables for name in sorted(names))
    now = rows.join(live, ["image_id", "shard"], join_type="inner")
    unread = now.filter(pc.is_null(now["content_hash"]))["image_id"]
    before = rows.filter(pc.is_in(rows["image_id"], unread))["content_hash"]
    return pa.chunked_array([*now["content_hash"].chunks, *before.chunks], rows.schema.field("content_hash").type)


def _with(column: str, values: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    return table.filter(pc.is_in(table[column], values))


def _without(column: str, values: pa.ChunkedArray, table: pa.Table) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table[column], values)))


def _rewriting(shards: Shards, name: str, left: Callable[[pa.Table], pa.Table], still: Callable[[], bool]) -> Callable[[], bool]:
    """Rewrite a shard with the rows that ``left`` keeps. It is read again then, so that a plan does not hold the tables of a whole corpus in memory."""

    def rewrite() -> bool:
        if not still():
            return False
        with suppress(FileNotFoundError, BadShard):  # another prune was here, or a part that the plan did not read is damaged
            shards.replace(name, left(shards.read(name)), shards.facts(name))
            return True
        return False

    return rewrite


def _with_shard(name: str, table: pa.Table) -> pa.Table:
    return table.append_column("shard", pa.array([name] * table.num_rows, pa.string()))


def _file(store: Store, path: str, why: str, still: Callable[[], bool] = lambda: True) -> Deletion:
    """The deletion of one file. It is removed only if ``still`` returns True: nobody needs it."""

    def remove() -> bool:
        if not still():
            return False
        with suppress(FileNotFoundError):  # another prune was here
            store.files.remove(path)
            return True
        return False

    return Deletion(path, why, remove)


def _files_of(store: Store, directory: str, why: str, still: Callable[[], bool]) -> list[Deletion]:
    """Deletions of all files in a directory and below it, except those that were set aside.

    In a directory ``request.json`` comes first: without it the rest does not count as a run.
    """
    names = store.files.files(directory) | store.files.leftovers(directory)
    ordered = sorted((name for name in names if not Shards.is_aside(name)), key=lambda name: (name != "request.json", name))
    below = [deletion for name in sorted(store.files.directories(directory)) for deletion in _files_of(store, f"{directory}/{name}", why, still)]
    return [*below, *(_file(store, f"{directory}/{name}", why, still) for name in ordered)]
