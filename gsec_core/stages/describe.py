"""describe: describes the representatives in words.

Reads `representatives`; writes the corpus's captions log as answers come in, and at the end `representative_captions`, the
rows of the log that this run uses. Fingerprints of later stages depend on that table, never on the log.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from gsec_core.captioners import Answer, Captioner, Cost, Subject, background, captioner_identity, captioner_model, load_captioner, template
from gsec_core.config import DescribeConfig, PipelineConfig
from gsec_core.errors import GsecError, Refused
from gsec_core.sources.base import ImageRef, MissingImage, RejectedImage, Source
from gsec_core.stages import prototypes
from gsec_core.stages.base import Context, Finished, Progress, Stage, Step, once
from gsec_core.stages.canonical import usable
from gsec_core.stages.encode import fetch_unchanged
from gsec_core.store import Corpus
from gsec_core.store.captions import CaptionsLog, Row
from gsec_core.store.runs import now
from gsec_core.tables import DESCRIBED, FAILED, FREE, MISSING, REPRESENTATIVE_CAPTIONS, REPRESENTATIVE_CAPTIONS_TABLE, REPRESENTATIVES_TABLE

LOG_VERSION = 1
"""Increased when the meaning of the log's rows changes; then every image is asked about again."""

RETRY = "describe-failed"
"""Name under which failed descriptions are redone, among the stages to redo; also the prefix of their redo counters."""

UNDER_WAY = 30.0
"""Seconds to wait for answers in progress when the stage ends early, since they are paid for already."""

LETTERS_A_TOKEN, PIXELS_A_TOKEN = 4, 28
"""Letters of text, and side in pixels of a square of an image, per token of common models; for a first estimate of the cost."""

_STATUSES = (DESCRIBED, FREE, FAILED, MISSING)
_COSTS = ("requests", "prompt_tokens", "completion_tokens")


def work(context: Context, names: Sequence[str], progress: Progress) -> Iterator[Finished]:
    """Ask for every description that the log does not have, then write those that this run uses."""
    config = context.config.describe
    captioner = loaded_captioner(context.config)
    representatives = _representatives(context)
    log = captions_log(context)
    known = log.rows(accept_loss=config.accept_loss)
    wanted = {row["content_hash"] for row in representatives}
    progress(len(wanted & known.keys()))
    todo = list(subjects(context, wanted - known.keys()))
    asked = _ask(captioner, todo, Commits(log, config), progress) if todo else {}
    # Another run may have logged answers meanwhile: all readers take the first row of an image.
    found = {**known, **asked, **log.rows(accept_loss=config.accept_loss)} if asked else known
    rows = [{**found[row["content_hash"]], **{key: row[key] for key in ("prototype", "band", "image_id")}, "model": captioner.model} for row in representatives]
    _check_coverage(config, rows)
    counts = Counter(row["status"] for row in rows)
    facts = {
        "representatives": len(rows),
        "asked": sum(row["status"] != MISSING for row in asked.values()),
        "known": len(wanted & known.keys()),
        **{status: counts[status] for status in _STATUSES},
        **spent(asked.values()),
        # Known only after an answer; asking a server now might fail although all answers are there.
        "form": captioner.form if any(row["status"] in (DESCRIBED, FREE) for row in asked.values()) else None,
    }
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in REPRESENTATIVE_CAPTIONS]
    yield Finished("all", (pa.table(columns, schema=REPRESENTATIVE_CAPTIONS),), facts)


def captions_log(context: Context) -> CaptionsLog:
    """The log of answers to this run's question (captioner, template and settings)."""
    return _log(context.corpus, context.config.describe, context.redo)


def answers(context: Context) -> dict[bytes, Row]:
    """The log's answers to this run's question, by content hash."""
    return captions_log(context).rows(accept_loss=context.config.describe.accept_loss)


def unanswered(context: Context) -> set[bytes]:
    """The content hashes that a run would ask about. Raises what `Context.shards` raises if the representatives are not chosen yet."""
    return {row["content_hash"] for row in _representatives(context)} - answers(context).keys()


def any_failed(corpus: Corpus, config: DescribeConfig) -> bool:
    """Whether a description failed in the last attempt at the question of ``config``."""
    rows = _log(corpus, config, corpus.redo_counters()).rows(accept_loss=config.accept_loss)
    return any(row["status"] == FAILED for row in rows.values())


def retry(corpus: Corpus, config: DescribeConfig, asked_by: str | None = None) -> bool:
    """Let later runs ask again for the failed descriptions. Returns False, and changes nothing, if none failed.

    ``asked_by`` is passed to `Corpus.redo`.
    """
    failed = any_failed(corpus, config)
    if failed:
        corpus.redo(retries(config, corpus.redo_counters()), asked_by)
    return failed


