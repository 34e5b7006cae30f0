"""describe: the representatives in words.

Reads `representatives`; writes the corpus's captions log as answers come in, and at the end `representative_captions`, the
rows of the log that this run uses. What follows is fingerprinted by that table, never by the log.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from gsec_core import images
from gsec_core.captioners import Answer, Captioner, Subject, captioner_identity, load_captioner
from gsec_core.config import DescribeConfig, PipelineConfig
from gsec_core.errors import GsecError
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.stages import prototypes
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.encode import fetch
from gsec_core.store.captions import CaptionsLog, Row
from gsec_core.store.runs import now
from gsec_core.tables import DESCRIBED, FAILED, FREE, MISSING, REPRESENTATIVE_CAPTIONS, REPRESENTATIVE_CAPTIONS_TABLE, REPRESENTATIVES_TABLE

LOG_VERSION = 1
"""Raised when rows of the log no longer mean what they did; then every image is asked about anew."""

_STATUSES = (DESCRIBED, FREE, FAILED, MISSING)


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Ask for every description that the log does not have, then say which this run uses."""
    config = context.config.describe
    captioner = loaded_captioner(context.config)
    representatives = context.shards(prototypes.STAGE, REPRESENTATIVES_TABLE).read("all").to_pylist()
    log = CaptionsLog(context.corpus.captions, captioner.model, _request(context))
    wanted = {row["content_hash"] for row in representatives}
    known = log.rows(accept_loss=config.accept_loss)
    unknown = [row for row in representatives if row["content_hash"] not in known]
    progress(len(wanted & known.keys()))
    asked = _ask(captioner, _subjects(context, unknown), _Batch(log, config), progress) if unknown else {}
    # Another run may have answered meanwhile: the first row counts, for every reader.
    found = {**known, **asked, **log.rows(accept_loss=config.accept_loss)} if asked else known
    rows = [{**found[row["content_hash"]], **{key: row[key] for key in ("prototype", "band", "image_id")}, "model": captioner.model} for row in representatives]
    counts = Counter(row["status"] for row in rows)
    _check_coverage(config, rows, counts)
    facts = {
        "representatives": len(rows),
        "asked": sum(row["status"] != MISSING for row in asked.values()),
        "known": len(wanted & known.keys()),
        **{status: counts[status] for status in _STATUSES},
        # Known by then, so that a server which is gone at the end fails nothing that is answered.
        "form": captioner.form if any(row["status"] in (DESCRIBED, FREE) for row in asked.values()) else None,
    }
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in REPRESENTATIVE_CAPTIONS]
    yield Finished("all", (pa.table(columns, schema=REPRESENTATIVE_CAPTIONS),), facts)


def _subjects(context: Context, representatives: Sequence[Mapping[str, Any]]) -> Iterator[Subject]:
    """Each content once, to be read from whichever of the representatives still has it."""
    source = context.open_source()
    live = context.live.filter(pc.is_in(context.live["image_id"], pa.array([row["image_id"] for row in representatives], pa.binary(16))))
    ref_of = {row["image_id"]: ImageRef(row["uri"], row["size_bytes"], row["version"]) for row in live.to_pylist()}
    refs: dict[bytes, list[ImageRef]] = {}
    for row in representatives:
        refs.setdefault(row["content_hash"], []).append(ref_of[row["image_id"]])
    for content_hash, same in refs.items():
        yield Subject(same[0].uri, content_hash, partial(_read, source, same, content_hash))


def _read(source: Source, refs: Sequence[ImageRef], content_hash: bytes) -> bytes:
    reason = ""
    for ref in refs:
        try:
            data = fetch(source, ref)
        except (MissingImage, RejectedImage) as error:  # rejected now, and not when it was encoded
            reason = str(error)
        else:
            if images.content_hash(data) == content_hash:
                return data
            reason = "changed since it was encoded"
    source.check()  # an unmounted disk or an expired key must not become missing images
    raise MissingImage(reason)


