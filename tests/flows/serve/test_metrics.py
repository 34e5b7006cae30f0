"""The metrics of the report server."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from flows.serve import metrics
from gsec_core.results import finishing
from gsec_core.stages.base import Context
from gsec_core.store import Store

from .examples import Shown, figures, served


def test_the_metrics_agree_with_the_store(shown: Shown, client: TestClient) -> None:
    found = figures(client)
    corpus, other = shown.finished.corpus.name, shown.assigned.corpus.name
    assert found["gsec_images", corpus, "nightly", "ok"] == 16
    assert found["gsec_images", corpus, "nightly", "rejected"] == 1
    assert found["gsec_images", corpus, "nightly", "missing"] == 0
    assert {key[2]: value for key, value in found.items() if key[:2] == ("gsec_runs", corpus)} == {
        "finished": 1,
        "failed": 1,
        "unfinished": 1,
        "not begun": 1,
    }
    assert found["gsec_runs", other, "finished"] == 1
    assert found["gsec_attempts_failed", corpus, "train"] == 1
    assert found["gsec_attempts_failed", corpus, "encode"] == 0
    attempts = [attempt for context in (shown.finished, shown.unfinished) for attempt in context.run.attempts()]
    made: Counter[str] = Counter()
    for attempt in attempts:
        made[attempt["start"]["stage"]] += attempt["end"]["sums"].get("shards", 0)
    assert found["gsec_images_encoded", corpus] == 16
    assert found["gsec_images_encoded", other] == 4
    assert found["gsec_images_rejected", corpus] == 1
    assert found["gsec_caption_requests", corpus] == 0
    for stage in shown.finished.run.request()["stages"]:
        assert found["gsec_stage_shards_made", corpus, stage] == made[stage] > 0
        assert found["gsec_stage_seconds", corpus, stage] > 0
    run = shown.unfinished.run
    assert ("gsec_stage_shards_done", corpus, shown.finished.run.id, "encode") not in found
    for stage in ("encode", "baseline"):
        assert (found["gsec_stage_shards_done", corpus, run.id, stage], found["gsec_stage_shards_planned", corpus, run.id, stage]) == run.shards_done(stage)
    assert ("gsec_stage_shards_planned", corpus, run.id, "train") not in found
    assert found["gsec_publications_total", corpus, "nightly"] == 1
    assert found["gsec_published_timestamp_seconds", corpus, "nightly"] > 1.7e9
    assert found["gsec_last_finished_timestamp_seconds", corpus, "nightly"] > 1.7e9
    assert found["gsec_held", corpus, "nightly"] == 0
    assert found["gsec_caption_reply_seconds", corpus] == 0
    assert found["gsec_unreadable_records",] == 0


def test_a_night_with_nothing_new_moves_the_time_of_the_last_finished_run_and_no_other(shown: Shown, tmp_path: Path) -> None:
    store = Store.open(str(shutil.copytree(shown.folder, tmp_path / "store")))
    corpus = shown.finished.corpus.name
    with served(store) as client:
        before = figures(client)
        finishing.finish(Context.of(store.run(shown.finished.run.id), shown.finished.config))
        after = figures(client)
    assert {key for key in after if after[key] != before[key]} == {("gsec_last_finished_timestamp_seconds", corpus, "nightly")}
    assert after["gsec_last_finished_timestamp_seconds", corpus, "nightly"] > before["gsec_last_finished_timestamp_seconds", corpus, "nightly"]


def test_a_run_that_was_held_back_counts_until_it_is_published(shown: Shown, tmp_path: Path) -> None:
    store = Store.open(str(shutil.copytree(shown.folder, tmp_path / "store")))
    corpus, last = shown.finished.corpus.name, store.publications.finished("nightly")
    assert last is not None
    with served(store) as client:
        store.publications.note_finished("nightly", replace(last, run_id="0" * 32, held=True))
        assert figures(client)["gsec_held", corpus, "nightly"] == 1
        store.publications.note_finished("nightly", replace(last, held=True))
        assert figures(client)["gsec_held", corpus, "nightly"] == 0
        (tmp_path / "store/published/nightly/finished.json").write_text("{")
        assert figures(client)["gsec_unreadable_records",] == 1


def test_only_metrics_that_never_fall_are_counters(client: TestClient) -> None:
    """A prune lowers sums over the kept runs. Prometheus would read a lower counter as a restart."""
    kinds = {family.name: family.type for family in text_string_to_metric_families(client.get("/metrics").text)}
    assert [name for name, kind in kinds.items() if kind == "counter"] == ["gsec_publications"]
    assert set(kinds.values()) == {"counter", "gauge"}


def test_metrics_are_served_as_openmetrics_on_request(client: TestClient) -> None:
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_of_many_unfinished_runs_only_the_newest_are_in_the_metrics(shown: Shown, monkeypatch: pytest.MonkeyPatch, client: TestClient) -> None:
    monkeypatch.setattr(metrics, "MOST_UNFINISHED", 1)
    assert not [key for key in figures(client) if key[0] == "gsec_stage_shards_done"], "the newest unfinished run has not begun, so it has no shards"