def plan(context: Context) -> dict[str, Any]:
    """Estimate of the remaining requests: ``calls`` (a lower bound), ``prompt_tokens`` and ``completion_tokens`` (about), and ``basis`` of the estimates."""
    config = context.config.describe
    known = answers(context)
    calls = len({row["content_hash"] for row in _representatives(context)} - known.keys())
    if not config.captioner.startswith("openai:"):
        return {"calls": calls, "prompt_tokens": 0, "completion_tokens": 0, "basis": "no server is asked"}
    paid = [row for row in known.values() if row.get("prompt_tokens")]
    if paid:
        prompt, completion = (sum(row[key] for row in paid) / len(paid) for key in ("prompt_tokens", "completion_tokens"))
        basis = f"what {len(paid)} descriptions took so far"
    else:
        prompt = len(template.load(config).prompt) / LETTERS_A_TOKEN + (config.image_size / PIXELS_A_TOKEN) ** 2
        completion = config.max_tokens
        basis = (
            f"at most, by rule of thumb: a token for {LETTERS_A_TOKEN} letters, and one for {PIXELS_A_TOKEN} x {PIXELS_A_TOKEN} pixels of describe.image_size"
        )
    return {"calls": calls, "prompt_tokens": math.ceil(calls * prompt), "completion_tokens": math.ceil(calls * completion), "basis": basis}


def _representatives(context: Context) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = context.read(prototypes.STAGE, REPRESENTATIVES_TABLE).to_pylist()
    return rows


def subjects(context: Context, wanted: set[bytes]) -> Iterator[Subject]:
    """Each content once, in the order of the representatives; it is read from any representative that still has this content."""
    source = context.open_source()
    representatives = [row for row in _representatives(context) if row["content_hash"] in wanted]
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
            return fetch_unchanged(source, ref, content_hash)
        except (MissingImage, RejectedImage) as error:  # it was not rejected when it was encoded
            reason = str(error)
    source.check()  # an unmounted disk or an expired key must not become missing images
    raise MissingImage(reason)


class Commits:
    """Buffers answers for the log; commits after ``commit_rows`` answers or ``commit_seconds`` seconds."""

    def __init__(self, log: CaptionsLog, config: DescribeConfig) -> None:
        self._log = log
        self._config = config
        self._rows: list[Row] = []
        self._committed = time.monotonic()

    @property
    def patience(self) -> float:
        """Seconds until a commit is due, even of few answers."""
        return max(0.0, self._committed + self._config.commit_seconds - time.monotonic())

    def add(self, row: Row) -> None:
        """Buffer an answer, and commit if that is due."""
        self._rows.append(row)
        if len(self._rows) >= self._config.commit_rows or not self.patience:
            self.commit()

    def commit(self) -> None:
        """Write the buffered answers, if there are any, as one shard of the log."""
        self._log.append(self._rows)
        self._rows = []
        self._committed = time.monotonic()


def _ask(captioner: Captioner, todo: Iterable[Subject], commits: Commits, progress: Progress) -> dict[bytes, Row]:
    """Ask about every image, ``captioner.concurrency`` at a time. Returns one row per image, by content hash; unreadable images have status missing.

    If an exception ends it early, the answers so far and, unless Refused, those of the next `UNDER_WAY` seconds are logged before it propagates.
    """
    rows: dict[bytes, Row] = {}
    waiting = iter(todo)
    under_way: set[Future[Row]] = set()
    done: SimpleQueue[Future[Row]] = SimpleQueue()
    refused = False

    def take(future: Future[Row]) -> None:
        row = future.result()
        rows[row["content_hash"]] = row
        if row["status"] != MISSING:
            commits.add(row)

    try:
        while True:
            for subject in islice(waiting, captioner.concurrency - len(under_way)):
                future = background.start(_answer(captioner, subject))
                under_way.add(future)
                future.add_done_callback(done.put)
            if not under_way:
                return rows
            try:
                future = done.get(timeout=commits.patience)
            except Empty:
                commits.commit()
                continue
            under_way.discard(future)
            take(future)
            progress(1)  # last, since the watchdog may raise here
    except Refused:
        refused = True  # requests in progress will be refused too
        raise
    finally:
        try:
            commits.commit()  # before the wait, which may be cut short
            wait(under_way, timeout=0 if refused else UNDER_WAY)
        finally:
            for future in under_way:
                future.cancel()
        for future in under_way:
            if not future.cancelled() and future.exception() is None:
                take(future)
        commits.commit()


async def _answer(captioner: Captioner, subject: Subject) -> Row:
    try:
        answer = await captioner.describe(subject)
    except MissingImage as error:
        answer = Answer(None, None, (), MISSING, str(error))
    return row_of(subject.content_hash, answer)


