"""Prometheus metrics, read from the stores at every scrape, so that no restart of this server or of a worker loses any."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.serve.known import DAMAGED, FINISHED, Asked, Attempt, Damaged, Known, Result, curations, each
from gsec_core.store import Finished, Publication, Run
from gsec_core.tables import MISSING, OK, REJECTED

MOST_UNFINISHED = 10
"""How many of a corpus's newest unfinished runs have metrics of their progress. Older unfinished runs are kept forever, but rarely worked on."""

_SUMMED = {
    "encoded": ("gsec_images_encoded", "Images that went through the encoder"),
    REJECTED: ("gsec_images_rejected", "Images found unusable, counted at every try"),
    MISSING: ("gsec_images_missing", "Images that could not be read, counted at every try"),
    "requests": ("gsec_caption_requests", "Requests to captioning servers that had a reply"),
    "prompt_tokens": ("gsec_caption_prompt_tokens", "Tokens of prompts, as the servers count them"),
    "completion_tokens": ("gsec_caption_completion_tokens", "Tokens of replies, as the servers count them"),
    "reply_seconds": ("gsec_caption_reply_seconds", "Seconds that requests to captioning servers took, summed even if they ran at the same time"),
}
"""Fact in the sums of an attempt -> name and help of the metric that adds it up over all attempts."""

_OF_KEPT = "in the attempts of the runs that are kept; a prune lowers it."
"""The metrics with this help text are gauges, because a prune lowers them: Prometheus would take a falling counter for a restart and count the rest again."""


@dataclass(frozen=True)
class _Told:
    """One run and its records."""

    asked: Asked
    run: Run
    state: str
    result: Result | None
    attempts: Sequence[Attempt]


@dataclass(frozen=True)
class _Corpus:
    """One corpus of one store."""

    store: Known
    name: str
    runs: Sequence[_Told]
    """Newest first."""

    @property
    def labels(self) -> list[str]:
        """Values of the labels store and corpus. Both are needed, because two stores may have corpora of the same name."""
        return [self.store.url, self.name]


class Stores(Collector):
    """Collector of all metrics of several stores."""

    def __init__(self, stores: Sequence[Known]) -> None:
        self._stores = stores

    def describe(self) -> list[Metric]:
        """Returns no metrics, because naming them all would read the stores when the server starts."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics; called at every scrape."""
        unreadable = GaugeMetricFamily("gsec_unreadable_records", "Requests of runs, publications and curation logs that cannot be read.", labels=["store"])
        corpora: list[_Corpus] = []
        published: list[tuple[str, Publication]] = []
        finished: list[tuple[str, str, Finished]] = []
        curated: list[tuple[list[str], int, int | None]] = []
        for store in self._stores:
            runs, damaged = store.runs()
            publications, unclear = store.publications()
            last, unclear_last = store.finished()
            logs, unclear_logs = curations(store, publications)
            curated += [([store.url, publication.pipeline, publication.corpus], *counts) for publication, counts in logs]
            unreadable.add_metric([store.url], len(damaged) + len(unclear) + len(unclear_last) + len(unclear_logs))
            corpora += _corpora(store, runs)
            published += [(store.url, publication) for publication in publications]
            finished += [(store.url, *one) for one in last]
        yield unreadable
        yield from _of_runs(corpora)
        yield from _of_work(corpora)
        yield from _of_publications(published)
        yield from _of_last(finished, published)
        yield from _of_curation(curated)


def _corpora(store: Known, runs: Sequence[tuple[Asked, Run]]) -> list[_Corpus]:
    found: defaultdict[str, list[_Told]] = defaultdict(list)
    for told in each(lambda pair: _told(store, *pair), runs):
        found[told.asked.corpus].append(told)
    return [_Corpus(store, corpus, told) for corpus, told in sorted(found.items())]


def _told(store: Known, asked: Asked, run: Run) -> _Told:
    try:
        return _Told(asked, run, store.state(run), store.result(run), store.attempts(run))
    except Damaged:
        return _Told(asked, run, DAMAGED, None, ())


def _of_runs(corpora: Sequence[_Corpus]) -> Iterator[Metric]:
    of = ["store", "corpus"]
    states = GaugeMetricFamily("gsec_runs", "Runs by state.", labels=[*of, "state"])
    images = GaugeMetricFamily("gsec_images", "Images of the newest finished run of a pipeline, by status.", labels=[*of, "pipeline", "status"])
    done = GaugeMetricFamily("gsec_stage_shards_done", "Shards that are there, of the newest unfinished runs.", labels=[*of, "run", "stage"])
    planned = GaugeMetricFamily("gsec_stage_shards_planned", "Shards that there will be, of the newest unfinished runs.", labels=[*of, "run", "stage"])
    for corpus in corpora:
        for state, count in sorted(Counter(told.state for told in corpus.runs).items()):
            states.add_metric([*corpus.labels, state], count)
        newest: dict[str, Result] = {}
        for told in corpus.runs:
            if told.result is not None and told.asked.makes_clusters:
                newest.setdefault(told.asked.pipeline, told.result)
        for pipeline, result in newest.items():
            usable = result.images - result.rejected - result.missing
            for status, count in ((OK, usable), (REJECTED, result.rejected), (MISSING, result.missing)):
                images.add_metric([*corpus.labels, pipeline, status], count)
        unfinished = [told.run for told in corpus.runs if told.state not in (FINISHED, DAMAGED)][:MOST_UNFINISHED]
        for run, progress in zip(unfinished, each(partial(_progress, corpus.store), unfinished), strict=True):
            for stage, there, all_of_them in progress:
                if all_of_them:
                    done.add_metric([*corpus.labels, run.id, stage], there)
                    planned.add_metric([*corpus.labels, run.id, stage], all_of_them)
    yield from (states, images, done, planned)


