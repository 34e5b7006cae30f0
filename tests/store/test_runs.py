"""Runs are found again by their request, their records are written once, and names are checked before they become paths."""

import json
import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest

from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.errors import GsecError, Refused
from gsec_core.store import Publication, Run, Store, fingerprint

from ..stages.steps import STAGES
from .examples import embeddings

CONFIG = PipelineConfig(clusters=10)


@pytest.fixture
def store() -> Store:
    return Store.open(f"memory://{uuid4().hex}")


def request(store: Store, config: PipelineConfig = CONFIG, corpus: str = "birds", generation: int = 1, redo: Mapping[str, int] | None = None) -> Run:
    bound = store.corpus(corpus)
    for stage, count in (redo or {}).items():
        while bound.redo_counters().get(stage, 0) < count:
            bound.redo(stage)
    return store.request_run(config, bound, generation, pipeline.identity(config))


def changed(**settings: Any) -> PipelineConfig:
    """CONFIG with some settings changed; sections are given as dictionaries."""
    values = CONFIG.model_dump()
    for name, value in settings.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    return PipelineConfig.model_validate(values)


# Requests


def test_the_same_request_finds_its_run_again(any_store: Store) -> None:
    first = request(any_store)
    created = first.request()["created"]
    again = request(any_store)
    assert again.id == first.id
    assert again.request()["created"] == created
    assert [run.id for run in any_store.runs()] == [first.id]


@pytest.mark.parametrize(
    "settings",
    [
        {"clusters": 11},
        {"encode": {"encoder": "open_clip:ViT-B-32:openai"}},
        {"encode": {"precision": "bf16"}},
        {"encode": {"batch_size": 32}},
        {"baseline": {"random_state": 1}},
    ],
)
def test_a_setting_that_changes_the_output_makes_another_run(store: Store, settings: dict[str, Any]) -> None:
    assert request(store, changed(**settings)).id != request(store).id


@pytest.mark.parametrize(
    "settings",
    [
        {"encode": {"device": "cuda"}},
        {"encode": {"workers": 7}},
        {"threads": 3},
        {"max_workers": 4},
        {"max_rejects": 0.5},
        {"store": "s3://moved/here"},
        {"source": "s3://moved/there"},
        {"ingest": {"max_shrink": 1.0}},
    ],
)
def test_a_setting_that_does_not_change_the_output_finds_the_same_run(store: Store, settings: dict[str, Any]) -> None:
    assert request(store, changed(**settings)).id == request(store).id


@pytest.mark.parametrize("other", [{"corpus": "fish"}, {"generation": 2}, {"redo": {"encode": 1}}])
def test_another_corpus_or_generation_or_a_redo_makes_another_run(store: Store, other: dict[str, Any]) -> None:
    plain = request(store).id
    assert request(store, **other).id != plain


def test_a_request_records_its_corpus_generation_redo_stages_and_settings(any_store: Store) -> None:
    asked = request(any_store, generation=3, redo={"encode": 2}).request()
    assert (asked["corpus"], asked["generation"], asked["redo"], asked["stages"]) == ("birds", 3, {"encode": 2}, [stage.name for stage in STAGES])
    assert PipelineConfig.model_validate(asked["config"]) == CONFIG


def test_the_settings_of_a_run_name_the_current_address_of_its_store(store: Store) -> None:
    assert request(store, changed(store="where/it/was")).config() == changed(store=store.url)


# Finding runs


def test_a_run_is_found_by_the_beginning_of_its_id(any_store: Store) -> None:
    run = request(any_store)
    assert any_store.run(run.id).id == any_store.run(run.id[:6]).id == run.id


def test_the_beginning_of_an_id_that_several_runs_share_is_refused(store: Store) -> None:
    for id in ("abc1", "abc2"):
        store.files.create(f"runs/{id}/request.json", b"{}")
    with pytest.raises(Refused, match=r"--run abc: 2 runs begin like this in memory://.*`gsec status` lists the runs"):
        store.run("abc")


