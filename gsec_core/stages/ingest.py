"""ingest: compares the source's images with those of the corpus, and records the changes as a new generation.

Reads the source's listing; writes `images` and a generation. No image is decoded, and nothing is written if nothing has changed.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import polars as pl
import pyarrow as pa
import xxhash

from gsec_core.config import IngestConfig
from gsec_core.errors import BadShard, Refused
from gsec_core.sources import open_source
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.store import Corpus, Generation, Shards
from gsec_core.store.corpus import newest_rows
from gsec_core.tables import IMAGES, MISSING

_PROBES = 32
"""Number of unreadable images that are tried again at the same time: an object store is slow to report that an object is missing."""


def open_images(url: str, config: IngestConfig) -> Source:
    """Open the source at ``url`` with the settings for its listing. Raises what `open_source` raises."""
    return open_source(url, image_column=config.image_column, exclude=config.exclude, follow_links=config.follow_links)


@dataclass(frozen=True)
class Changes:
    """Differences between a source's listing and a generation."""

    base: Generation
    """The generation that was compared, without its damaged shards."""
    rows: pl.DataFrame
    """Rows that a new generation adds, schema IMAGES: first added and changed images, then deleted ones; both sorted by URI."""
    live: int
    """Live images after the change."""
    added: int
    changed: int
    deleted: int
    damaged: int
    """Number of shards of the image list that could not be read; their images count as added."""
    listing: str
    """Digest of the source's listing; see `Generation`."""
    skipped: Mapping[str, int]
    """Numbers of files that the listing skipped, by kind; see `listing.Choice`."""

    @property
    def none(self) -> bool:
        """Whether the source has not changed, and no shard of the image list is damaged."""
        return not self.added + self.changed + self.deleted + self.damaged

    def counts(self) -> dict[str, int]:
        """The numbers for users and records, by name; a kind of `skipped` files under its own name."""
        return {"images": self.live, "added": self.added, "changed": self.changed, "deleted": self.deleted, "damaged_lists": self.damaged, **self.skipped}


def ingest(
    corpus: Corpus, source: Source, config: IngestConfig, embeddings: Sequence[Shards], at_least: int, settled: bool = False
) -> tuple[Generation, Changes]:
    """Bring the corpus up to date with its source. Returns its newest generation and the changes.

    ``embeddings`` are the embedding tables of all encoders. They tell which images could not be read when they were encoded; as soon as one of these can be
    read, all of them count as changed. ``settled`` says that there are no such images and no unfinished work: then no row is read if the source's listing
    equals that of the newest generation. Raises Refused, before anything is written, if the source has fewer than ``at_least`` images or has lost more than
    ``config.max_shrink`` allows.
    """
    while True:
        changes = compare(corpus, source, config, embeddings, at_least, settled)
        corpus.bind(_binding(source, config))
        if changes.none:
            return changes.base, changes
        tables = [chunk.to_arrow().cast(IMAGES) for chunk in changes.rows.iter_slices(config.shard_rows)]
        if corpus.add_generation(changes.base, tables, changes.listing):
            return corpus.generation(changes.base.number + 1), changes
        # Another ingest of the same corpus wrote this generation first: compare with that one.


def compare(corpus: Corpus, source: Source, config: IngestConfig, embeddings: Sequence[Shards], at_least: int, settled: bool = False) -> Changes:
    """The changes that `ingest` would write. Raises what it raises."""
    corpus.check_bound(_binding(source, config))
    listed = pl.DataFrame(source.list())
    if len(listed) < at_least:
        raise Refused(f"clusters = {at_least}: the source has only {len(listed)} images. Ask for fewer clusters or give more images.")
    digest, newest = _digest(listed), corpus.generation()
    if settled and digest == newest.listing and corpus.is_listed(newest):
        nothing = pl.DataFrame(IMAGES.empty_table())
        return Changes(newest, nothing, len(listed), added=0, changed=0, deleted=0, damaged=0, listing=digest, skipped=dict(source.skipped))
    base, live = _readable(corpus)
    both = listed.join(live, on="uri", suffix="_before")
    moved = (pl.col("size_bytes") != pl.col("size_bytes_before")) | (pl.col("version") != pl.col("version_before"))
    unread = pl.col("image_id").is_in(pl.Series(_missing(live, embeddings), dtype=pl.Binary).implode())
    again = both.filter(unread & ~moved)
    if not _any_readable(source, again):  # a dangling link must not cause a new generation at every ingest
        again = again.clear()
    changed = pl.concat([both.filter(moved), again])
    added = listed.join(live, on="uri", how="anti")
    deleted = live.join(listed, on="uri", how="anti")
    _guard_against_shrinking(source, config, len(live), len(deleted))
    columns = ["uri", "size_bytes", "version"]
    present = pl.concat([added.select(columns), changed.select(columns)]).sort("uri").with_columns(deleted=pl.lit(False))
    gone = deleted.select(columns).sort("uri").with_columns(deleted=pl.lit(True))
    rows = pl.concat([present, gone])
    ids = pl.Series([image_id(uri) for uri in rows["uri"]], dtype=pl.Binary)
    return Changes(
        base=base,
        rows=rows.with_columns(image_id=ids).select(IMAGES.names),
        live=len(listed),
        added=len(added),
        changed=len(changed),
        deleted=len(deleted),
        listing=digest,
        skipped=dict(source.skipped),
        damaged=len(corpus.generation(base.number).shards) - len(base.shards),
    )


