"""encode: embeds every image of the corpus as a unit vector; encode2: does the same with the second encoder, in runs that have two.

Each stage reads `images` and writes `embeddings` and `thumbnails`, one shard of each for every shard of `images`, with the same name. The
fingerprint does not contain the generation, so that a grown corpus only adds shards. It does not contain the stage either, so that
an encoder has the same tables whether it is used as the first or the second.

Reading, hashing and decoding run in a pool of threads (Pillow and xxhash release the GIL) while the forward pass runs in
the main thread. Every forward pass has the same batch shape, so that an embedding does not depend on the other images of its batch.
"""

import json
import pickle
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial, reduce
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from gsec_core.config import PipelineConfig
from gsec_core.devices import set_threads, thread_count
from gsec_core.encoders import check_encoder, encoder_identity, load_encoder
from gsec_core.encoders.base import Encoder
from gsec_core.errors import GsecError, Refused
from gsec_core.images import decode as images
from gsec_core.section import output_settings
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.scratch import ScratchRecords
from gsec_core.store import Run, Shards, fingerprint
from gsec_core.store.arrays import to_column
from gsec_core.tables import EMBEDDINGS_TABLE, MISSING, OK, REJECTED, THUMBNAILS, THUMBNAILS_TABLE, embeddings_schema, vector

_MOST_REASONS = 3
"""Maximal number of reasons why images are unusable that an error gives."""


class Row(NamedTuple):
    """One image on its way from the source to its row of `embeddings`, whose columns have the same names."""

    content_hash: bytes | None = None
    status: str = OK
    reason: str | None = None
    """Why the status is not ok; with status ok, a fault of the image that did not prevent its use, or None."""
    pixels: NDArray[np.generic] | None = None
    """Input of the encoder; None if the image need not or cannot be encoded, or is encoded already."""
    embedding: NDArray[np.float16] | None = None
    """(dim,)."""
    joint: NDArray[np.float16] | None = None
    """(joint_dim,)."""
    thumbnail: bytes | None = None
    width: int | None = None
    height: int | None = None
    known: "Place | None" = None
    """Row in which the same bytes were encoded before."""
    size: int = 0
    """Bytes that were read."""


class Place(NamedTuple):
    """A row of a committed shard."""

    shard: str
    row: int


def prepare(source: Source, encoder: Encoder, thumbnail_size: int, known: Mapping[bytes, Place], ref: ImageRef | None) -> Row:
    """Read, hash, decode and preprocess one image; None stands for one that is superseded. Faults of the image are reported in the result, not raised.

    Raises Unreachable if the source as a whole does not answer.
    """
    if ref is None:
        return Row(status=MISSING, reason="superseded before it was encoded")
    if ref.size_bytes > images.MAX_BYTES:
        return Row(status=REJECTED, reason=f"larger than {images.MAX_BYTES // 2**30} gigabytes")
    try:
        data = fetch(source, ref)
    except MissingImage as error:
        return Row(status=MISSING, reason=str(error))
    except RejectedImage as error:
        return Row(status=REJECTED, reason=str(error))
    content_hash = images.content_hash(data)
    if content_hash in known:
        return Row(content_hash, known=known[content_hash], size=len(data))
    try:
        # Twice the size that is needed: an image resized from this looks as if resized from the original.
        with images.opened(data, 2 * max(encoder.side, thumbnail_size)) as picture:
            return Row(
                content_hash,
                reason=picture.note,
                pixels=encoder.preprocess(picture.image),
                thumbnail=images.thumbnail(picture.image, thumbnail_size),
                width=picture.size[0],
                height=picture.size[1],
                size=len(data),
            )
    except RejectedImage as error:
        return Row(content_hash, REJECTED, str(error), size=len(data))


def fetch(source: Source, ref: ImageRef) -> bytes:
    """An image's bytes, after some retries. Raises MissingImage, RejectedImage, or Unreachable if the source as a whole does not answer."""
    try:
        for attempt in Retrying(retry=retry_if_exception_type(OSError), stop=stop_after_attempt(4), wait=wait_random_exponential(max=5), reraise=True):
            with attempt:
                return source.fetch(ref)
    except OSError as error:
        source.check()  # if the source as a whole answers, only this image cannot be read
        raise MissingImage(f"could not be read: {error.strerror or error}") from None
    raise AssertionError("Retrying either returns or raises")


def fetch_unchanged(source: Source, ref: ImageRef, content_hash: bytes) -> bytes:
    """The bytes of an image that was encoded before. Raises as `fetch` does, and MissingImage if they have changed since."""
    data = fetch(source, ref)
    if images.content_hash(data) != content_hash:
        raise MissingImage("changed since it was encoded")
    return data


