"""Descriptions by batch: requests are exported to a file and replies are imported from one, without a server."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gsec_core.captioners.template import SENTENCE_PATTERN, prompt
from gsec_core.errors import Refused
from gsec_core.stages import describe, encode, offline, prototypes
from gsec_core.stages.base import Context, run_stage
from gsec_core.tables import DESCRIBED, FAILED, FREE, REPRESENTATIVE_CAPTIONS_TABLE

from ..captioners.examples import GOOD
from ..pictures import settings, write_pictures
from .steps import run_stages

IMAGES = 8
NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run before stage describe. All of its images are representatives, and two of them have the same bytes."""
    source = write_pictures(tmp_path / "in", range(IMAGES))
    (source / "twin.jpg").write_bytes((source / "000.jpg").read_bytes())
    config = settings(source, tmp_path / "store", prototypes={"representatives": 0}, describe={"captioner": "openai:tiny", "url": NOBODY})
    return run_stages(config, encode.STAGE, prototypes.STAGE)


def exported(context: Context, file: Path) -> list[dict[str, Any]]:
    offline.export(context, file)
    return [json.loads(line) for line in file.read_text().splitlines()]


def replied(line: dict[str, Any], text: str = GOOD, finish: str = "stop") -> dict[str, Any]:
    """A reply as `vllm run-batch` writes it."""
    message = {"role": "assistant", "content": text}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 29, "total_tokens": 104, "completion_tokens": 75},
    }
    return {"id": "vllm-1", "custom_id": line["custom_id"], "response": {"status_code": 200, "request_id": "1", "body": body}, "error": None}


def declined(line: dict[str, Any], status: int, message: str = "as told") -> dict[str, Any]:
    error = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return {"id": "vllm-1", "custom_id": line["custom_id"], "response": {"status_code": status, "request_id": "1", "body": None}, "error": error}


def written(file: Path, lines: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_the_export_has_one_request_per_distinct_image(context: Context, tmp_path: Path) -> None:
    lines = exported(context, tmp_path / "batch.jsonl")
    assert len({line["custom_id"] for line in lines}) == len(lines) == IMAGES
    for line in lines:
        assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
        body = line["body"]
        assert (body["model"], body["temperature"], body["structured_outputs"]) == ("tiny", 0, {"regex": SENTENCE_PATTERN})
        text, image = body["messages"][0]["content"]
        assert text == {"type": "text", "text": prompt(None)}
        assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".batch")] == []


def test_a_run_uses_the_imported_replies_and_asks_no_server(context: Context, tmp_path: Path) -> None:
    lines = exported(context, tmp_path / "batch.jsonl")
    counts = offline.import_(context, written(tmp_path / "out.jsonl", [replied(line) for line in reversed(lines)]))
    assert counts == {"answers": IMAGES, "failed": 0, "known": 0, "unanswered": 0, "foreign": 0}
    made = run_stage(context, describe.STAGE)
    assert (made["asked"], made["known"], made["described"]) == (0, IMAGES, IMAGES + 1)
    assert describe.told(context)["prompt_tokens"] == 29 * IMAGES
    assert exported(context, tmp_path / "batch.jsonl") == []


def test_imported_replies_get_the_same_status_as_online_replies(context: Context, tmp_path: Path) -> None:
    free, cut, empty, large, *others = exported(context, tmp_path / "batch.jsonl")
    replies = [replied(free, "A bus."), replied(cut, GOOD[:-9], finish="length"), replied(empty, ""), declined(large, 400, "too\nlarge"), *map(replied, others)]
    counts = offline.import_(context, written(tmp_path / "out.jsonl", replies))
    assert (counts["answers"], counts["failed"]) == (IMAGES, 2)
    rows = describe.captions_log(context).rows()
    found = [rows[bytes.fromhex(line["custom_id"].partition("-")[2])] for line in (free, cut, empty, large, others[0])]
    assert [row["status"] for row in found] == [FREE, FREE, FAILED, FAILED, DESCRIBED]
    assert [row["reason"] for row in found[2:4]] == ["the description is empty", "400: too large"]


def test_a_request_that_failed_for_a_passing_reason_is_exported_again(context: Context, tmp_path: Path) -> None:
    broken, lost, wrong, *others = exported(context, tmp_path / "batch.jsonl")
    replies = [declined(broken, 500), {**replied(lost), "response": None, "error": "lost"}, declined(wrong, 404), *map(replied, others)]
    replies[0]["response"]["body"] = {"odd": 1}
    counts = offline.import_(context, written(tmp_path / "out.jsonl", replies))
    assert (counts["answers"], counts["unanswered"]) == (IMAGES - 3, 3)
    assert {line["custom_id"] for line in exported(context, tmp_path / "again.jsonl")} == {line["custom_id"] for line in (broken, lost, wrong)}


def test_if_all_requests_are_declined_no_image_is_marked_as_failed(context: Context, tmp_path: Path) -> None:
    replies = [declined(line, 400, "no images, please") for line in exported(context, tmp_path / "batch.jsonl")]
    assert offline.import_(context, written(tmp_path / "out.jsonl", replies))["unanswered"] == IMAGES
    assert describe.captions_log(context).rows() == {}


