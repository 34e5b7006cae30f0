"""Images that cannot be read, descriptions that fail, and damaged shards of descriptions."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from gsec_core.captioners.base import Answer, Cost
from gsec_core.errors import BadShard, GsecError, Refused, Unreachable
from gsec_core.results import finishing
from gsec_core.stages import describe, encode, prototypes
from gsec_core.stages.base import Context, begin, missing, run_stage, work
from gsec_core.tables import FAILED, FREE, MISSING, REPRESENTATIVE_CAPTIONS_TABLE, REPRESENTATIVES_TABLE

from ...pictures import cluster, write_pictures
from ..steps import run_stages
from .examples import BEFORE, IMAGES, Fake, config_of, fail_at, in_log, rows, run


def test_a_missing_image_has_a_row_in_the_run_but_none_in_the_log(place: Path, captioner: Fake) -> None:
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


def test_an_image_that_returned_is_described_by_the_next_run(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)
    os.rename(place / "in" / "003.jpg", place / "away.jpg")
    run_stage(context, describe.STAGE)
    os.rename(place / "away.jpg", place / "in" / "003.jpg")
    captioner.asked.clear()
    assert run(config_of(place))[1] == {}, "the finished run keeps its table"
    _, made = run(config_of(place), redo=("prototypes",))
    assert (captioner.asked, made["described"], made["missing"]) == (["003.jpg"], IMAGES, 0)


def test_a_missing_image_is_read_from_a_copy_with_the_same_bytes(place: Path, captioner: Fake) -> None:
    shutil.copy(place / "in" / "003.jpg", place / "in" / "twin.jpg")
    context = run_stages(config_of(place), *BEFORE)
    (place / "in" / "003.jpg").unlink()
    made = run_stage(context, describe.STAGE)
    assert (made["asked"], made["missing"]) == (IMAGES, 0)


def test_an_unmounted_source_is_an_error_and_no_image_is_recorded_as_missing(place: Path, captioner: Fake) -> None:
    context = run_stages(config_of(place), *BEFORE)
    for path in (place / "in").iterdir():
        path.unlink()
    begin(context, describe.STAGE)
    [step] = describe.STAGE.steps
    with pytest.raises(Unreachable):
        work(context, describe.STAGE, step, ["all"])
    assert missing(context, describe.STAGE, step) == ["all"]


def test_too_few_descriptions_stop_the_run_but_they_are_kept(place: Path, captioner: Fake) -> None:
    refused = Answer(None, None, (), FAILED, "the model refuses")
    captioner.answer = lambda subject: Answer("text", None, (), FREE) if subject.uri < "004.jpg" else refused
    message = (
        rf"only 4 of {IMAGES} micro-clusters.*describe.min_coverage = 0.5. Of {IMAGES} representatives 8 failed"
        r".*most often: the model refuses.*--retry-failed"
    )
    with pytest.raises(GsecError, match=message) as raised:
        run(config_of(place, count=IMAGES))
    assert raised.value.exit_code == 1
    _, made = run(config_of(place, count=IMAGES, min_coverage=0.3))
    assert (made["asked"], made["known"], made["failed"]) == (0, IMAGES, 8)


def test_one_description_is_enough_to_cover_a_micro_cluster(place: Path, captioner: Fake) -> None:
    config = config_of(place, min_coverage=1)
    context = run_stages(config, *BEFORE)
    by_prototype = {row["prototype"]: row["uri"] for row in context.read(prototypes.STAGE, REPRESENTATIVES_TABLE).to_pylist()}
    assert len(by_prototype) < IMAGES, "or this test would prove nothing"
    refused = Answer(None, None, (), FAILED, "the model refuses")
    captioner.answer = lambda subject: Answer("text", None, (), FREE) if subject.uri in by_prototype.values() else refused
    assert run_stage(context, describe.STAGE)["free"] == len(by_prototype)


def test_a_retry_asks_only_the_failed_descriptions_again(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "busy") if subject.uri < "004.jpg" else Answer("text", None, (), FREE)
    before, made = run(config_of(place))
    assert made["failed"] == 4
    captioner.asked.clear()
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "still") if subject.uri == "000.jpg" else Answer("better", None, (), FREE)
    after, made = run(config_of(place), redo=(describe.RETRY,))
    assert sorted(captioner.asked) == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
    assert (made["asked"], made["known"], made["failed"]) == (4, IMAGES - 4, 1)
    assert Counter(row["text"] for row in rows(after)) == {"text": IMAGES - 4, "better": 3, None: 1}
    assert Counter(row["text"] for row in rows(before)) == {"text": IMAGES - 4, None: 4}, "the earlier run must keep its own descriptions"
    captioner.asked.clear()
    assert run(config_of(place))[0].run.id == after.run.id, "a run without retry must take the retried run"
    captioner.answer = lambda subject: Answer("at last", None, (), FREE)
    again, made = run(config_of(place), redo=(describe.RETRY,))
    assert (captioner.asked, made["failed"]) == (["000.jpg"], 0)
    assert run(config_of(place), redo=(describe.RETRY,))[0].run.id == again.run.id, "nothing failed, so there is nothing to ask again"


def test_a_retry_asks_failed_descriptions_again_even_if_there_are_new_images(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "busy") if subject.uri == "003.jpg" else Answer("text", None, (), FREE)
    run(config_of(place))
    write_pictures(place / "in", [99])
    captioner.asked.clear()
    captioner.answer = lambda subject: Answer("better", None, (), FREE)
    run(config_of(place), redo=(describe.RETRY,))
    assert sorted(captioner.asked) == ["003.jpg", "099.jpg"]


def test_a_retry_asks_failed_descriptions_again_even_if_the_published_model_fits(place: Path, captioner: Fake) -> None:
    config = config_of(place)
    config = config.model_copy(update={"train": config.train.model_copy(update={"refit": "auto"})})
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "busy") if subject.uri == "003.jpg" else Answer("text", None, (), FREE)
    assert finishing.finish(cluster(config)[0])["published"]
    captioner.asked.clear()
    captioner.answer = lambda subject: Answer("better", None, (), FREE)
    context, _, _ = cluster(config, (describe.RETRY,))
    assert captioner.asked == ["003.jpg"]
    assert context.decision["why"] == "it was requested: --retry-failed"


def test_a_retry_for_one_question_does_not_affect_the_run_of_another_question(place: Path, captioner: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_plan_gives_the_remaining_requests_and_their_expected_tokens(place: Path, captioner: Fake) -> None:
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


def test_a_plan_is_refused_before_the_representatives_are_chosen(place: Path, captioner: Fake) -> None:
    with pytest.raises(Refused, match="Run stage prototypes first"):
        describe.plan(run_stages(config_of(place), encode.STAGE))


def test_a_run_without_any_description_is_refused_even_with_min_coverage_zero(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "the model refuses")
    with pytest.raises(GsecError, match="at least one"):
        run(config_of(place, min_coverage=0))


def test_a_run_without_retry_does_not_ask_failed_descriptions_again(place: Path, captioner: Fake) -> None:
    captioner.answer = lambda subject: Answer(None, None, (), FAILED, "empty") if subject.uri == "003.jpg" else Answer("text", None, (), FREE)
    run(config_of(place))
    captioner.asked.clear()
    _, made = run(config_of(place), redo=("prototypes",))
    assert (captioner.asked, made["known"], made["failed"]) == ([], IMAGES, 1)


def test_descriptions_are_read_again_from_a_table_that_changed(place: Path) -> None:
    file = place / "descriptions.csv"
    config = config_of(place, captioner=f"table:{file}:text")
    for text in ("a disc", "a large disc"):
        file.write_text("uri,text\n" + "".join(f"{seed:03d}.jpg,{text} {seed}\n" for seed in range(IMAGES - 1)))
        context, made = run(config)
        uris = context.read(prototypes.STAGE, REPRESENTATIVES_TABLE)["uri"].to_pylist()
        expected = [f"{text} {int(uri[:3])}" if uri != f"{IMAGES - 1:03d}.jpg" else None for uri in uris]
        assert [row["text"] for row in rows(context)] == expected
        assert (made["asked"], made["free"], made["failed"]) == (IMAGES, IMAGES - 1, 1)


@pytest.fixture
def damaged(place: Path, captioner: Fake) -> Context:
    """A run with a damaged table and a damaged part of the log; the other part of the log has three rows."""
    context, _ = run(config_of(place, commit_rows=IMAGES - 3))
    log, table = context.corpus.captions, context.shards(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE)
    [bad] = [name for name in log.names() if log.read(name).num_rows > 3]
    for path in (log.location(bad), table.location("all")):
        Path(path).write_bytes(b"damaged")
    assert table.set_aside("all")
    captioner.asked.clear()
    return context


def test_a_damaged_log_stops_the_run_before_anything_is_asked_again(damaged: Context, captioner: Fake) -> None:
    with pytest.raises(GsecError, match=r"describe\.accept_loss=true") as raised:
        run_stage(damaged, describe.STAGE)
    assert not isinstance(raised.value, BadShard)
    assert captioner.asked == []


def test_with_accept_loss_the_lost_descriptions_are_asked_again(damaged: Context, place: Path, captioner: Fake) -> None:
    context = Context.of(damaged.run, config_of(place, accept_loss=True))
    made = run_stage(context, describe.STAGE)
    assert (made["known"], made["asked"]) == (3, IMAGES - 3)
    assert [file for file in os.listdir(os.path.dirname(context.corpus.captions.location("x"))) if file.startswith("_bad-")]
