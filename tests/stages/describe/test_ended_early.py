"""Stage describe is ended early in several ways: the answers received so far are kept."""

import threading
from pathlib import Path

import pytest

from gsec_core.captioners.base import Subject
from gsec_core.errors import Refused, Unreachable
from gsec_core.stages import describe
from gsec_core.stages.base import begin, run_stage, work
from gsec_core.store.captions import CaptionsLog, Row
from gsec_core.tables import DESCRIBED

from ..steps import run_stages
from .examples import BEFORE, IMAGES, Fake, Install, config_of, fail_at, in_log, rows, run, unfinished


@pytest.mark.parametrize("error", [Unreachable("lost"), Refused("the key is wrong"), RuntimeError("a fault")], ids=lambda e: type(e).__name__)
def test_answers_received_before_an_error_of_the_captioner_are_kept(place: Path, install: Install, error: BaseException) -> None:
    install(Fake(first=fail_at(6, error)))
    context = unfinished(config_of(place), type(error))
    assert in_log(context) in (5, 6), "an answer that was under way may have arrived"
    captioner = install(Fake())
    made = run_stage(context, describe.STAGE)
    assert made["asked"] == len(captioner.asked) == IMAGES - made["known"]
    assert all(row["status"] == DESCRIBED for row in rows(context))


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set at the first commit, when no more requests are sent and those under way are not awaited yet."""
    append, event = CaptionsLog.append, threading.Event()

    def commit(self: CaptionsLog, rows: list[Row]) -> None:
        append(self, rows)
        event.set()

    monkeypatch.setattr(CaptionsLog, "append", commit)
    return event


def test_no_more_requests_are_sent_to_a_server_that_was_lost(place: Path, install: Install, given_up: threading.Event) -> None:
    def first(number: int, subject: Subject) -> None:
        if number == 1:
            raise Unreachable("lost")
        assert given_up.wait(60)

    captioner = install(Fake(concurrency=3, first=first))
    unfinished(config_of(place), Unreachable)
    assert len(captioner.asked) <= 4, "a thread may begin one more request before it is stopped"


def test_answers_to_requests_under_way_are_awaited_and_kept(place: Path, install: Install, given_up: threading.Event) -> None:
    together = threading.Barrier(4)

    def first(number: int, subject: Subject) -> None:
        if number <= 4:
            together.wait(60)
        if number >= 4:
            raise Unreachable("lost")
        assert given_up.wait(60)

    asked = install(Fake(concurrency=4, first=first)).asked
    context = unfinished(config_of(place), Unreachable)
    assert in_log(context) == 3
    captioner = install(Fake(concurrency=4))
    made = run_stage(context, describe.STAGE)
    assert (made["known"], made["asked"]) == (3, IMAGES - 3)
    assert set(captioner.asked).isdisjoint(asked[:3])


def test_no_answer_is_lost_if_the_progress_callback_interrupts_the_stage(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)
    begin(context, describe.STAGE)
    told: list[int] = []

    def interrupt(by: int) -> None:
        told.append(by)
        if sum(told) >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(context, describe.STAGE, describe.STAGE.steps[0], ["all"], interrupt)
    assert 3 <= in_log(context) == len(captioner.asked) < IMAGES


def test_after_a_kill_only_uncommitted_descriptions_are_asked_again(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    append = CaptionsLog.append

    def killed_after_two(self: CaptionsLog, rows: list[Row]) -> None:
        if len(commits) == 2:
            raise KeyboardInterrupt  # also at the last attempt to save, as if it had never been made
        commits.append(len(rows))
        append(self, rows)

    monkeypatch.setattr(CaptionsLog, "append", killed_after_two)
    context = unfinished(config_of(place, commit_rows=3), KeyboardInterrupt)
    monkeypatch.undo()
    monkeypatch.setattr(describe, "loaded_captioner", lambda config: captioner)
    monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "fake"})
    monkeypatch.setattr(describe, "captioner_model", lambda config: "fake")
    captioner.asked.clear()
    made = run_stage(context, describe.STAGE)
    assert commits == [3, 3]
    assert (made["known"], made["asked"], len(captioner.asked)) == (6, IMAGES - 6, IMAGES - 6)


def test_commits_have_as_many_rows_as_the_setting_says(place: Path, captioner: Fake) -> None:
    context, _ = run(config_of(place, commit_rows=5))
    captions = context.corpus.captions
    assert sorted(captions.read(name).num_rows for name in captions.names()) == [2, 5, 5]


def test_answers_are_committed_after_commit_seconds_even_if_they_are_few(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    append, committed, waited = CaptionsLog.append, threading.Event(), []

    def commit(self: CaptionsLog, rows: list[Row]) -> None:
        append(self, rows)
        if rows:
            committed.set()

    def first(number: int, subject: Subject) -> None:
        if number == 3:
            waited.append(committed.wait(60))

    monkeypatch.setattr(CaptionsLog, "append", commit)
    captioner.first = first
    run(config_of(place, commit_seconds=0.05))
    assert waited == [True]
