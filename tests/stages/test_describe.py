"""Descriptions: each is paid once, whatever ends a run early, and what cannot be had is said."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gsec_core import pipeline
from gsec_core.captioners.base import Answer, Subject
from gsec_core.config import PipelineConfig
from gsec_core.errors import BadShard, GsecError, Refused, Unreachable
from gsec_core.images import content_hash
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

    def __init__(self, concurrency: int = 1, first: Callable[[int, Subject], None] = lambda number, subject: None) -> None:
        self.concurrency = concurrency
        self.first = first
        self.answer = lambda subject: Answer(f"This image contains {subject.uri}.", subject.uri, ("small",), DESCRIBED)
        self.asked: list[str] = []

    def check(self) -> None:
        raise Refused("describe.url: nobody is there.")

    def describe(self, subject: Subject) -> Answer:
        self.asked.append(subject.uri)
        self.first(len(self.asked), subject)
        assert content_hash(subject.read()) == subject.content_hash
        return self.answer(subject)


Install = Callable[[Fake], Fake]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a captioner the one that every run asks."""

    def installed(captioner: Fake) -> Fake:
        monkeypatch.setattr(describe, "loaded_captioner", lambda config: captioner)
        monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "fake"})
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


def config_of(place: Path, *, count: int = 4, representatives: int = IMAGES, clusters: int = 2, **describe: object) -> PipelineConfig:
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


# Paid once


def test_other_clusters_ask_nothing(place: Path, captioner: Fake) -> None:
    run(config_of(place, clusters=2))
    captioner.asked.clear()
    _, made = run(config_of(place, clusters=3))
    assert (captioner.asked, made) == ([], {}), "the whole table was there"


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
        CaptionsLog(context.corpus.captions, "fake", describe._request(context)).append([first])

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


@pytest.mark.parametrize(
    "error", [Unreachable("lost"), Refused("the key is wrong"), RuntimeError("a fault"), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
def test_whatever_ends_it_early_the_answers_that_there_are_stay(place: Path, install: Install, error: BaseException) -> None:
    install(Fake(first=fail_at(6, error)))
    context = unfinished(config_of(place), type(error))
    assert in_log(context) in (5, 6), "the one that was under way may have ended well"
    captioner = install(Fake())
    made = run_stage(context, describe.STAGE)
    assert made["asked"] == len(captioner.asked) == IMAGES - made["known"]
    assert all(row["status"] == DESCRIBED for row in rows(context))


def lost_at_first(number: int, subject: Subject) -> None:
    """The first question finds the server lost; the others take their time."""
    if number == 1:
        raise Unreachable("lost")
    time.sleep(0.2)


def test_a_lost_server_is_not_asked_on(place: Path, install: Install) -> None:
    captioner = install(Fake(concurrency=3, first=lost_at_first))
    unfinished(config_of(place), Unreachable)
    assert len(captioner.asked) <= 4, "a thread may take up one more before it is told"


def test_requests_under_way_are_waited_for_and_kept(place: Path, install: Install) -> None:
    captioner = install(Fake(concurrency=3, first=lost_at_first))
    context = unfinished(config_of(place), Unreachable)
    assert in_log(context) == len(captioner.asked) - 1 > 0


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
    captioner.asked.clear()
    made = run_stage(context, describe.STAGE)
    assert commits == [3, 3]
    assert (made["known"], made["asked"], len(captioner.asked)) == (6, IMAGES - 6, IMAGES - 6)


def test_commits_have_as_many_rows_as_the_setting_says(place: Path, captioner: Fake) -> None:
    context, _ = run(config_of(place, commit_rows=5))
    captions = context.corpus.captions
    assert sorted(captions.read(name).num_rows for name in captions.names()) == [2, 5, 5]


def test_few_answers_are_committed_after_some_seconds(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place, commit_seconds=0.05), *BEFORE)

    def wait_for_a_commit(number: int, subject: Subject) -> None:
        until = time.monotonic() + 10
        while number == 3 and not context.corpus.captions.names():
            assert time.monotonic() < until
            time.sleep(0.01)

    captioner.first = wait_for_a_commit
    run_stage(context, describe.STAGE)


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
    message = rf"4 of {IMAGES} representatives.*8 failed.*most often: the model refuses.*describe.min_coverage = 0.5.*--redo describe"
    with pytest.raises(GsecError, match=message) as raised:
        run(config_of(place))
    assert raised.value.exit_code == 1
    _, made = run(config_of(place, min_coverage=0.3))
    assert (made["asked"], made["known"], made["failed"]) == (0, IMAGES, 8)


def test_no_description_at_all_is_never_enough(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "the model refuses")
    with pytest.raises(GsecError, match="at least one"):
        run(config_of(place, min_coverage=0))


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
