"""Prometheus metrics, read from the stores at every scrape: a restart of this server, or of a worker, loses none."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flows.serve import overview
from gsec_core.errors import Unreachable
from gsec_core.store import Run, Store
from gsec_core.tables import MISSING, REJECTED

_SUMMED = {
    "encoded": ("gsec_images_encoded", "Images that went through the encoder, by the runs that are kept."),
    REJECTED: ("gsec_images_rejected", "Images that were found unusable, each time that they were looked at."),
    MISSING: ("gsec_images_missing", "Images that could not be read, each time that they were tried."),
    "requests": ("gsec_caption_requests", "Requests to captioning servers that had a reply."),
    "prompt_tokens": ("gsec_caption_prompt_tokens", "Tokens of prompts, as the servers count."),
    "completion_tokens": ("gsec_caption_completion_tokens", "Tokens of replies, as the servers count."),
}
"""Fact of a stage's work -> name and help of the counter that adds it up over all attempts of all runs."""


class Stores(Collector):
    """All metrics of some stores."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._stores = stores

    def describe(self) -> list[Metric]:
        """Nothing: to name them all would read the stores when the server starts."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called at every scrape."""
        by_corpus = [(store, corpus, list(runs)) for store in self._stores for corpus, runs in _by_corpus(store).items()]
        yield from _of_runs(by_corpus)
        yield from _of_work(by_corpus)
        yield from _of_publications(self._stores)


def _by_corpus(store: Store) -> dict[str, list[Run]]:
    """Newest first."""
    found: defaultdict[str, list[Run]] = defaultdict(list)
    for run in overview.runs(store):
        found[overview.request_of(run)["corpus"]].append(run)
    return found


Corpora = Sequence[tuple[Store, str, Sequence[Run]]]


def _of_runs(corpora: Corpora) -> Iterator[Metric]:
    states = GaugeMetricFamily("gsec_runs", "Runs by state.", labels=["corpus", "state"])
    images = GaugeMetricFamily("gsec_images", "Images of the newest finished run by status.", labels=["corpus", "pipeline", "status"])
    done = GaugeMetricFamily("gsec_stage_shards_done", "Shards that are there, of runs that are not finished.", labels=["corpus", "run", "stage"])
    planned = GaugeMetricFamily("gsec_stage_shards_planned", "Shards that there will be, of runs that are not finished.", labels=["corpus", "run", "stage"])
    for _, corpus, runs in corpora:
        counts: Counter[str] = Counter()
        told: set[str] = set()
        for run in runs:
            request = overview.request_of(run)
            try:
                state = overview.state_of(run)
                shards = {stage: run.shards_done(stage) for stage in request["stages"]} if state != overview.FINISHED else {}
            except Unreachable:
                raise
            except overview.UNREADABLE:
                state, shards = overview.DAMAGED, {}
            counts[state] += 1
            for stage, (there, all_of_them) in shards.items():
                if all_of_them:
                    done.add_metric([corpus, run.id, stage], there)
                    planned.add_metric([corpus, run.id, stage], all_of_them)
            pipeline = request["config"].get("pipeline") or corpus
            result = overview.result_of(run)
            if result and pipeline not in told:
                told.add(pipeline)
                unusable = result["rejected"] + result["missing"]
                for status, count in (("ok", result["images"] - unusable), (REJECTED, result["rejected"]), (MISSING, result["missing"])):
                    images.add_metric([corpus, pipeline, status], count)
        for state, count in sorted(counts.items()):
            states.add_metric([corpus, state], count)
    yield from (states, images, done, planned)


def _of_work(corpora: Corpora) -> Iterator[Metric]:
    """What attempts recorded at their ends, added up: made again is counted again. A prune lowers them, which Prometheus takes for a restart."""
    sums = {fact: CounterMetricFamily(name, text, labels=["corpus"]) for fact, (name, text) in _SUMMED.items()}
    seconds = CounterMetricFamily("gsec_stage_seconds", "Time that stages were worked on.", labels=["corpus", "stage"])
    shards = CounterMetricFamily("gsec_stage_shards_made", "Shards that were made.", labels=["corpus", "stage"])
    failed = CounterMetricFamily("gsec_attempts_failed", "Attempts at a stage that ended in an error.", labels=["corpus", "stage"])
    for _, corpus, runs in corpora:
        facts: Counter[str] = Counter()
        took: defaultdict[str, float] = defaultdict(float)
        made: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for attempt in (attempt for run in runs for attempt in _attempts(run)):
            stage, end = attempt["start"]["stage"], attempt["end"]
            if end is None:
                continue
            took[stage] += _seconds(attempt["start"]["at"], end["at"])
            made[stage] += end.get("sums", {}).get("shards", 0)
            lost[stage] += end["outcome"] != "done"
            facts.update({fact: end.get("sums", {}).get(fact, 0) for fact in _SUMMED if _counts(stage, fact)})
        for fact, metric in sums.items():
            metric.add_metric([corpus], facts[fact])
        of_stages: list[tuple[CounterMetricFamily, Mapping[str, float]]] = [(seconds, took), (shards, made), (failed, lost)]
        for family, counted in of_stages:
            for stage, value in sorted(counted.items()):
                family.add_metric([corpus, stage], value)
    yield from (*sums.values(), seconds, shards, failed)


def _counts(stage: str, fact: str) -> bool:
    """Whether a fact of this name is of images: describe also counts what is missing, of representatives."""
    return stage == "encode" or fact not in (REJECTED, MISSING)


def _of_publications(stores: Sequence[Store]) -> Iterator[Metric]:
    labels = ["pipeline", "corpus"]
    at = GaugeMetricFamily("gsec_published_timestamp_seconds", "When the clustering that is published now was.", labels=labels)
    number = CounterMetricFamily("gsec_publications", "Clusterings that were published.", labels=labels)
    moved = GaugeMetricFamily("gsec_published_moved_ratio", "Share of the images in common with the one before it that are under another key.", labels=labels)
    for publication in (found for store in stores for found in overview.publications(store)):
        of = [publication.pipeline, publication.corpus]
        at.add_metric(of, datetime.fromisoformat(publication.at).timestamp())
        number.add_metric(of, publication.number)
        if publication.moved is not None:
            moved.add_metric(of, publication.moved)
    yield from (at, number, moved)


def _attempts(run: Run) -> list[dict[str, Any]]:
    """Of a finished run they are read once: later ones find nothing to do, and are few."""
    try:
        return _attempts_of_finished(run) if overview.result_of(run) else run.attempts()
    except Unreachable:
        raise
    except overview.UNREADABLE:
        return []


@lru_cache(maxsize=10_000)
def _attempts_of_finished(run: Run) -> list[dict[str, Any]]:
    return run.attempts()


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
