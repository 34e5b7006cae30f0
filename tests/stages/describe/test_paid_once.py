"""No description is asked, and so paid for, twice."""

import shutil
import threading
from pathlib import Path

import pytest

from gsec_core.captioners.base import Answer, Subject
from gsec_core.images.decode import content_hash
from gsec_core.stages import describe, prototypes
from gsec_core.stages.base import run_stage
from gsec_core.tables import FREE, REPRESENTATIVE_CAPTIONS_TABLE, REPRESENTATIVES_TABLE

from ..steps import run_stages
from .examples import BEFORE, IMAGES, Fake, Install, config_of, in_log, named, rows, run


def test_repeating_a_run_asks_for_no_description(place: Path, captioner: Fake) -> None:
    run(config_of(place))
    captioner.asked.clear()
    _, made = run(config_of(place))
    assert (captioner.asked, made) == ([], {})


def test_concurrent_requests_ask_about_every_image_once(place: Path, install: Install) -> None:
    together = threading.Barrier(4)
    captioner = install(Fake(concurrency=4, first=lambda number, subject: together.wait(60) and None))
    context, made = run(config_of(place))
    assert sorted(captioner.asked) == sorted(path.name for path in (place / "in").iterdir())
    assert made["asked"] == made["described"] == in_log(context) == IMAGES


def test_another_number_of_clusters_asks_for_no_description(place: Path, captioner: Fake) -> None:
    run(config_of(place, clusters=2))
    captioner.asked.clear()
    _, made = run(config_of(place, clusters=3))
    assert (captioner.asked, made) == ([], {}), "the whole table was there already"


def test_a_number_of_clusters_that_changes_the_prototypes_asks_for_new_representatives_only(place: Path, captioner: Fake) -> None:
    """Without a fixed number there are three micro-clusters per cluster."""
    run(config_of(place, clusters=2, count=None, representatives=1))
    before = set(captioner.asked)
    captioner.asked.clear()
    context, made = run(config_of(place, clusters=3, count=None, representatives=1))
    wanted = set(context.read(prototypes.STAGE, REPRESENTATIVES_TABLE)["uri"].to_pylist())
    assert (len(before), len(wanted)) == (6, 9)
    assert sorted(captioner.asked) == sorted(wanted - before)
    assert (made["asked"], made["known"]) == (len(wanted - before), len(wanted & before))
    assert made["known"] > 0, "or this test would prove nothing"


def test_another_prompt_asks_for_every_description_again(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    before, _ = run(config_of(place))
    monkeypatch.setattr(describe, "captioner_identity", lambda config: {"name": "fake", "prompt": "another"})
    after, made = run(config_of(place))
    assert before.run.id != after.run.id
    assert (made["asked"], made["known"], in_log(after)) == (IMAGES, 0, 2 * IMAGES)


def test_more_representatives_ask_for_the_new_ones_only(place: Path, captioner: Fake) -> None:
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


def test_redo_of_describe_asks_for_every_description_again(place: Path, captioner: Fake) -> None:
    before, _ = run(config_of(place))
    captioner.answer = lambda subject: Answer("better", None, (), FREE)
    after, made = run(config_of(place), redo=("describe",))
    assert made["asked"] == IMAGES
    assert {row["text"] for row in rows(after)} == {"better"}
    assert "better" not in {row["text"] for row in rows(before)}, "the earlier run must keep its own descriptions"


def test_redo_of_another_stage_asks_for_no_description(place: Path, captioner: Fake) -> None:
    run(config_of(place))
    _, made = run(config_of(place), redo=("prototypes",))
    assert (made["asked"], made["known"]) == (0, IMAGES)


def test_an_answer_that_another_run_wrote_first_is_used(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)

    def other_run(number: int, subject: Subject) -> None:
        first = {"content_hash": subject.content_hash, "written_at": "2020-01-01T00:00:00.000+00:00", "text": "first", "attributes": [], "status": FREE}
        describe.captions_log(context).append([first])

    captioner.first = other_run
    run_stage(context, describe.STAGE)
    assert {row["text"] for row in rows(context)} == {"first"}
