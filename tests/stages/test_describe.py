"""Descriptions: each is paid once, whatever ends a run early, and what cannot be had is said."""

import asyncio
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from gsec_core import pipeline
from gsec_core.captioners.base import Answer, Cost, Subject
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadShard, GsecError, Refused, Unreachable
from gsec_core.images.decode import content_hash
from gsec_core.stages import describe, encode, prototypes
from gsec_core.stages.base import Context, begin, missing, run_stage, work
from gsec_core.store.captions import CaptionsLog, Row
from gsec_core.tables import DESCRIBED, FAILED, FREE, MISSING, REPRESENTATIVE_CAPTIONS, REPRESENTATIVE_CAPTIONS_TABLE, REPRESENTATIVES_TABLE

from ..pictures import settings, write_pictures
from .steps import run_stages

IMAGES = 12
"""All of them are representatives."""

BEFORE = (encode.STAGE, prototypes.STAGE)


class Fake:
    """A captioner that remembers what it was asked; ``first`` is called before every answer, with the number of the question."""

    model = "fake"
    form = "made up"

    def __init__(self, concurrency: int = 1, first: Callable[[int, Subject], None] = lambda number, subject: None) -> None:
        self.concurrency = concurrency
        self.first = first
        self.answer = lambda subject: Answer(f"This image contains {subject.uri}.", subject.uri, ("small",), DESCRIBED)
        self.asked: list[str] = []
        self._counting = threading.Lock()

    def check(self) -> None:
        raise Refused("describe.url: nobody is there.")

    async def describe(self, subject: Subject) -> Answer:
        return await asyncio.to_thread(self._describe, subject)

    def _describe(self, subject: Subject) -> Answer:
        with self._counting:
            self.asked.append(subject.uri)
            number = len(self.asked)
        self.first(number, subject)
        assert content_hash(subject.read()) == subject.content_hash
        return self.answer(subject)


Install = Callable[[Fake], Fake]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a captioner the one that every run asks."""

    def installed(captioner: Fake) -> Fake:
        monkeypatch.setattr(describe, "loaded_captioner", lambda config: captioner)
        monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "fake"})
        monkeypatch.setattr(describe, "captioner_model", lambda config: "fake")
        return captioner

    return installed


@pytest.fixture
def captioner(install: Install) -> Fake:
    return install(Fake())


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, and a store in which it is encoded."""
    directory = tmp_path_factory.mktemp("encoded")
    run_stages(settings(write_pictures(directory / "in", range(IMAGES)), directory / "store", corpus="discs"), encode.STAGE)
    return directory


@pytest.fixture
def place(encoded: Path, tmp_path: Path) -> Path:
    """A store of one's own, and its source. Nothing is encoded again, as the source's files keep their times."""
    shutil.copytree(encoded / "store", tmp_path / "store")
    shutil.copytree(encoded / "in", tmp_path / "in")
    (tmp_path / "store" / "discs" / "corpus.json").unlink()  # the source lies elsewhere now
    return tmp_path


def config_of(place: Path, *, count: int | None = 4, representatives: int = IMAGES, clusters: int = 2, **describe: object) -> PipelineConfig:
    micro_clusters = {"count": count, "representatives": representatives}
    return settings(place / "in", place / "store", corpus="discs", clusters=clusters, prototypes=micro_clusters, describe=describe)


def run(config: PipelineConfig, redo: tuple[str, ...] = ()) -> tuple[Context, dict[str, float]]:
    """A run up to its descriptions: its context, and what describe made."""
    started, _ = pipeline.request(config, redo)
    context = Context.of(started, config)
    for stage in BEFORE:
        run_stage(context, stage)
    return context, run_stage(context, describe.STAGE)


def rows(context: Context) -> list[Row]:
    found: list[Row] = context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).read("all").to_pylist()
    return found


