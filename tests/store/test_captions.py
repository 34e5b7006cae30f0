"""The captions log: every reader of a key has the same row, and damage is never mended by paying again unasked."""

from itertools import permutations
from uuid import uuid4

import pytest

from gsec_core.errors import BadShard, GsecError
from gsec_core.results.status import verify
from gsec_core.store import Shards, Store
from gsec_core.store.captions import PARTS, CaptionsLog, Row, merge, spent
from gsec_core.tables import DESCRIBED, FAILED


@pytest.fixture
def shards() -> Shards:
    return Store.open(f"memory://{uuid4().hex}").corpus("birds").captions


@pytest.fixture
def log(shards: Shards) -> CaptionsLog:
    return CaptionsLog(shards, "a model", "a request")


def answer(image: int, text: str = "a bird", at: int = 0) -> Row:
    return {
        "content_hash": image.to_bytes(16, "big"),
        "written_at": f"2026-01-01T00:00:00.{at:03d}+00:00",
        "text": text,
        "object": "bird",
        "attributes": ("small", "blue"),
        "status": DESCRIBED,
        "reason": None,
        "requests": 1,
        "prompt_tokens": 300,
        "completion_tokens": 20,
        "seconds": 0.5,
    }


def texts(log: CaptionsLog, accept_loss: bool = False) -> dict[int, str]:
    return {int.from_bytes(key, "big"): row["text"] for key, row in log.rows(accept_loss=accept_loss).items()}


def damage(shards: Shards, name: str) -> None:
    shards.files.replace(shards.path(name), b"PAR1 of a disk that forgets")


def test_an_empty_log_has_no_rows(any_store: Store) -> None:
    assert CaptionsLog(any_store.corpus("birds").captions, "m", "r").rows() == {}


def test_rows_are_read_as_they_were_written(any_store: Store) -> None:
    log = CaptionsLog(any_store.corpus("birds").captions, "m", "r")
    failed = {**answer(2), "text": None, "object": None, "attributes": (), "status": FAILED, "reason": "empty"}
    log.append([answer(1), failed])
    rows = log.rows()
    assert rows[answer(1)["content_hash"]] == {**answer(1), "attributes": ["small", "blue"], "model": "m", "request": "r"}
    assert rows[failed["content_hash"]] == {**failed, "attributes": [], "model": "m", "request": "r"}


def test_no_rows_are_no_commit(shards: Shards, log: CaptionsLog) -> None:
    log.append([])
    assert shards.names() == set()


def test_the_same_rows_again_are_the_same_shard(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1)])
    log.append([answer(1)])
    assert len(shards.names()) == 1


def test_another_model_or_request_has_rows_of_its_own(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1)])
    assert texts(CaptionsLog(shards, "another model", "a request")) == {}
    assert texts(CaptionsLog(shards, "a model", "another request")) == {}
    assert texts(CaptionsLog(shards, "a model", "a request")) == {1: "a bird"}


@pytest.mark.parametrize("order", list(permutations([("first", 1), ("second", 2), ("third", 3)])))
def test_of_several_rows_of_a_key_the_one_written_first_counts(log: CaptionsLog, order: tuple[tuple[str, int], ...]) -> None:
    for text, at in order:
        log.append([answer(1, text, at)])
    assert texts(log) == {1: "first"}


def test_of_rows_written_at_the_same_moment_the_smaller_file_name_counts(shards: Shards, log: CaptionsLog) -> None:
    for text in ("one", "two", "three"):
        log.append([answer(1, text)])
    assert texts(log) == {1: shards.read(min(shards.names()))["text"][0].as_py()}


def test_damage_stops_and_says_how_to_go_on(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1)])
    [name] = shards.names()
    damage(shards, name)
    with pytest.raises(GsecError, match=rf"{name}.*paid.*--set describe.accept_loss=true") as raised:
        log.rows()
    assert not isinstance(raised.value, BadShard), "or it would be set aside and asked again without a word"
    assert shards.names() == {name}