def test_the_id_of_a_missing_run_is_refused(any_store: Store) -> None:
    request(any_store)
    with pytest.raises(Refused, match="--run nothing: there is no such run"):
        any_store.run("nothing")


def test_an_empty_id_is_refused_although_the_only_run_begins_like_that(any_store: Store) -> None:
    request(any_store)
    with pytest.raises(Refused, match="--run: the id is empty"):
        any_store.run("")


def test_runs_are_listed_oldest_first(store: Store) -> None:
    for id, created in [("b", "2026-01-01"), ("c", "2026-01-02"), ("a", "2026-01-03")]:
        store.files.create(f"runs/{id}/request.json", f'{{"created": "{created}"}}'.encode())
    assert [run.id for run in store.runs()] == ["b", "c", "a"]


def test_a_run_without_a_request_is_not_listed(any_store: Store) -> None:
    any_store.files.create("runs/half/attempt-1-start.json", b"{}")
    assert any_store.runs() == []


# Stages


def test_a_stage_may_be_begun_again_with_the_same_inputs(any_store: Store) -> None:
    run = request(any_store)
    for _ in range(2):
        run.begin_stage("encode", "f" * 32, {"embeddings": ["a", "b"]})
    assert run.stages() == {"encode": {"fingerprint": "f" * 32, "tables": {"embeddings": ["a", "b"]}}}


@pytest.mark.parametrize(("table_fingerprint", "shards"), [("e" * 32, ["a", "b"]), ("f" * 32, ["a", "c"])])
def test_a_stage_begun_again_with_other_inputs_is_an_error(store: Store, table_fingerprint: str, shards: list[str]) -> None:
    run = request(store)
    run.begin_stage("encode", "f" * 32, {"embeddings": ["a", "b"]})
    with pytest.raises(GsecError, match=rf"run {run.id}: the input of stage encode changed .* --redo encode"):
        run.begin_stage("encode", table_fingerprint, {"embeddings": shards})
    assert run.stages() == {"encode": {"fingerprint": "f" * 32, "tables": {"embeddings": ["a", "b"]}}}


def test_a_stage_that_has_not_begun_has_no_record(any_store: Store) -> None:
    assert request(any_store).stage("encode") is None
    assert request(any_store).shards_done("encode") == (0, 0)


def test_a_stage_is_complete_when_all_its_shards_are_committed(any_store: Store) -> None:
    run = request(any_store)
    run.begin_stage("encode", "f" * 32, {"embeddings": ["a", "b"]})
    table = any_store.corpus("birds").table("embeddings", "f" * 32)
    for shard, done in [("other", 0), ("a", 1), ("b", 2)]:
        assert not run.is_complete("encode")
        table.commit(shard, embeddings(first=0))
        assert run.shards_done("encode") == (done, 2)
    assert run.is_complete("encode")


def test_a_run_is_finished_when_every_stage_it_wants_is_complete(store: Store) -> None:
    run = request(store)
    for stage in (stage.name for stage in STAGES):
        assert not run.is_finished()
        run.begin_stage(stage, "f" * 32, {f"{stage} table": ["a"]})
        store.corpus("birds").table(f"{stage} table", "f" * 32).commit("a", embeddings(first=0))
    assert run.is_finished()


FINGERPRINT: dict[str, Any] = {"stage": "encode", "version": 1, "settings": {"precision": "fp32"}, "inputs": ["a", "b"], "redo": 0}


@pytest.mark.parametrize(
    "other", [{"stage": "train"}, {"version": 2}, {"settings": {"precision": "bf16"}}, {"inputs": ["a", "c"]}, {"inputs": ["b", "a"]}, {"redo": 1}]
)
def test_everything_that_changes_a_table_changes_its_fingerprint(other: dict[str, Any]) -> None:
    assert fingerprint(**FINGERPRINT | other) != fingerprint(**FINGERPRINT)


def test_a_fingerprint_does_not_depend_on_the_order_of_settings() -> None:
    a, b = {"x": 1, "y": {"p": 1, "q": 2}}, {"y": {"q": 2, "p": 1}, "x": 1}
    assert fingerprint(**FINGERPRINT | {"settings": a}) == fingerprint(**FINGERPRINT | {"settings": b})