def in_log(context: Context) -> int:
    return sum(table.num_rows for table in context.corpus.captions.read_all(context.corpus.captions.names()))


def named(uri: str) -> str:
    return f"This image contains {uri}."


# What a run has in the end


def test_every_representative_has_a_row_in_their_order(place: Path, captioner: Fake) -> None:
    context, _ = run(config_of(place, representatives=2))
    table = context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).read("all")
    assert table.schema.equals(REPRESENTATIVE_CAPTIONS)
    representatives = context.shards(prototypes.STAGE, REPRESENTATIVES_TABLE).read("all")
    for column in ("prototype", "band", "image_id", "content_hash"):
        assert table[column] == representatives[column]
    assert table["text"].to_pylist() == [named(uri) for uri in representatives["uri"].to_pylist()]
    assert table["object"].to_pylist() == representatives["uri"].to_pylist()
    assert set(map(tuple, table["attributes"].to_pylist())) == {("small",)}
    assert set(table["model"].to_pylist()) == {"fake"}


def test_facts_say_what_was_asked_and_what_came_of_it(place: Path, captioner: Fake) -> None:
    statuses = iter([FREE, FAILED, FAILED])
    captioner.answer = lambda subject: Answer("some text", None, (), next(statuses, DESCRIBED))
    context, made = run(config_of(place))
    found = {"representatives": IMAGES, "asked": IMAGES, "known": 0, "described": IMAGES - 3, "free": 1, "failed": 2, "missing": 0}
    assert {**found, "shards": 1} == made
    facts = context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).facts("all")
    assert {key: facts[key] for key in found} == found


def test_progress_reaches_the_units_that_were_planned(place: Path, install: Install) -> None:
    install(Fake(first=fail_at(5)))
    context = unfinished(config_of(place), Unreachable)
    install(Fake())
    [step] = describe.STAGE.steps
    told: list[int] = []
    work(context, describe.STAGE, step, ["all"], told.append)
    assert sum(told) == step.units(context, ["all"]) == IMAGES


def test_with_nothing_installed_but_the_package_the_tagger_answers(place: Path) -> None:
    context, made = run(config_of(place, representatives=1))
    assert made["described"] == made["asked"] == made["representatives"] == 4
    assert {row["model"] for row in rows(context)} == {"tagger"}
    assert all(row["text"] and row["object"] and row["attributes"] for row in rows(context))


def test_the_captioner_is_loaded_once_a_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(describe, "load_captioner", lambda config, **kwargs: loaded.append(kwargs) or Fake())
    monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "loaded once"})
    assert describe.loaded_captioner(config_of(place)) is describe.loaded_captioner(config_of(place, count=3))
    assert loaded == [{"device": "auto", "threads": 1}]


def test_whether_anybody_answers_can_be_known_before(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place))
    with pytest.raises(Refused, match="nobody is there"):
        describe.check(context)


def test_a_captioner_that_is_needed_is_checked_before_anything_costly(place: Path, captioner: Fake) -> None:
    with pytest.raises(Refused, match="nobody is there"):
        pipeline.check_servers(run_stages(config_of(place)))
    with pytest.raises(Refused, match="nobody is there"):
        pipeline.check_servers(run_stages(config_of(place), *BEFORE))


@pytest.mark.parametrize("clusters", [2, 3], ids=["the same run", "a run with other clusters"])
def test_what_is_described_does_not_need_its_captioner(place: Path, captioner: Fake, clusters: int) -> None:
    run(config_of(place))
    # A run with other clusters has no baseline yet, and its descriptions do not wait for one.
    pipeline.check_servers(run_stages(config_of(place, clusters=clusters)))


# Paid once


def test_the_same_run_again_asks_nothing(place: Path, captioner: Fake) -> None:
    run(config_of(place))
    captioner.asked.clear()
    _, made = run(config_of(place))
    assert (captioner.asked, made) == ([], {})