class _Batch:
    """Answers on their way to the log, committed when they are enough or have waited long enough."""

    def __init__(self, log: CaptionsLog, config: DescribeConfig) -> None:
        self._log = log
        self._config = config
        self._rows: list[Row] = []
        self._committed = time.monotonic()

    @property
    def patience(self) -> float:
        """Seconds until a commit is due, however few the answers."""
        return max(0.0, self._committed + self._config.commit_seconds - time.monotonic())

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= self._config.commit_rows or not self.patience:
            self.commit()

    def commit(self) -> None:
        self._log.append(self._rows)
        self._rows = []
        self._committed = time.monotonic()


def _ask(captioner: Captioner, subjects: Iterable[Subject], batch: _Batch, progress: Progress) -> dict[bytes, Row]:
    """Ask about every image, as many at once as the captioner wants. Returns a row each; one that could not be read has status missing.

    Whatever ends it early, the answers that there are, and those under way, go into the log before it is raised.
    """
    rows: dict[bytes, Row] = {}
    waiting = iter(subjects)
    under_way = 0
    done: SimpleQueue[Future[Row]] = SimpleQueue()

    def take(row: Row) -> None:
        rows[row["content_hash"]] = row
        if row["status"] != MISSING:
            batch.add(row)

    pool = ThreadPoolExecutor(captioner.concurrency, thread_name_prefix="describe")
    try:
        while True:
            for subject in islice(waiting, 2 * captioner.concurrency - under_way):
                pool.submit(_answer, captioner, subject).add_done_callback(done.put)
                under_way += 1
            if not under_way:
                break
            try:
                future = done.get(timeout=batch.patience)
            except Empty:
                batch.commit()
                continue
            under_way -= 1
            take(future.result())
            progress(1)  # last: whoever watches may end it here
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        batch.commit()  # before the wait, which somebody may cut short
        pool.shutdown()  # what is under way is paid for
        while not done.empty():
            future = done.get()
            if not future.cancelled() and future.exception() is None:
                take(future.result())
        batch.commit()
    return rows


def _answer(captioner: Captioner, subject: Subject) -> Row:
    try:
        answer = captioner.describe(subject)
    except MissingImage as error:
        answer = Answer(None, None, (), MISSING, str(error))
    return {"content_hash": subject.content_hash, "written_at": now(), **answer._asdict()}


def _check_coverage(config: DescribeConfig, rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
    described = counts[DESCRIBED] + counts[FREE]
    if described and described / len(rows) >= config.min_coverage:
        return
    [(reason, _)] = Counter(row["reason"] for row in rows if row["reason"]).most_common(1) or [("no reason was given", 0)]
    raise GsecError(
        f"describe: {described} of {len(rows)} representatives have a description, {counts[FAILED]} failed and {counts[MISSING]} could not be read; "
        f"most often: {reason}. It takes at least one, and a share of describe.min_coverage = {config.min_coverage}. "
        "Set another describe.captioner, ask anew with --redo describe, or lower describe.min_coverage."
    )


def check(context: Context) -> None:
    """Raises Refused if the captioner cannot be asked."""
    loaded_captioner(context.config).check()


def loaded_captioner(config: PipelineConfig) -> Captioner:
    """The captioner of these settings, loaded once a process."""
    return _load(json.dumps(captioner_identity(config.describe), sort_keys=True), config.describe, config.encode.device, config.threads)


@once
def _load(identity: str, config: DescribeConfig, device: str, threads: int) -> Captioner:
    return load_captioner(config, device=device, threads=threads)


def _request(context: Context) -> str:
    """What is asked, as a part of the log's key: not which server it is asked of, and another after --redo."""
    asked = [captioner_identity(context.config.describe), LOG_VERSION, context.redo.get(STAGE.name, 0)]
    return xxhash.xxh3_128_hexdigest(json.dumps(asked, sort_keys=True).encode())


def _units(context: Context, names: Sequence[str]) -> int:
    return len(set(context.shards(prototypes.STAGE, REPRESENTATIVES_TABLE).read("all", ["content_hash"])["content_hash"].to_pylist()))


STAGE = Stage(
    name="describe",
    version=1,
    settings=lambda config: captioner_identity(config.describe),
    inputs=lambda context: [prototypes.STAGE.fingerprint(context)],
    steps=(Step((REPRESENTATIVE_CAPTIONS_TABLE,), lambda context: ["all"], work, _units, whole=True, unit="descriptions"),),
)