# Attempts


def test_an_attempt_records_its_process_versions_outcome_and_facts(any_store: Store) -> None:
    run = request(any_store)
    with run.attempt({"versions": {"torch": "2"}}) as facts:
        facts["images"] = 5
    [attempt] = run.attempts()
    assert attempt["start"]["process"] == os.getpid()
    assert attempt["start"]["versions"] == {"torch": "2"}
    assert (attempt["end"]["outcome"], attempt["end"]["images"]) == ("done", 5)


def test_a_failed_attempt_records_its_error(store: Store) -> None:
    run = request(store)
    with pytest.raises(GsecError), run.attempt({}):
        raise GsecError("the disk is full")
    [attempt] = run.attempts()
    assert (attempt["end"]["outcome"], attempt["end"]["error"]) == ("failed", "GsecError: the disk is full")


def test_an_attempt_that_is_interrupted_records_it(store: Store) -> None:
    run = request(store)
    with pytest.raises(KeyboardInterrupt), run.attempt({}):
        raise KeyboardInterrupt
    assert [attempt["end"]["error"] for attempt in run.attempts()] == ["KeyboardInterrupt"]


def test_an_attempt_under_way_has_no_end(store: Store) -> None:
    run = request(store)
    with run.attempt({}):
        assert [attempt["end"] for attempt in run.attempts()] == [None]


def test_attempts_are_listed_oldest_first(store: Store) -> None:
    run = request(store)
    days = [f"2026-01-{day:02d}" for day in range(1, 10)]
    for day in days:
        store.files.create(f"{run.directory}/attempt-{uuid4().hex}-start.json", f'{{"at": "{day}"}}'.encode())
    assert [attempt["start"]["at"] for attempt in run.attempts()] == days


# Names


@pytest.mark.parametrize("name", ["birds", "birds-0a1b2c3d", "a.b_c-d", "0", "x" * 100])
def test_valid_names_of_corpora_are_accepted(store: Store, name: str) -> None:
    assert store.corpus(name).name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../birds", "a/b", "/birds", "Birds", "birds ", "birds\n", "vögel", ".hidden", "-dash", "x" * 101, "runs", "published"]
)
def test_names_that_no_corpus_can_have_are_refused(store: Store, name: str) -> None:
    with pytest.raises(Refused, match="a corpus's name has a-z, 0-9"):
        store.corpus(name)


def test_the_corpora_of_a_store_are_those_bound_to_a_source_sorted_by_name(any_store: Store) -> None:
    for name in ("fish", "birds"):
        any_store.corpus(name).bind({"url": name})
    any_store.files.create("other/notes.txt", b"")
    request(any_store)
    assert [corpus.name for corpus in any_store.corpora()] == ["birds", "fish"]


def test_the_path_of_a_shard_leads_back_to_its_table_and_name(any_store: Store) -> None:
    table = any_store.corpus("birds").table("embeddings", "f" * 32)
    assert any_store.shard_at(table.path("00000")) == (table, "00000")


def published(any_store: Store, number: int, run_id: str) -> Publication:
    return Publication("nightly", number, run_id, "birds", number, "a" * 32, 10, None, None, "2026-01-01")


def test_the_published_run_of_a_pipeline_is_its_newest_publication(any_store: Store) -> None:
    assert any_store.published_runs() == set()
    assert any_store.publications.add(published(any_store, 1, "abc"))
    assert any_store.publications.add(published(any_store, 2, "def"))
    assert any_store.published_runs() == {"def"}
    assert json.loads(any_store.files.read("published/nightly.json"))["run_id"] == "def"
    assert [made.run_id for made in any_store.publications.newest_first("nightly")] == ["def", "abc"]


def test_of_two_publishers_the_first_wins(any_store: Store) -> None:
    assert any_store.publications.add(published(any_store, 1, "abc"))
    assert not any_store.publications.add(published(any_store, 1, "def"))
    assert any_store.published_runs() == {"abc"}
    assert json.loads(any_store.files.read("published/nightly.json"))["run_id"] == "abc"