def test_several_at_once_ask_about_every_image_once(place: Path, install: Install) -> None:
    together = threading.Barrier(4)
    captioner = install(Fake(concurrency=4, first=lambda number, subject: together.wait(10) and None))
    context, made = run(config_of(place))
    assert sorted(captioner.asked) == sorted(path.name for path in (place / "in").iterdir())
    assert made["asked"] == made["described"] == in_log(context) == IMAGES


def test_other_clusters_ask_nothing(place: Path, captioner: Fake) -> None:
    run(config_of(place, clusters=2))
    captioner.asked.clear()
    _, made = run(config_of(place, clusters=3))
    assert (captioner.asked, made) == ([], {}), "the whole table was there"


def test_other_clusters_with_other_prototypes_ask_for_new_representatives_only(place: Path, captioner: Fake) -> None:
    """Without a fixed number there are three micro-clusters a cluster."""
    run(config_of(place, clusters=2, count=None, representatives=1))
    before = set(captioner.asked)
    captioner.asked.clear()
    context, made = run(config_of(place, clusters=3, count=None, representatives=1))
    wanted = set(context.shards(prototypes.STAGE, REPRESENTATIVES_TABLE).read("all")["uri"].to_pylist())
    assert (len(before), len(wanted)) == (6, 9)
    assert sorted(captioner.asked) == sorted(wanted - before)
    assert (made["asked"], made["known"]) == (len(wanted - before), len(wanted & before))
    assert made["known"] > 0, "or this would show nothing"


def test_another_prompt_asks_anew(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = run(config_of(place))
    monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "fake", "prompt": "another"})
    after, made = run(config_of(place))
    assert before.run.id != after.run.id
    assert (made["asked"], made["known"], in_log(after)) == (IMAGES, 0, 2 * IMAGES)


def test_other_prototypes_ask_for_new_representatives_only(place: Path, captioner: Fake) -> None:
    before, _ = run(config_of(place, representatives=1))
    asked = set(captioner.asked)
    captioner.asked.clear()
    after, made = run(config_of(place))
    assert (made["asked"], made["known"]) == (IMAGES - len(asked), len(asked))
    assert asked.isdisjoint(captioner.asked)
    assert len(rows(before)) < len(rows(after))


def test_a_lost_table_is_made_again_from_the_log(place: Path, captioner: Fake) -> None:
    context, _ = run(config_of(place))
    before = rows(context)
    context.run.files.remove(context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).path("all"))
    captioner.asked.clear()
    _, made = run(config_of(place))
    assert (captioner.asked, made["known"]) == ([], IMAGES)
    assert rows(context) == before


def test_two_images_with_the_same_bytes_are_asked_about_once(place: Path, captioner: Fake) -> None:
    shutil.copy(place / "in" / "003.jpg", place / "in" / "twin.jpg")
    context, made = run(config_of(place))
    assert len(captioner.asked) == made["asked"] == IMAGES
    assert made["representatives"] == len(rows(context)) == IMAGES + 1
    [text] = {row["text"] for row in rows(context) if row["content_hash"] == content_hash((place / "in" / "twin.jpg").read_bytes())}
    assert text in (named("003.jpg"), named("twin.jpg"))


def test_redo_asks_anew(place: Path, captioner: Fake) -> None:
    before, _ = run(config_of(place))
    captioner.answer = lambda subject: Answer("better", None, (), FREE)
    after, made = run(config_of(place), redo=("describe",))
    assert made["asked"] == IMAGES
    assert {row["text"] for row in rows(after)} == {"better"}
    assert "better" not in {row["text"] for row in rows(before)}, "the run before keeps its own"


def test_redo_of_another_stage_asks_nothing(place: Path, captioner: Fake) -> None:
    run(config_of(place))
    _, made = run(config_of(place), redo=("prototypes",))
    assert (made["asked"], made["known"]) == (0, IMAGES)


