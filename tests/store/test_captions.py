"""The captions log: every reader gets the same row for a key, and after damage nothing is asked, and paid for, again without consent."""

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


def test_rows_are_read_back_as_they_were_written(any_store: Store) -> None:
    log = CaptionsLog(any_store.corpus("birds").captions, "m", "r")
    failed = {**answer(2), "text": None, "object": None, "attributes": (), "status": FAILED, "reason": "empty"}
    log.append([answer(1), failed])
    rows = log.rows()
    assert rows[answer(1)["content_hash"]] == {**answer(1), "attributes": ["small", "blue"], "model": "m", "request": "r"}
    assert rows[failed["content_hash"]] == {**failed, "attributes": [], "model": "m", "request": "r"}


def test_appending_no_rows_commits_nothing(shards: Shards, log: CaptionsLog) -> None:
    log.append([])
    assert shards.names() == set()


def test_appending_the_same_rows_again_makes_no_second_shard(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1)])
    log.append([answer(1)])
    assert len(shards.names()) == 1


def test_each_model_and_request_has_rows_of_its_own(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1)])
    assert texts(CaptionsLog(shards, "another model", "a request")) == {}
    assert texts(CaptionsLog(shards, "a model", "another request")) == {}
    assert texts(CaptionsLog(shards, "a model", "a request")) == {1: "a bird"}


@pytest.mark.parametrize("order", list(permutations([("first", 1), ("second", 2), ("third", 3)])))
def test_of_several_rows_of_a_key_the_earliest_counts_in_any_order_of_commits(log: CaptionsLog, order: tuple[tuple[str, int], ...]) -> None:
    for text, at in order:
        log.append([answer(1, text, at)])
    assert texts(log) == {1: "first"}


def test_of_rows_of_a_key_with_equal_times_the_one_in_the_smaller_file_name_counts(shards: Shards, log: CaptionsLog) -> None:
    for text in ("one", "two", "three"):
        log.append([answer(1, text)])
    assert texts(log) == {1: shards.read(min(shards.names()))["text"][0].as_py()}


def test_reading_a_damaged_log_is_an_error_that_names_the_remedy(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1)])
    [name] = shards.names()
    damage(shards, name)
    with pytest.raises(GsecError, match=rf"{name}.*paid.*--set describe.accept_loss=true") as raised:
        log.rows()
    assert not isinstance(raised.value, BadShard), "a BadShard would be set aside, and its descriptions asked again, without notice"
    assert shards.names() == {name}


def test_with_accept_loss_a_damaged_shard_is_set_aside_and_the_rest_is_read(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1), answer(2)])
    [bad] = shards.names()
    log.append([answer(3)])
    damage(shards, bad)
    assert texts(log, accept_loss=True) == {3: "a bird"}
    assert shards.names_set_aside() == {bad}
    assert texts(log) == {3: "a bird"}


def test_a_shard_that_another_run_removes_during_the_reading_is_no_error(shards: Shards, log: CaptionsLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.append([answer(1)])
    [gone] = shards.names()
    log.append([answer(2)])
    listings = [shards.names(), shards.names() - {gone}]
    shards.files.remove(shards.path(gone))
    monkeypatch.setattr(Shards, "names", lambda self: listings.pop(0))
    assert texts(log) == {2: "a bird"}


def test_verify_names_a_damaged_shard_and_does_not_move_it(any_store: Store) -> None:
    corpus = any_store.corpus("birds")
    corpus.bind({"url": "somewhere"})
    CaptionsLog(corpus.captions, "m", "r").append([answer(1)])
    assert verify(any_store) == []
    [name] = corpus.captions.names()
    damage(corpus.captions, name)
    [found] = verify(any_store)
    assert name in found
    assert corpus.captions.names() == {name}


# Asking failed descriptions again


def test_a_retry_keeps_good_answers_of_the_first_request_and_replaces_its_failures(shards: Shards) -> None:
    first, again = CaptionsLog(shards, "m", "r0"), CaptionsLog(shards, "m", "r1", before=("r0",))
    failed = {**answer(2), "text": None, "status": FAILED}
    first.append([answer(1, "one"), failed])
    assert texts(again) == {1: "one"}
    again.append([answer(2, "two", at=5)])
    assert texts(again) == {1: "one", 2: "two"}
    assert first.rows()[failed["content_hash"]]["status"] == FAILED, "the first request must keep its own rows"


def test_a_failure_of_a_retry_is_kept_until_the_next_retry(shards: Shards) -> None:
    failed = {**answer(2), "text": None, "status": FAILED}
    for request, before in (("r0", ()), ("r1", ("r0",))):
        CaptionsLog(shards, "m", request, before).append([failed])
    assert list(CaptionsLog(shards, "m", "r1", ("r0",)).rows()) == [failed["content_hash"]]
    assert CaptionsLog(shards, "m", "r2", ("r0", "r1")).rows() == {}


# Merging shards, and the sum of costs


def test_merging_parts_of_the_log_changes_no_row(any_store: Store) -> None:
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


def test_an_answer_that_was_written_several_times_counts_once_in_the_costs(shards: Shards, log: CaptionsLog) -> None:
    log.append([answer(1), answer(2)])
    log.append([answer(2, at=7), {**answer(3), "text": None, "status": FAILED}])
    free = {**answer(4), "requests": None, "prompt_tokens": None, "completion_tokens": None, "seconds": None}
    CaptionsLog(shards, "tagger", "r").append([free])
    merge(shards, sorted(shards.names()))
    assert spent(shards) == [
        {"model": "a model", "answers": 3, "failed": 1, "requests": 3, "prompt_tokens": 900, "completion_tokens": 60, "seconds_a_reply": 0.5},
        {"model": "tagger", "answers": 1, "failed": 0, "requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "seconds_a_reply": None},
    ]