def _binding(source: Source, config: IngestConfig) -> dict[str, str]:
    return {"url": source.url, "image_column": config.image_column}


def _digest(listed: pl.DataFrame) -> str:
    """xxh3-128 of a listing, which is sorted already."""
    digest = xxhash.xxh3_128()
    for rows in listed.iter_slices(65_536):
        digest.update(rows.write_csv(include_header=False).encode())
    return digest.hexdigest()


def image_id(uri: str) -> bytes:
    """The identity of an image: xxh3-128 of its URI, 16 bytes."""
    return xxhash.xxh3_128_digest(uri.encode())


def _guard_against_shrinking(source: Source, config: IngestConfig, live: int, deleted: int) -> None:
    if deleted > config.max_shrink * live:
        raise Refused(
            f"source {source.url}: {deleted} of its {live} images have vanished, more than ingest.max_shrink = {config.max_shrink} allows. "
            "If you deleted or renamed them, continue with --set ingest.max_shrink=1."
        )


def _readable(corpus: Corpus) -> tuple[Generation, pl.DataFrame]:
    """The newest generation without its damaged shards, and its live rows."""
    generation = corpus.generation()
    shards, tables = [], []
    found = corpus.images.look_at(generation.shard_names, corpus.images.read)
    for shard, (name, table) in zip(generation.shards, found, strict=True):
        if isinstance(table, BadShard):
            corpus.images.set_aside(name)
        elif not isinstance(table, FileNotFoundError):
            tables.append(table)
            shards.append(shard)
    live = newest_rows(tables, [shard.name for shard in shards])
    return replace(generation, shards=tuple(shards)), pl.DataFrame(live)


def _any_readable(source: Source, images: pl.DataFrame) -> bool:
    """Whether at least one of these images, which could not be read before, can be read now."""

    def readable(ref: ImageRef) -> bool:
        try:
            with suppress(RejectedImage):  # it could be reached this time
                source.fetch(ref)
        except (MissingImage, OSError):
            return False
        return True

    refs = list(map(ImageRef._make, images.select(ImageRef._fields).iter_rows()))
    with ThreadPoolExecutor(_PROBES, thread_name_prefix="probe") as pool:
        return any(any(pool.map(readable, refs[start : start + _PROBES])) for start in range(0, len(refs), _PROBES))


def _missing(live: pl.DataFrame, embeddings: Sequence[Shards]) -> list[bytes]:
    """Ids of the live images that at least one encoder could not read."""
    unread: list[bytes] = []
    live_in = {str(name): rows["image_id"] for (name,), rows in live.group_by("shard")}
    for encoded in embeddings:
        for name, found in encoded.look_at(live_in, partial(_missing_in, encoded)):
            if isinstance(found, list):  # otherwise the shard is not encoded yet, or is damaged and will be encoded again
                unread.extend(set(found).intersection(live_in[name]) if found else ())
    return unread


def _missing_in(embeddings: Shards, name: str) -> list[bytes]:
    if not embeddings.facts(name).get(MISSING):
        return []
    table = embeddings.read(name, ["image_id", "status"])
    ids: list[bytes] = table.filter(pa.compute.equal(table["status"], MISSING))["image_id"].to_pylist()
    return ids