def test_an_answer_that_another_run_wrote_first_is_the_one_that_counts(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)

    def other_run(number: int, subject: Subject) -> None:
        first = {"content_hash": subject.content_hash, "written_at": "2020-01-01T00:00:00.000+00:00", "text": "first", "attributes": [], "status": FREE}
        describe.captions_log(context).append([first])

    captioner.first = other_run
    run_stage(context, describe.STAGE)
    assert {row["text"] for row in rows(context)} == {"first"}


# Ended early


def fail_at(number: int, error: BaseException | None = None) -> Callable[[int, Subject], None]:
    def first(asked: int, subject: Subject) -> None:
        if asked == number:
            raise error or Unreachable("describe.url: the server does not answer.")

    return first


def unfinished(config: PipelineConfig, error: type[BaseException]) -> Context:
    context = run_stages(config, *BEFORE)
    with pytest.raises(error):
        run_stage(context, describe.STAGE)
    assert context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).names() == set()
    return context


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


# Images that cannot be read, descriptions that nobody gives


def test_an_image_that_is_gone_has_a_row_here_and_none_in_the_log(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)
    (place / "in" / "003.jpg").unlink()
    made = run_stage(context, describe.STAGE)
    assert (made["asked"], made["missing"], in_log(context)) == (IMAGES - 1, 1, IMAGES - 1)
    [row] = [row for row in rows(context) if row["status"] == MISSING]
    assert (row["text"], row["object"], row["attributes"], row["model"]) == (None, None, [], "fake")


def test_an_image_that_changed_since_it_was_encoded_is_missing(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)
    shutil.copy(place / "in" / "004.jpg", place / "in" / "003.jpg")
    assert run_stage(context, describe.STAGE)["missing"] == 1
    changed = {row["content_hash"] for row in rows(context) if row["status"] == MISSING}
    assert len(changed) == 1
    assert not changed & {key for table in context.corpus.captions.read_all(context.corpus.captions.names()) for key in table["content_hash"].to_pylist()}


def test_an_image_that_is_back_is_asked_about_by_the_next_run_that_wants_it(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)
    os.rename(place / "in" / "003.jpg", place / "away.jpg")
    run_stage(context, describe.STAGE)
    os.rename(place / "away.jpg", place / "in" / "003.jpg")
    captioner.asked.clear()
    assert run(config_of(place))[1] == {}, "this run has its table"
    _, made = run(config_of(place), redo=("prototypes",))
    assert (captioner.asked, made["described"], made["missing"]) == (["003.jpg"], IMAGES, 0)


def test_an_image_that_is_gone_is_read_from_its_twin(place: Path, captioner: Fake) -> None:
    shutil.copy(place / "in" / "003.jpg", place / "in" / "twin.jpg")
    context = run_stages(config_of(place), *BEFORE)
    (place / "in" / "003.jpg").unlink()
    made = run_stage(context, describe.STAGE)
    assert (made["asked"], made["missing"]) == (IMAGES, 0)


def test_an_unmounted_source_makes_no_image_missing(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)
    for path in (place / "in").iterdir():
        path.unlink()
    begin(context, describe.STAGE)
    [step] = describe.STAGE.steps
    with pytest.raises(Unreachable):
        work(context, describe.STAGE, step, ["all"])
    assert missing(context, describe.STAGE, step) == ["all"]


def test_too_few_descriptions_stop_the_run_and_are_kept(place: Path, captioner: Fake) -> None:
    refused = Answer(None, None, (), FAILED, "the model refuses")
    captioner.answer = lambda subject: Answer("text", None, (), FREE) if subject.uri < "004.jpg" else refused
    message = (
        rf"of 4 of {IMAGES} micro-clusters.*describe.min_coverage = 0.5 must; of {IMAGES} representatives 8 failed"
        r".*most often: the model refuses.*--retry-failed"
    )
    with pytest.raises(GsecError, match=message) as raised:
        run(config_of(place, count=IMAGES))
    assert raised.value.exit_code == 1
    _, made = run(config_of(place, count=IMAGES, min_coverage=0.3))
    assert (made["asked"], made["known"], made["failed"]) == (0, IMAGES, 8)