def row_of(content_hash: bytes, answer: Answer) -> Row:
    """An answer as a row of the log."""
    told = answer._asdict()
    cost: Cost | None = told.pop("cost")
    return {"content_hash": content_hash, "written_at": now(), **told, **(cost._asdict() if cost else dict.fromkeys(Cost._fields))}


def spent(rows: Iterable[Row]) -> dict[str, float]:
    """Sums of requests, tokens and seconds of the answers; empty if no server was asked."""
    paid = [row for row in rows if row.get("requests")]
    sums: dict[str, float] = {key: sum(row[key] for row in paid) for key in _COSTS}
    return sums | {"reply_seconds": round(sum(row["seconds"] or 0 for row in paid), 1)} if paid else {}


def told(context: Context) -> dict[str, float]:
    """Numbers of a run's descriptions by status, and their total cost, including those that earlier runs asked for."""
    rows = context.read(STAGE, REPRESENTATIVE_CAPTIONS_TABLE).to_pylist()
    counts = Counter(row["status"] for row in rows)
    return {**{status: counts[status] for status in _STATUSES}, **spent({row["content_hash"]: row for row in rows}.values())}


def _check_coverage(config: DescribeConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises GsecError if too few micro-clusters have a description. Micro-clusters count, not images, so that every region of the images is described."""
    usable = [row for row in rows if row["status"] in (DESCRIBED, FREE)]
    covered, all_of_them = (len({row["prototype"] for row in some}) for some in (usable, rows))
    if covered and covered / all_of_them >= config.min_coverage:
        return
    counts = Counter(row["status"] for row in rows)
    [(reason, _)] = Counter(row["reason"] for row in rows if row["reason"]).most_common(1) or [("no reason was given", 0)]
    raise GsecError(
        f"describe: only {covered} of {all_of_them} micro-clusters have a description. There must be at least one, and a share of describe.min_coverage = "
        f"{config.min_coverage}. Of {len(rows)} representatives {counts[FAILED]} failed and {counts[MISSING]} could not be read; most often: {reason}. "
        "Request the failed ones again with --retry-failed, set another describe.captioner, or lower describe.min_coverage."
    )


def loaded_captioner(config: PipelineConfig) -> Captioner:
    """The captioner of these settings, loaded once for each process."""
    return _load(json.dumps(captioner_identity(config.describe), sort_keys=True), config.describe, config.encode.device, config.threads)


@once
def _load(identity: str, config: DescribeConfig, device: str, threads: int) -> Captioner:
    return load_captioner(config, device=device, threads=threads)


def _log(corpus: Corpus, config: DescribeConfig, redo: Mapping[str, int]) -> CaptionsLog:
    asked = _request(config, redo)
    *before, request = [asked, *(f"{asked}.{number}" for number in range(1, redo.get(retries(config, redo), 0) + 1))]
    return CaptionsLog(corpus.captions, captioner_model(config), request, tuple(before))


def _request(config: DescribeConfig, redo: Mapping[str, int]) -> str:
    """Digest of the question, a part of the log's key: it does not depend on the server, and changes after --redo."""
    asked = [captioner_identity(config), LOG_VERSION, redo.get(STAGE.name, 0)]
    return xxhash.xxh3_128_hexdigest(json.dumps(asked, sort_keys=True).encode())


def retries(config: DescribeConfig, redo: Mapping[str, int]) -> str:
    """Name of the counter of --retry-failed; each question has a separate counter."""
    return f"{RETRY}-{_request(config, redo)}"


def _inputs(context: Context) -> list[str]:
    name = retries(context.config.describe, context.redo)
    return [prototypes.STAGE.fingerprint(context), *([f"{name}-{context.redo[name]}"] if name in context.redo else [])]


def _units(context: Context, names: Sequence[str]) -> int:
    return len({row["content_hash"] for row in _representatives(context)})


def counted_captions(context: Context) -> pa.Table:
    """The rows of `representative_captions` that hold a description, in order. The row number is the number of the description."""
    captions = context.read(STAGE, REPRESENTATIVE_CAPTIONS_TABLE)
    return captions.filter(pc.and_(pc.is_in(captions["status"], pa.array([DESCRIBED, FREE])), pc.is_valid(captions["text"])))


@once
def described_rows(context: Context) -> NDArray[np.int64]:
    """The row of each description's image in canonical order, (M,)."""
    images = usable(context).rows["image_id"].combine_chunks()
    rows: NDArray[np.int64] = pc.index_in(counted_captions(context)["image_id"], value_set=images).to_numpy().astype(np.int64)
    return rows


STAGE = Stage(
    name="describe",
    version=2,
    settings=lambda config: captioner_identity(config.describe),
    inputs=_inputs,
    steps=(Step((REPRESENTATIVE_CAPTIONS_TABLE,), work, units=_units, whole=True, unit="descriptions"),),
    on_device=True,
)
