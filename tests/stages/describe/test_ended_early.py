"""Whatever ends a run early, the answers that there are stay."""

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
def test_whatever_ends_it_early_the_answers_that_there_are_stay(place: Path, install: Install, error: BaseException) -> None:
    install(Fake(first=fail_at(6, error)))
    context = unfinished(config_of(place), type(error))
    assert in_log(context) in (5, 6), "the one that was under way may have ended well"
    captioner = install(Fake())
    made = run_stage(context, describe.STAGE)
    assert made["asked"] == len(captioner.asked) == IMAGES - made["known"]
    assert all(row["status"] == DESCRIBED for row in rows(context))


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set at the first commit: here that is when no more is asked, and what is under way is not waited for yet."""
    append, event = CaptionsLog.append, threading.Event()

    def commit(self: CaptionsLog, rows: list[Row]) -> None:
        append(self, rows)
        event.set()

    monkeypatch.setattr(CaptionsLog, "append", commit)
    return event


def test_a_lost_server_is_not_asked_on(place: Path, install: Install, given_up: threading.Event) -> None:
    def first(number: int, subject: Subject) -> None:
        if number == 1:
            raise Unreachable("lost")
        assert given_up.wait(10)

    captioner = install(Fake(concurrency=3, first=first))
    unfinished(config_of(place), Unreachable)
    assert len(captioner.asked) <= 4, "a thread may take up one more before it is told"


def test_requests_under_way_are_waited_for_and_kept(place: Path, install: Install, given_up: threading.Event) -> None:
    together = threading.Barrier(4)

    def first(number: int, subject: Subject) -> None:
        if number <= 4:
            together.wait(10)
        if number >= 4:
            raise Unreachable("lost")
        assert given_up.wait(10)

    asked = install(Fake(concurrency=4, first=first)).asked
    context = unfinished(config_of(place), Unreachable)
    assert in_log(context) == 3
    captioner = install(Fake(concurrency=4))
    made = run_stage(context, describe.STAGE)
    assert (made["known"], made["asked"]) == (3, IMAGES - 3)
    assert set(captioner.asked).isdisjoint(asked[:3])


def test_whoever_watches_may_end_it_and_no_answer_is_lost(place: Path, captioner: Fake) -> None:
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


def test_killed_between_commits_only_what_was_not_committed_is_asked_again(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    append = CaptionsLog.append

    def killed_after_two(self: CaptionsLog, rows: list[Row]) -> None:
        if len(commits) == 2:
            raise KeyboardInterrupt  # and again at the last attempt to save anything, as if there was none
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


def test_few_answers_are_committed_after_some_seconds(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    append, committed, waited = CaptionsLog.append, threading.Event(), []

    def commit(self: CaptionsLog, rows: list[Row]) -> None:
        append(self, rows)
        if rows:
            committed.set()

    def first(number: int, subject: Subject) -> None:
        if number == 3:
            waited.append(committed.wait(10))

    monkeypatch.setattr(CaptionsLog, "append", commit)
    captioner.first = first
    run(config_of(place, commit_seconds=0.05))
    assert waited == [True]