def test_a_micro_cluster_is_covered_by_one_description(place: Path, captioner: Fake) -> None:
    config = config_of(place, min_coverage=1)
    context = run_stages(config, *BEFORE)
    by_prototype = {row["prototype"]: row["uri"] for row in context.shards(prototypes.STAGE, REPRESENTATIVES_TABLE).read("all").to_pylist()}
    assert len(by_prototype) < IMAGES, "or this would show nothing"
    refused = Answer(None, None, (), FAILED, "the model refuses")
    captioner.answer = lambda subject: Answer("text", None, (), FREE) if subject.uri in by_prototype.values() else refused
    assert run_stage(context, describe.STAGE)["free"] == len(by_prototype)


def test_what_failed_is_asked_again_when_told_so_and_nothing_else(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "busy") if subject.uri < "004.jpg" else Answer("text", None, (), FREE)
    before, made = run(config_of(place))
    assert made["failed"] == 4
    captioner.asked.clear()
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "still") if subject.uri == "000.jpg" else Answer("better", None, (), FREE)
    after, made = run(config_of(place), redo=(describe.RETRY,))
    assert sorted(captioner.asked) == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
    assert (made["asked"], made["known"], made["failed"]) == (4, IMAGES - 4, 1)
    assert Counter(row["text"] for row in rows(after)) == {"text": IMAGES - 4, "better": 3, None: 1}
    assert Counter(row["text"] for row in rows(before)) == {"text": IMAGES - 4, None: 4}, "the run before keeps its own"
    captioner.asked.clear()
    assert run(config_of(place))[0].run.id == after.run.id, "from now on that is the run"
    captioner.answer = lambda subject: Answer("at last", None, (), FREE)
    again, made = run(config_of(place), redo=(describe.RETRY,))
    assert (captioner.asked, made["failed"]) == (["000.jpg"], 0)
    assert run(config_of(place), redo=(describe.RETRY,))[0].run.id == again.run.id, "nothing failed, so there is nothing to ask again"


def test_what_failed_is_asked_again_though_there_are_new_images_too(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "busy") if subject.uri == "003.jpg" else Answer("text", None, (), FREE)
    run(config_of(place))
    write_pictures(place / "in", [99])
    captioner.asked.clear()
    captioner.answer = lambda subject: Answer("better", None, (), FREE)
    run(config_of(place), redo=(describe.RETRY,))
    assert sorted(captioner.asked) == ["003.jpg", "099.jpg"]


def test_another_question_keeps_its_own_failures(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "busy") if subject.uri == "003.jpg" else Answer("text", None, (), FREE)
    ask = {"one": {"name": "fake"}, "other": {"name": "fake", "prompt": "another"}}
    found = {}
    for question in ("one", "other", "retried"):
        monkeypatch.setattr(describe, "captioner_identity", lambda config, question=question: ask.get(question, ask["one"]))
        context, _ = run(config_of(place), redo=(describe.RETRY,) if question == "retried" else ())
        found[question] = describe.STAGE.fingerprint(context)
    monkeypatch.setattr(describe, "captioner_identity", lambda config: ask["other"])
    captioner.asked.clear()
    context, _ = run(config_of(place))
    assert describe.STAGE.fingerprint(context) == found["other"]
    assert captioner.asked == []
    assert len(set(found.values())) == 3


