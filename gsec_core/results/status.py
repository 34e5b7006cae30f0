"""What a store holds and how far its runs are, read from the store alone."""

from collections.abc import Iterator
from math import fsum
from typing import Any

import pyarrow.compute as pc
import xxhash

from gsec_core import methods
from gsec_core.curation.log import Log
from gsec_core.errors import BadRecord, BadShard, GsecError, without_secrets
from gsec_core.stages import encode
from gsec_core.store import Corpus, Run, Shards, Store, captions
from gsec_core.store.files import Files
from gsec_core.tables import EMBEDDINGS_TABLE, MISSING, OK, REJECTED, REPORT_TABLE, THUMBNAILS_TABLE

DAMAGED = "damaged"
"""State of a run, or of a pipeline, with a damaged record."""


def corpora(store: Store) -> list[dict[str, Any]]:
    """One row for each corpus: its source, its newest generation, the number of its images and shards; ``error`` tells what is damaged, if anything."""
    return [_corpus(corpus) for corpus in store.corpora()]


def published(store: Store) -> list[dict[str, Any]]:
    """One row for each pipeline: its published run, since when, and the share of images that it moved; ``error`` tells what is damaged, if anything.

    ``acts`` is the number of acts of curation, ``open_acts`` how many of them were open when an act was last added or a run finished.
    """
    rows = (_published(store, pipeline) for pipeline in store.publications.pipelines())
    return [row for row in rows if row is not None]


def descriptions(store: Store) -> list[dict[str, Any]]:
    """One row for each corpus and model: the answers in the readable part of the captions log, and their requests, tokens and time."""
    return [{"corpus": corpus.name, **row} for corpus in store.corpora() for row in captions.spent(corpus.captions)]


def runs(store: Store) -> list[dict[str, Any]]:
    """One row for each run, oldest first: its main settings, the progress of each stage, and how its last attempt ended.

    Damaged runs come first. For them ``error`` tells what is wrong, and the other columns are empty.
    """
    found = (Run(store.files, id) for id in sorted(store.files.directories("runs")))
    return sorted((_run(run) for run in found if run.exists()), key=lambda row: row["created"] or "")


def _corpus(corpus: Corpus) -> dict[str, Any]:
    row: dict[str, Any] = {"corpus": corpus.name, **dict.fromkeys(("source", "generation", "images", "shards", "error"))}
    try:
        row["source"] = corpus.source()["url"]
        generation = corpus.generation()
        row |= {"generation": generation.number, "shards": len(generation.shards)}
        row["images"] = corpus.live_rows(generation).num_rows
    except GsecError as error:
        row["error"] = str(error)
    return row


def _published(store: Store, pipeline: str) -> dict[str, Any] | None:
    columns = ("run_id", "corpus", "generation", "moved", "at", "acts", "open_acts")
    try:
        newest = store.publications.newest(pipeline)
    except BadRecord as error:
        return {"pipeline": pipeline, **dict.fromkeys(columns), "run_id": DAMAGED, "error": str(error)}
    if newest is None:
        return None
    curated = store.publications.pointer(pipeline).get("curated") or {}
    acts = {"acts": len(Log(store.files, pipeline).numbers()), "open_acts": curated.get("open")}
    return {"pipeline": pipeline, **{column: getattr(newest, column) for column in columns[:5]}, **acts, "error": curated.get("error")}


def _run(run: Run) -> dict[str, Any]:
    try:
        return _readable(run)
    except BadRecord as error:
        known = {"run": run.id, "stages": {}, "state": DAMAGED, "attempts": 0, "error": str(error), "images": {}}
        return {**dict.fromkeys(("run", "corpus", "generation", "clusters", "method", "encoder", "created", "decision")), **known}


def _readable(run: Run) -> dict[str, Any]:
    request = run.request()
    attempts = run.attempts()
    ends = [attempt["end"] for attempt in attempts]
    return {
        "run": run.id,
        "corpus": request["corpus"],
        "generation": request["generation"],
        "clusters": request["config"]["clusters"],
        "method": request["config"].get("method", methods.DEFAULT),
        "encoder": encode.encoders_of(run),
        "created": request["created"],
        "stages": {stage: dict(zip(("done", "planned"), run.shards_done(stage), strict=True)) for stage in run.stage_names()},
        "decision": _decision(run),
        "state": state(run, ends),
        "attempts": len(attempts),
        "error": without_secrets(ends[-1]["error"]) if ends and ends[-1] and ends[-1].get("error") else None,
        "images": _image_counts(run),
    }


def _decision(run: Run) -> str | None:
    found = run.decision()
    return None if found is None else f"{found['decision']}: {found['why']}"


def state(run: Run, ends: list[dict[str, Any] | None]) -> str:
    """State of a run, given the end records of its attempts. An attempt without one is in progress or was killed; the store cannot tell which."""
    if run.is_finished():
        return "finished"
    if not ends:
        return "not begun"
    if ends[-1] is None:
        return "in progress or killed"
    return "failed" if ends[-1]["outcome"] == "failed" else "unfinished"