@dataclass
class _Shard:
    """A shard whose rows are being made."""

    name: str
    image_ids: list[bytes]
    refs: list[ImageRef | None]
    """None for a row that is superseded: a later generation has another row for the image, or deleted it."""
    rows: list[Row] = field(default_factory=list)
    """Those of the first images; the others are not prepared yet."""
    waiting: int = 0
    """Number of rows that wait in a batch for the forward pass."""
    forward_seconds: float = 0.0

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.refs) and not self.waiting


@dataclass(frozen=True, kw_only=True)
class Encoding(Stage):
    """The stage of one of the run's encoders."""

    setting: str
    """The setting that names the encoder, for error messages."""
    encoder: Callable[[PipelineConfig], str]
    """Returns the name of the encoder."""

    def fingerprint(self, context: Context) -> str:
        """See `Stage.fingerprint`."""
        return self.fingerprint_of(context.config, context.redo)

    def fingerprint_of(self, config: PipelineConfig, redo: Mapping[str, int]) -> str:
        """Fingerprint of the tables of an encoder: the same in both stages, unless the second stage alone was redone."""
        counter, by_itself = redo.get(STAGE.name, 0), 0 if self is STAGE else redo.get(self.name, 0)
        return fingerprint(STAGE.name, self.version, self.settings(config), [], [counter, by_itself] if by_itself else counter)

    def identity(self, config: PipelineConfig) -> dict[str, object]:
        """See `encoder_identity`. Raises what it raises, naming this stage's setting."""
        with self._named():
            return encoder_identity(self.encoder(config))

    def check(self, config: PipelineConfig) -> None:
        """Raises what `check_encoder` raises, naming this stage's setting."""
        with self._named():
            check_encoder(self.encoder(config))

    def load(self, config: PipelineConfig) -> Encoder:
        """The encoder, loaded once per process. Sets torch's number of threads to that of the settings."""
        with self._named():
            identity = json.dumps(self.identity(config), sort_keys=True)
            encoder = _load(identity, self.encoder(config), config.encode.precision, config.encode.device, config.threads)
        # Not only at loading: other code in the process may have changed the number since, and it affects the last bits of an embedding.
        set_threads(config.threads)
        return encoder

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Replace the setting's name in errors of encoders, which always name ``encode.encoder``."""
        try:
            yield
        except Refused as error:
            raise Refused(str(error).replace(STAGE.setting, self.setting, 1)) from error