def test_a_repeated_import_adds_only_new_answers(context: Context, tmp_path: Path) -> None:
    replies = [replied(line) for line in exported(context, tmp_path / "batch.jsonl")]
    offline.import_(context, written(tmp_path / "out.jsonl", replies[:3]))
    counts = offline.import_(context, written(tmp_path / "out.jsonl", [*replies, replies[-1]]))
    assert (counts["answers"], counts["known"]) == (IMAGES - 3, 4)


def test_replies_to_another_question_are_refused_or_counted_as_foreign(context: Context, tmp_path: Path) -> None:
    replies = [replied(line) for line in exported(context, tmp_path / "batch.jsonl")]
    other = Context.of(context.run, context.config)
    other.config = context.config.model_copy(update={"describe": context.config.describe.model_copy(update={"criterion": "the colour"})})
    with pytest.raises(Refused, match=rf"none of its {IMAGES} lines answers a request of run"):
        offline.import_(other, written(tmp_path / "out.jsonl", replies))
    odd = [{"custom_id": f"{describe.captions_log(context).request}-xyz"}, {"custom_id": 3}, {}]
    assert offline.import_(context, written(tmp_path / "out.jsonl", [*odd, *replies]))["foreign"] == 3


@pytest.mark.parametrize(("line", "says"), [("{torn", "line 2 is not JSON .*a repeat skips them"), ("[1]", "line 2 is not a JSON object")])
def test_the_error_of_a_broken_line_names_it_and_the_lines_before_it_are_imported(context: Context, tmp_path: Path, line: str, says: str) -> None:
    first, *_ = exported(context, tmp_path / "batch.jsonl")
    (tmp_path / "out.jsonl").write_text(json.dumps(replied(first)) + f"\n{line}\n")
    with pytest.raises(Refused, match=says):
        offline.import_(context, tmp_path / "out.jsonl")
    assert len(describe.captions_log(context).rows()) == 1


def test_a_request_that_was_declined_and_then_answered_counts_as_one_answer(context: Context, tmp_path: Path) -> None:
    first, *others = exported(context, tmp_path / "batch.jsonl")
    replies = [declined(first, 400), declined(first, 400), *map(replied, others), replied(first)]
    counts = offline.import_(context, written(tmp_path / "out.jsonl", replies))
    assert (counts["answers"], counts["failed"]) == (IMAGES, 0)


def test_lines_before_the_tear_of_a_torn_file_are_imported_and_the_whole_file_adds_the_rest(context: Context, tmp_path: Path) -> None:
    first, *others = exported(context, tmp_path / "batch.jsonl")
    file = written(tmp_path / "out.jsonl", [declined(first, 400), *map(replied, others[:3])])
    file.write_bytes(file.read_bytes() + b"\x1f\x8b torn")
    with pytest.raises(Refused, match="line 5 is not JSON"):
        offline.import_(context, file)
    assert len(describe.captions_log(context).rows()) == 4
    counts = offline.import_(context, written(file, [declined(first, 400), *map(replied, others)]))
    assert (counts["answers"], counts["known"]) == (IMAGES - 4, 4)


@pytest.mark.parametrize("response", ["text", [1], {"status_code": [200]}, {"status_code": 200}, {"status_code": 200, "body": "text"}])
def test_a_reply_of_an_unknown_form_counts_as_unanswered(context: Context, tmp_path: Path, response: object) -> None:
    first, *_ = exported(context, tmp_path / "batch.jsonl")
    counts = offline.import_(context, written(tmp_path / "out.jsonl", [{"custom_id": first["custom_id"], "response": response}]))
    assert (counts["answers"], counts["unanswered"]) == (0, 1)


@pytest.mark.parametrize("target", [".", "nowhere/batch.jsonl"])
def test_an_export_file_that_cannot_be_written_is_refused_before_any_image_is_read(context: Context, tmp_path: Path, target: str) -> None:
    for file in (tmp_path / "in").iterdir():
        file.unlink()
    with pytest.raises(Refused, match=r"^--export-batch .*: cannot be written"):
        offline.export(context, tmp_path / target)


def test_a_missing_import_file_is_refused(context: Context, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=re.escape(f"--import-batch {tmp_path / 'nowhere'}: cannot be read")):
        offline.import_(context, tmp_path / "nowhere")


def test_a_missing_image_is_counted_and_not_exported(context: Context, tmp_path: Path) -> None:
    (tmp_path / "in" / "003.jpg").unlink()
    assert offline.export(context, tmp_path / "batch.jsonl") == {"requests": IMAGES - 1, "failed": 0, "missing": 1}


def test_an_export_for_a_captioner_that_sends_no_requests_is_refused(tmp_path: Path) -> None:
    context = run_stages(settings(write_pictures(tmp_path / "in", range(3)), tmp_path / "store"), encode.STAGE, prototypes.STAGE)
    with pytest.raises(Refused, match=r"^describe\.captioner = tagger: only requests to a model"):
        offline.export(context, tmp_path / "batch.jsonl")


def test_the_table_records_the_requests_and_tokens_of_each_answer(context: Context, tmp_path: Path) -> None:
    offline.import_(context, written(tmp_path / "out.jsonl", [replied(line) for line in exported(context, tmp_path / "batch.jsonl")]))
    run_stage(context, describe.STAGE)
    rows = context.read(describe.STAGE, REPRESENTATIVE_CAPTIONS_TABLE).to_pylist()
    assert {(row["requests"], row["prompt_tokens"], row["completion_tokens"]) for row in rows} == {(1, 29, 75)}