def timings(run: Run) -> Iterator[dict[str, Any]]:
    """One row for each stage: stage, shards, and seconds, the sum over the shards' footers, whichever run wrote them. The report is left out."""
    begun = run.stages()
    for name in run.stage_names():
        record = begun.get(name)
        if record is None or REPORT_TABLE in record["tables"]:
            continue  # it may be in progress
        shards, made = 0, set()
        for table, planned in record["tables"].items():
            if table == THUMBNAILS_TABLE:
                continue  # its shards are written with those of the embeddings
            found = run.place(record).table(table, record["fingerprint"])
            done = found.names()
            facts = [(shard, found.facts(shard)) for shard in planned if shard in done]
            made |= {(shard, fact.get("seconds", 0.0)) for shard, fact in facts}  # shards of several tables that were made together have equal times
            shards += len(facts)
        yield {"stage": name, "shards": shards, "seconds": round(fsum(seconds for _, seconds in made), 1)}


def _image_counts(run: Run) -> dict[str, int]:
    """Numbers of the encoded live images of the run's generation by status; ``listed`` is the number of all live images."""
    records = [record for stage in encode.stages_of(run) if (record := run.stage(stage.name)) is not None]
    if not records:
        return {}
    request = run.request()
    corpus = Corpus(run.files, request["corpus"])
    embeddings = [corpus.table(EMBEDDINGS_TABLE, record["fingerprint"]) for record in records]
    try:
        generation = corpus.generation(request["generation"])
    except FileNotFoundError:  # an older gsec pruned a generation that a run still needs
        return {}
    counts = {"listed": 0, OK: 0, REJECTED: 0, MISSING: 0, "damaged_shards": 0}
    try:
        live = corpus.live_rows(generation).select(["image_id", "shard"])
    except GsecError:  # a damaged list, which the next ingest writes again
        return counts
    counts["listed"] = live.num_rows
    columns = ["image_id", "status", *(["content_hash", "reason"] if len(embeddings) > 1 else [])]
    there = set.intersection(*(encoded.names() for encoded in embeddings))
    for name in generation.shard_names:
        if name not in there:
            continue
        try:
            rows = encode.agreed([encoded.read(name, columns) for encoded in embeddings])
        except BadShard:
            counts["damaged_shards"] += 1
            continue
        alive = live.filter(pc.equal(live["shard"], name))["image_id"]
        for found in rows.filter(pc.is_in(rows["image_id"], alive))["status"].value_counts().to_pylist():
            counts[found["values"]] += found["counts"]
    return counts


def verify(store: Store) -> list[str]:
    """Read every shard of every corpus and of the shared tables, and check the pages of the reports.

    Damaged shards are set aside, so that the next ingest or run writes them again; those of the captions log are left to stage `describe`.
    Returns one message for each damaged shard or page, with its path.
    """
    damaged = [error for shards in store.shared_tables() for error in _verify_shards(shards)]
    for corpus in store.corpora():
        damaged += _verify_shards(corpus.captions, set_aside=False)
        for shards in [corpus.images, *corpus.tables()]:
            damaged += _verify_shards(shards)
        for shards in corpus.tables(REPORT_TABLE):
            damaged += _verify_pages(shards)
    return damaged


def _verify_shards(shards: Shards, set_aside: bool = True) -> list[str]:
    """Read every shard of a table, and set the damaged ones aside."""
    damaged = []
    for name in sorted(shards.names()):
        try:
            shards.read(name)
        except FileNotFoundError:
            continue  # pruned, or set aside, meanwhile
        except BadShard as error:
            damaged.append(str(error))
            if set_aside:
                shards.set_aside(name)
    return damaged


def _verify_pages(shards: Shards) -> list[str]:
    """Compare a report's pages with its table. If a page has changed, or the table was damaged, remove the report, so that the next run draws it again."""
    files, directory = shards.files, shards.directory
    drawn = {row["page"]: row["digest"] for name in shards.names() for row in shards.read(name).to_pylist()}
    damaged = [f"{directory}/{page}: the page changed after it was drawn" for page, digest in drawn.items() if not _is(files, f"{directory}/{page}", digest)]
    if damaged or (not drawn and any(map(Shards.is_aside, files.files(directory)))):
        folders = [directory, *(f"{directory}/{name}" for name in files.directories(directory))]
        tables = [shards.path(name) for name in shards.names()]  # first, so that a killed verify leaves no table without its pages
        for path in [*tables, *(f"{folder}/{name}" for folder in folders for name in files.files(folder) if name.endswith(".html"))]:
            files.remove(path)
    return damaged


def _is(files: Files, path: str, digest: bytes) -> bool:
    try:
        return xxhash.xxh3_128_digest(files.read(path)) == digest
    except FileNotFoundError:
        return False