def test_what_is_left_to_ask_is_told_before_it_is_asked(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place, captioner="openai:fake"), *BEFORE)
    first = describe.plan(context)
    assert (first["calls"], first["completion_tokens"]) == (IMAGES, IMAGES * 96)
    assert "rule of thumb" in first["basis"]
    captioner.answer = lambda subject: Answer("text", None, (), FREE, cost=Cost(1, 300, 20, 0.5))
    captioner.first = fail_at(4)
    with pytest.raises(Unreachable):
        run_stage(context, describe.STAGE)
    left = IMAGES - in_log(context)
    assert describe.plan(context) == {
        "calls": left,
        "prompt_tokens": left * 300,
        "completion_tokens": left * 20,
        "basis": f"what {IMAGES - left} descriptions took so far",
    }
    captioner.first = lambda number, subject: None
    made = run_stage(context, describe.STAGE)
    assert {key: made[key] for key in ("requests", "prompt_tokens", "completion_tokens", "reply_seconds")} == {
        "requests": left,
        "prompt_tokens": left * 300,
        "completion_tokens": left * 20,
        "reply_seconds": left / 2,
    }
    assert describe.told(context)["prompt_tokens"] == IMAGES * 300
    assert describe.plan(context)["calls"] == 0


def test_nothing_is_known_to_be_left_before_the_images_are_chosen(place: Path, captioner: Fake) -> None:
    with pytest.raises(Refused, match="Run stage prototypes first"):
        describe.plan(run_stages(config_of(place), encode.STAGE))


def test_no_description_at_all_is_never_enough(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "the model refuses")
    with pytest.raises(GsecError, match="at least one"):
        run(config_of(place, min_coverage=0))


def test_what_failed_for_good_is_not_asked_again(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "empty") if subject.uri == "003.jpg" else Answer("text", None, (), FREE)
    run(config_of(place))
    captioner.asked.clear()
    _, made = run(config_of(place), redo=("prototypes",))
    assert (captioner.asked, made["known"], made["failed"]) == ([], IMAGES, 1)


def test_descriptions_of_a_table_that_changed_are_looked_up_anew(place: Path) -> None:
    file = place / "descriptions.csv"
    config = config_of(place, captioner=f"table:{file}:text")
    for text in ("a disc", "a large disc"):
        file.write_text("uri,text\n" + "".join(f"{seed:03d}.jpg,{text} {seed}\n" for seed in range(IMAGES - 1)))
        context, made = run(config)
        uris = context.shards(prototypes.STAGE, REPRESENTATIVES_TABLE).read("all")["uri"].to_pylist()
        expected = [f"{text} {int(uri[:3])}" if uri != f"{IMAGES - 1:03d}.jpg" else None for uri in uris]
        assert [row["text"] for row in rows(context)] == expected
        assert (made["asked"], made["free"], made["failed"]) == (IMAGES, IMAGES - 1, 1)


# Damage


@pytest.fixture
def damaged(place: Path, captioner: Fake) -> Context:
    """A run whose table and a part of the log are damaged; the other part has three rows."""
    context, _ = run(config_of(place, commit_rows=IMAGES - 3))
    log, table = context.corpus.captions, context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE)
    [bad] = [name for name in log.names() if log.read(name).num_rows > 3]
    for path in (log.location(bad), table.location("all")):
        Path(path).write_bytes(b"damaged")
    assert table.set_aside("all")
    captioner.asked.clear()
    return context


def test_a_damaged_log_stops_before_anything_is_paid_again(damaged: Context, captioner: Fake) -> None:
    with pytest.raises(GsecError, match=r"describe\.accept_loss=true") as raised:
        run_stage(damaged, describe.STAGE)
    assert not isinstance(raised.value, BadShard)
    assert captioner.asked == []


def test_told_to_accept_the_loss_it_asks_again_for_what_was_lost(damaged: Context, place: Path, captioner: Fake) -> None:
    context = Context.of(damaged.run, config_of(place, accept_loss=True))
    made = run_stage(context, describe.STAGE)
    assert (made["known"], made["asked"]) == (3, IMAGES - 3)
    assert [file for file in os.listdir(os.path.dirname(context.corpus.captions.location("x"))) if file.startswith("_bad-")]