def test_with_accept_loss_what_is_damaged_is_set_aside_and_the_rest_is_read(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1), answer(2)])
    [bad] = shards.names()
    log.append([answer(3)])
    damage(shards, bad)
    assert texts(log, accept_loss=True) == {3: "a bird"}
    assert shards.names_set_aside() == {bad}
    assert texts(log) == {3: "a bird"}


def test_a_shard_that_another_run_sets_aside_meanwhile_is_not_missed(shards: Shards, log: CaptionsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append([answer(1)])
    [gone] = shards.names()
    log.append([answer(2)])
    listings = [shards.names(), shards.names() - {gone}]
    shards.files.remove(shards.path(gone))
    monkeypatch.setattr(Shards, "names", lambda self: listings.pop(0))
    assert texts(log) == {2: "a bird"}


def test_verify_names_damage_and_leaves_it_where_it_is(any_store: Store) -> None:
    corpus = any_store.corpus("birds")
    corpus.bind({"url": "somewhere"})
    CaptionsLog(corpus.captions, "m", "r").append([answer(1)])
    assert verify(any_store) == []
    [name] = corpus.captions.names()
    damage(corpus.captions, name)
    [found] = verify(any_store)
    assert name in found
    assert corpus.captions.names() == {name}


# Failures asked again


def test_of_a_question_asked_again_what_had_not_failed_counts_and_what_had_is_replaced(shards: Shards) -> None:
    first, again = CaptionsLog(shards, "m", "r0"), CaptionsLog(shards, "m", "r1", before=("r0",))
    failed = {**answer(2), "text": None, "status": FAILED}
    first.append([answer(1, "one"), failed])
    assert texts(again) == {1: "one"}
    again.append([answer(2, "two", at=5)])
    assert texts(again) == {1: "one", 2: "two"}
    assert first.rows()[failed["content_hash"]]["status"] == FAILED, "the first question keeps its own"


def test_what_failed_again_is_final_until_it_is_asked_once_more(shards: Shards) -> None:
    failed = {**answer(2), "text": None, "status": FAILED}
    for request, before in (("r0", ()), ("r1", ("r0",))):
        CaptionsLog(shards, "m", request, before).append([failed])
    assert list(CaptionsLog(shards, "m", "r1", ("r0",)).rows()) == [failed["content_hash"]]
    assert CaptionsLog(shards, "m", "r2", ("r0", "r1")).rows() == {}


# Merging, and what was paid


def test_merged_parts_say_what_they_said_apart(any_store: Store) -> None:
    log = CaptionsLog(any_store.corpus("birds").captions, "m", "r")
    for image in range(5):
        log.append([answer(image, f"bird {image}")])
    log.append([answer(3, "a later bird", at=9)])
    before, parts = texts(log), log.shards.names()
    merge(log.shards, sorted(parts))
    assert texts(log) == before
    [merged] = log.shards.names() - parts
    assert log.shards.facts(merged)[PARTS] == sorted(parts)
    for part in parts:
        log.shards.files.remove(log.shards.path(part))
    assert texts(log) == before


def test_an_answer_is_paid_once_however_often_it_is_written(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1), answer(2)])
    log.append([answer(2, at=7), {**answer(3), "text": None, "status": FAILED}])
    free = {**answer(4), "requests": None, "prompt_tokens": None, "completion_tokens": None, "seconds": None}
    CaptionsLog(shards, "tagger", "r").append([free])
    merge(shards, sorted(shards.names()))
    assert spent(shards) == [
        {"model": "a model", "answers": 3, "failed": 1, "requests": 3, "prompt_tokens": 900, "completion_tokens": 60, "seconds_a_reply": 0.5},
        {"model": "tagger", "answers": 1, "failed": 0, "requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "seconds_a_reply": None},
    ]