def work(stage: Encoding, context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Encode the named shards of `images`; yields each as soon as its last image is encoded."""
    config = context.config.encode
    encoder = stage.load(context.config)
    source = context.open_source()
    embeddings, thumbnails = context.shards(stage, EMBEDDINGS_TABLE), context.shards(stage, THUMBNAILS_TABLE)
    _check_preprocessing(stage, embeddings, encoder)
    known = known_contents(embeddings, thumbnails, context.generation.number) if context.generation.number > 1 else {}
    damaged = embeddings.names_set_aside() | thumbnails.names_set_aside()
    shards: deque[_Shard] = deque()
    batch: list[tuple[_Shard, int]] = []

    def queue() -> Iterator[tuple[_Shard, ImageRef | None]]:
        for shard in _shards(context, names):
            shards.append(shard)
            yield from ((shard, ref) for ref in shard.refs)

    def finish() -> Finished:
        shard = shards.popleft()
        if any(row.known is not None for row in shard.rows):
            before = _reader(context.config, embeddings, thumbnails, context.generation.number)
            shard.rows = [row if row.known is None else before(row.known)._replace(known=row.known, size=row.size) for row in shard.rows]
        if any(row.status == MISSING for row in shard.rows):
            source.check()  # an unmounted disk or an expired key must not become missing images
        if not config.accept_loss and shard.name in damaged:
            _check_restored(stage, shard)
        return _finished(shard, encoder)

    workers = thread_count(config.workers)
    step = partial(prepare, source, encoder, config.thumbnail_size, known)
    with closing(_prepared(step, queue(), workers, ahead=workers + 2 * config.batch_size)) as prepared:
        for shard, ref, row in prepared:
            shard.rows.append(row)
            if ref is not None:
                progress(1)
            if row.pixels is not None:
                batch.append((shard, len(shard.rows) - 1))
                shard.waiting += 1
            if len(batch) == config.batch_size:
                _forward(encoder, batch, config.batch_size)
                batch.clear()
            while shards and shards[0].complete:
                yield finish()
    if batch:
        _forward(encoder, batch, config.batch_size)
    while shards:
        yield finish()


def _shards(context: Context, names: Sequence[str]) -> Iterator[_Shard]:
    live = context.live.filter(pc.is_in(context.live["shard"], pa.array(names)))
    alive = set(zip(live["shard"].to_pylist(), live["image_id"].to_pylist(), strict=True))
    for name, table in context.corpus.images.read_each(names):
        rows = [row for row in table.to_pylist() if not row["deleted"]]
        refs = [ImageRef(row["uri"], row["size_bytes"], row["version"]) if (name, row["image_id"]) in alive else None for row in rows]
        yield _Shard(name, [row["image_id"] for row in rows], refs)


def _prepared(
    step: Callable[[ImageRef | None], Row], queue: Iterator[tuple[_Shard, ImageRef | None]], workers: int, ahead: int
) -> Generator[tuple[_Shard, ImageRef | None, Row], None, None]:
    """Yield every queued image with the result of ``step``, in order; ``ahead`` images are in progress, in ``workers`` threads."""
    under_way: deque[tuple[_Shard, ImageRef | None, Future[Row]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                for shard, ref in islice(queue, ahead - len(under_way)):
                    under_way.append((shard, ref, pool.submit(step, ref)))
                if not under_way:
                    return
                shard, ref, future = under_way.popleft()
                yield shard, ref, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _forward(encoder: Encoder, batch: Sequence[tuple[_Shard, int]], batch_size: int) -> None:
    """Embed the rows with the given numbers, as one batch filled up to ``batch_size``."""
    started = time.monotonic()
    pixels = [shard.rows[number].pixels for shard, number in batch]
    stacked = np.stack([*pixels, *[np.zeros_like(pixels[0])] * (batch_size - len(batch))])  # type: ignore[list-item]
    image, joint = encoder.encode_images(stacked)
    seconds = (time.monotonic() - started) / len(batch)
    for place, (shard, number) in enumerate(batch):
        of_joint = None if joint is None else joint[place].astype(np.float16)
        shard.rows[number] = shard.rows[number]._replace(pixels=None, embedding=image[place].astype(np.float16), joint=of_joint)
        shard.waiting -= 1
        shard.forward_seconds += seconds


@once
def _reader(config: PipelineConfig, embeddings: Shards, thumbnails: Shards, generation: int) -> Callable[[Place], Row]:
    """A function that returns a row of a committed shard, with its thumbnail; ``generation`` as in `known_contents`.

    It reads each shard once and keeps the rows in a scratch file: after a listing in another order, every new shard needs rows of nearly every old one.
    """
    records = ScratchRecords(config)

    @cache
    def kept(shard: str) -> NDArray[np.int64]:
        table, pictures = embeddings.read(shard), thumbnails.read(shard)
        thumbnail_of = dict(zip(pictures["image_id"].to_pylist(), pictures["thumbnail"].to_pylist(), strict=True))
        vectors = [name for name in ("embedding", "joint") if name in table.column_names]
        rows = []
        for number, was in enumerate(table.select(["image_id", "content_hash", "status", "reason", "width", "height"]).to_pylist()):
            found = {name: table[name][number].values.to_numpy(zero_copy_only=False) for name in vectors if was["status"] == OK}
            rows.append(pickle.dumps(Row(thumbnail=thumbnail_of.get(was.pop("image_id")), **was, **found)))
        return records.add(rows)

    def before(place: Place) -> Row:
        start, stop = kept(place.shard)[place.row : place.row + 2].tolist()
        row: Row = pickle.loads(records.read(start, stop))  # noqa: S301 - this process wrote it, to a file that no other can open
        return row

    return before


def _finished(shard: _Shard, encoder: Encoder) -> Finished:
    rows, schema = shard.rows, embeddings_schema(encoder.dim, encoder.joint_dim)
    columns: list[Any] = [shard.image_ids]
    for column in list(schema)[1:]:
        values = [getattr(row, column.name) for row in rows]
        columns.append(_vectors(values, column.type.list_size) if pa.types.is_fixed_size_list(column.type) else values)
    shown = [(image_id, row.thumbnail) for image_id, row in zip(shard.image_ids, rows, strict=True) if row.thumbnail is not None]
    facts = {
        **{status: sum(row.status == status for row in rows) for status in (OK, REJECTED, MISSING)},
        "noted": sum(row.status == OK and row.reason is not None for row in rows),
        "encoded": sum(row.embedding is not None and row.known is None for row in rows),
        "copied": sum(row.known is not None for row in rows),
        "read_bytes": sum(row.size for row in rows),
        "forward_seconds": round(shard.forward_seconds, 3),
        "preprocessing": dict(encoder.preprocessing),
    }
    pictures = pa.table([[image_id for image_id, _ in shown], [thumbnail for _, thumbnail in shown]], schema=THUMBNAILS)
    return Finished(shard.name, (pa.table(columns, schema=schema), pictures), facts)


def _vectors(values: Sequence[NDArray[np.float16] | None], length: int) -> pa.Array:
    flat = np.zeros((len(values), length), np.float16)
    for index, value in enumerate(values):
        if value is not None:
            flat[index] = value
    mask = pa.array([value is None for value in values], pa.bool_())
    return to_column(flat, vector(length), mask)


@once
def known_contents(embeddings: Shards, thumbnails: Shards, generation: int) -> Mapping[bytes, Place]:
    """The row of every content hash that this encoder has processed and whose row can be copied; ``generation`` only renews what `once` keeps."""
    known: dict[bytes, Place] = {}
    # A writer killed between the two tables leaves only one of them; such a shard counts as missing.
    for name, table in embeddings.read_each(sorted(embeddings.names() & thumbnails.names()), ["image_id", "content_hash", "status"]):
        pictured = set(thumbnails.read(name, ["image_id"])["image_id"].to_pylist())
        rows = zip(*(table[column].to_pylist() for column in ("image_id", "content_hash", "status")), strict=True)
        for row, (image_id, content_hash, status) in enumerate(rows):
            # The thumbnail of a deleted image may be pruned: if the image comes back, it is encoded again.
            if (status == REJECTED and content_hash is not None) or (status == OK and image_id in pictured):
                known.setdefault(content_hash, Place(name, row))
    return known


def _check_preprocessing(stage: Encoding, embeddings: Shards, encoder: Encoder) -> None:
    """Raises GsecError if the preprocessing differs from that of the embeddings so far, as it may after an upgrade of a library: a table must not mix two."""
    for name in sorted(embeddings.names())[:1]:
        before = embeddings.facts(name)["preprocessing"]
        now = json.loads(json.dumps(dict(encoder.preprocessing)))
        if before != now:
            raise GsecError(f"{stage.name}: the encoder prepares images as {now}, the embeddings so far as {before}. Encode again with --redo {stage.name}.")


def _check_restored(stage: Encoding, shard: _Shard) -> None:
    """Raises GsecError if an image of a damaged shard can no longer be read."""
    gone = sum(row.status == MISSING and ref is not None for row, ref in zip(shard.rows, shard.refs, strict=True))
    if gone:
        raise GsecError(
            f"{stage.name}: shard {shard.name} was damaged and {gone} of its images can no longer be read, so it cannot be restored completely. Run "
            "gsec on the source again, so that it notices them, or continue without them: --set encode.accept_loss=true."
        )


@once
def _load(identity: str, name: str, precision: str, device: str, threads: int) -> Encoder:
    return load_encoder(name, precision=precision, device=device, threads=threads)


def _plan(context: Context) -> list[str]:
    return context.generation.shard_names


def _units(context: Context, names: Sequence[str]) -> int:
    return int(pc.sum(pc.is_in(context.live["shard"], pa.array(names, pa.string()))).as_py() or 0)


def _encoding(name: str, setting: str, encoder: Callable[[PipelineConfig], str], settings: Callable[[PipelineConfig], dict[str, Any]]) -> Encoding:
    def encode(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
        return work(stage, context, names, progress)

    stage = Encoding(
        name=name,
        version=2,
        settings=settings,
        inputs=lambda context: [],
        steps=(Step((EMBEDDINGS_TABLE, THUMBNAILS_TABLE), encode, _plan, _units),),
        on_device=True,
        setting=setting,
        encoder=encoder,
    )
    return stage


def _settings(config: PipelineConfig) -> dict[str, Any]:
    return {**output_settings(config.encode), "encoder": STAGE.identity(config)}


def _settings_of_second(config: PipelineConfig) -> dict[str, Any]:
    identity = SECOND.identity(config)
    if identity == STAGE.identity(config):
        raise Refused(f"{SECOND.setting} = {json.dumps(SECOND.encoder(config))}: it is the same as the first encoder, {STAGE.setting}. Name another.")
    return {**_settings(config), "encoder": identity}


STAGE = _encoding("encode", "encode.encoder", lambda config: config.encode.encoder, _settings)

SECOND = _encoding("encode2", "text.encoder", lambda config: str(config.second_encoder), _settings_of_second)
"""The stage of the second encoder, in runs with two."""


def stages(config: PipelineConfig) -> tuple[Encoding, ...]:
    """One encoding stage for each encoder in the settings."""
    return (STAGE,) if config.second_encoder is None else (STAGE, SECOND)


def stages_of(run: Run) -> tuple[Encoding, ...]:
    """One encoding stage for each encoder of a run; works also if the package of the run's method is no longer installed."""
    return tuple(stage for stage in (STAGE, SECOND) if stage.name in run.request()["stages"])


def encoders_of(run: Run) -> str:
    """The names of a run's encoders, joined by " + "."""
    config = run.request()["config"]
    names = {STAGE: config["encode"]["encoder"], SECOND: config.get("text", {}).get("encoder")}
    return " + ".join(names[stage] for stage in stages_of(run))


def reasons(context: Context) -> list[dict[str, Any]]:
    """Why live images have no cluster: dicts of status, reason and images (their number), the most frequent reason first."""
    without = pl.DataFrame(encoded_rows(context)).filter(pl.col("status") != OK)
    rows: list[dict[str, Any]] = (
        without.group_by("status", "reason").agg(pl.len().alias("images")).sort("images", "status", "reason", descending=[True, False, False]).to_dicts()
    )
    return rows


def most_frequent_reasons(context: Context) -> str:
    """The most frequent of the `reasons`, in words: before a run is finished, no export lists them."""
    return "; ".join(f"{row['images']} {row['status']}: {row['reason']}" for row in reasons(context)[:_MOST_REASONS])


def remarks(context: Context) -> list[str]:
    """One sentence for each kind of fault in images that are used all the same, with their number."""
    rows = pl.DataFrame(encoded_rows(context)).filter((pl.col("status") == OK) & pl.col("reason").is_not_null())
    counts = rows.group_by("reason").agg(pl.len()).sort("len", "reason", descending=[True, False])
    return [f"{count:,} {'image has' if count == 1 else 'images have'} a harmless fault: {reason}." for reason, count in counts.iter_rows()]


def encoded_rows(context: Context) -> pa.Table:
    """The generation's live rows with the results of the run's encoders, combined by `agreed`.

    Returns image_id, uri, content_hash, status, reason and shard, in canonical order: by content hash, then image id. Thus
    later stages depend on the images alone, neither on the kind of source nor on the order of its listing.
    Raises Refused if an encoder has not run, GsecError if it has not finished, BadShard naming all bad shards.
    """
    names = context.generation.shard_names
    tables = [agreed(tables) for tables in zip(*(_rows(context, stage) for stage in stages_of(context.run)), strict=True)]
    rows = pa.concat_tables([t.append_column("shard", pa.array([n] * t.num_rows, pa.string())) for n, t in zip(names, tables, strict=True)])
    live = context.live.select(["image_id", "uri", "shard"]).join(rows, ["image_id", "shard"], join_type="inner")
    if live.num_rows != context.live.num_rows:
        raise GsecError(f"run {context.run.id}: {context.live.num_rows} images are listed but {live.num_rows} have an embedding row: a fault in stage encode.")
    order = pc.sort_indices(live, [("content_hash", "ascending"), ("image_id", "ascending")])
    return live.take(order).select(["image_id", "uri", "content_hash", "status", "reason", "shard"])


def _rows(context: Context, stage: Encoding) -> list[pa.Table]:
    try:
        return context.shards(stage, EMBEDDINGS_TABLE).read_all(context.generation.shard_names, ["image_id", "content_hash", "status", "reason"])
    except FileNotFoundError:
        raise GsecError(f"run {context.run.id} is not encoded yet. Run stage {stage.name} first: gsec stage {stage.name} --run {context.run.id}.") from None


def agreed(tables: Sequence[pa.Table]) -> pa.Table:
    """Combine one shard of `embeddings` of each encoder, with the columns content_hash, status and reason: an image is ok only if all encoders could use it.

    All tables have the images of the shard of `images`, in the same order.
    """
    return reduce(_agreed, tables)


def _agreed(first: pa.Table, second: pa.Table) -> pa.Table:
    used, used_too = pc.equal(first["status"], OK), pc.equal(second["status"], OK)
    changed = pc.and_kleene(pc.and_(used, used_too), pc.not_equal(first["content_hash"], second["content_hash"]))
    lost = pc.and_(used, pc.invert(used_too))
    status = pc.if_else(changed, MISSING, pc.if_else(lost, second["status"], first["status"]))
    reason = pc.if_else(changed, "changed between one encoder and the other", pc.if_else(lost, second["reason"], first["reason"]))
    columns = {"status": status, "reason": reason}
    return pa.table([columns.get(name, first[name]) for name in first.column_names], schema=first.schema)