def _progress(store: Known, run: Run) -> list[tuple[str, int, int]]:
    try:
        return store.progress(run)
    except Damaged:
        return []


def _of_work(corpora: Sequence[_Corpus]) -> Iterator[Metric]:
    """Sums over the end records of all attempts. Work that was done again counts again."""
    of = ["store", "corpus"]
    sums = {fact: GaugeMetricFamily(name, f"{text}, {_OF_KEPT}", labels=of) for fact, (name, text) in _SUMMED.items()}
    seconds = GaugeMetricFamily("gsec_stage_seconds", f"Seconds that stages were worked on, {_OF_KEPT}", labels=[*of, "stage"])
    shards = GaugeMetricFamily("gsec_stage_shards_made", f"Shards that were made, {_OF_KEPT}", labels=[*of, "stage"])
    failed = GaugeMetricFamily("gsec_attempts_failed", f"Attempts at a stage that ended in an error, {_OF_KEPT}", labels=[*of, "stage"])
    for corpus in corpora:
        attempts = [attempt for told in corpus.runs for attempt in told.attempts]
        for fact, metric in sums.items():
            metric.add_metric(corpus.labels, sum(attempt.sums.get(fact, 0) for attempt in attempts if _counts(attempt.stage, fact)))
        for stage in sorted({attempt.stage for attempt in attempts}):
            of_stage = [attempt for attempt in attempts if attempt.stage == stage]
            seconds.add_metric([*corpus.labels, stage], sum(attempt.seconds for attempt in of_stage))
            shards.add_metric([*corpus.labels, stage], sum(attempt.sums.get("shards", 0) for attempt in of_stage))
            failed.add_metric([*corpus.labels, stage], sum(attempt.failed for attempt in of_stage))
    yield from (*sums.values(), seconds, shards, failed)


def _counts(stage: str, fact: str) -> bool:
    """Whether to add up this fact of the stage: rejected and missing images count only in encode, because describe counts representatives there."""
    return stage == "encode" or fact not in (REJECTED, MISSING)


def _of_publications(published: Sequence[tuple[str, Publication]]) -> Iterator[Metric]:
    labels = ["store", "pipeline", "corpus"]
    at = GaugeMetricFamily("gsec_published_timestamp_seconds", "When the current publication was made.", labels=labels)
    number = CounterMetricFamily("gsec_publications", "Clusterings that were published.", labels=labels)
    moved = GaugeMetricFamily("gsec_published_moved_ratio", "Share of the images in common with the previous publication that have another key.", labels=labels)
    for url, publication in published:
        of = [url, publication.pipeline, publication.corpus]
        at.add_metric(of, datetime.fromisoformat(publication.at).timestamp())
        number.add_metric(of, publication.number)
        if publication.moved is not None:
            moved.add_metric(of, publication.moved)
    yield from (at, number, moved)


def _of_last(finished: Sequence[tuple[str, str, Finished]], published: Sequence[tuple[str, Publication]]) -> Iterator[Metric]:
    labels = ["store", "pipeline", "corpus"]
    at = GaugeMetricFamily("gsec_last_finished_timestamp_seconds", "When a run last finished, even if it was held back or found nothing new.", labels=labels)
    held = GaugeMetricFamily("gsec_held", "1 if the run that finished last was held back and is still not published, else 0.", labels=labels)
    current = {(url, publication.pipeline, publication.run_id) for url, publication in published}
    for url, pipeline, last in finished:
        of = [url, pipeline, last.corpus]
        at.add_metric(of, datetime.fromisoformat(last.at).timestamp())
        held.add_metric(of, last.held and (url, pipeline, last.run_id) not in current)
    yield from (at, held)


def _of_curation(curated: Sequence[tuple[list[str], int, int | None]]) -> Iterator[Metric]:
    labels = ["store", "pipeline", "corpus"]
    acts = GaugeMetricFamily("gsec_curation_acts", "Acts in the curation log of a pipeline.", labels=labels)
    unapplied = GaugeMetricFamily("gsec_curation_open_acts", "Acts that cannot be applied to the published clusters.", labels=labels)
    for of, count, found in curated:
        acts.add_metric(of, count)
        if found is not None:
            unapplied.add_metric(of, found)
    yield from (acts, unapplied)
