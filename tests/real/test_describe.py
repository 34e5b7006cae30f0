"""Descriptions by a real vLLM server, also if it is busy, killed or restarted."""

import base64
import io
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow.dataset as ds
import pytest
from PIL import Image
from playwright.sync_api import Browser

from deployments.vllm.dev import ENVIRONMENT
from gsec_core.captioners import background
from gsec_core.captioners.openai import OpenAICaptioner
from gsec_core.captioners.template import SENTENCE_PATTERN
from gsec_core.config import DescribeConfig
from gsec_core.errors import Refused
from gsec_core.stages import baseline, describe, encode, prototypes
from gsec_core.stages.base import Context, begin, run_stage, work
from gsec_core.store import Store

from ..captioners.examples import describe_all, subject
from ..command import gsec, last_json
from ..pictures import picture, settings, write_pictures
from ..stages.steps import run_stages
from .browser import opened
from .vllm_server import PYTHON, VllmServer

IMAGES = 300
KEY = "sk-of-the-tests"
TOKENS = 256
"""The limit of tokens per description; it is high because a random model writes long words."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, vllm_server: VllmServer) -> Iterator[VllmServer]:
    """A second server, with a key and a short queue. It depends on the first one, whose fixture checks that vLLM is installed."""
    server = VllmServer(tmp_path_factory.mktemp("guarded"), key=KEY)
    server.start("--max-num-queued-reqs", "6")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("source") / "in", range(IMAGES))


def config(server: VllmServer, **more: Any) -> DescribeConfig:
    return DescribeConfig(captioner="openai:tiny", url=server.url, max_tokens=TOKENS, **more)


def started(source: Path, store: Path, server: VllmServer, **more: Any) -> Context:
    """A run that is ready for stage describe."""
    asking = {"captioner": "openai:tiny", "url": server.url, "max_tokens": TOKENS, "commit_rows": 16, **more}
    config = settings(source, store, describe=asking, prototypes={"representatives": 0}, encode={"batch_size": 64}, ingest={"shard_rows": 512})
    return run_stages(config, encode.STAGE, baseline.STAGE, prototypes.STAGE)


def answered(server: VllmServer) -> int:
    """Requests that the server has answered since it was started."""
    metrics = httpx.get(f"{server.url.removesuffix('/v1')}/metrics", timeout=60).text
    return int(sum(float(number) for number in re.findall(r"^vllm:request_success_total\{.*\} (\S+)$", metrics, re.MULTILINE)))


def log_of(store: Path) -> list[dict[str, Any]]:
    return [row for log in store.glob("*/captions/log") for row in ds.dataset(log).to_table().to_pylist()]


def test_a_pipeline_describes_300_images_once_each_by_the_template(vllm_server: VllmServer, source: Path, tmp_path: Path, browser: Browser) -> None:
    options = ["--captioner", "openai:tiny", "--set", f"describe.url={vllm_server.url}", "--set", f"describe.max_tokens={TOKENS}"]
    done = gsec(
        "run", source, "-k", "3", "--store", tmp_path / "store", "--json", *options, "--set", "prototypes.representatives=0", home=tmp_path, timeout=600
    )
    result = last_json(done)
    assert (result["images"], result["rejected"], result["missing"]) == (IMAGES, 0, 0)
    assert re.search(rf"^describe .* {IMAGES} descriptions, [^,]* s$", done.stderr, re.MULTILINE), "the line must mention no earlier and no failed descriptions"
    rows = log_of(tmp_path / "store")
    assert len({row["content_hash"] for row in rows}) == len(rows) == IMAGES
    # The model is random, so only the server makes it keep to the template. A reply may be cut at the limit of tokens, and is then asked for once more.
    assert all(re.fullmatch(SENTENCE_PATTERN, row["text"]) for row in rows)
    assert len({row["text"] for row in rows}) > IMAGES / 4, "the descriptions must depend on the images"
    [row] = last_json(gsec("status", "--store", tmp_path / "store", "--json", home=tmp_path))["descriptions"]
    assert (row["model"], row["answers"], row["failed"]) == ("tiny", IMAGES, 0)
    assert row["completion_tokens"] == sum(row["completion_tokens"] for row in rows) > 30 * IMAGES
    with opened(browser, Path(result["report"])) as page:
        assert f"{IMAGES} described; " in page.locator("body").inner_text()
    again = gsec("run", source, "-k", "3", "--store", tmp_path / "store", "--json", *options, "--set", "prototypes.representatives=0", home=tmp_path)
    assert "nothing to do" in again.stderr


def test_if_the_server_refuses_the_pattern_only_the_prompt_is_used(vllm_server: VllmServer, tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('prompt = "What is it?"\npattern = "(?i)it is (?P<object>[a-z]{3,9})"\n')
    asking = OpenAICaptioner("tiny", config(vllm_server, template=str(own)).model_copy(update={"max_tokens": 16}))
    [answer] = describe_all(asking, [subject()])
    assert asking.form.startswith("asked for by the prompt alone")
    assert answer.status in ("free", "failed")
    assert answer.cost is not None
    assert answer.cost.requests == 2, "a reply outside the pattern must be asked for a second time"


def test_stripes_tiny_images_and_animations_are_described_and_a_file_that_is_no_image_is_failed(vllm_server: VllmServer) -> None:
    asking = OpenAICaptioner("tiny", config(vllm_server))
    stripe, dot, animation = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (2000, 5), "red").save(stripe, "PNG")
    Image.new("L", (1, 1)).save(dot, "PNG")
    picture(0).save(animation, "GIF", save_all=True, append_images=[picture(1)])
    answers = describe_all(asking, [subject(file.getvalue()) for file in (stripe, dot, animation)] + [subject(b"no image")])
    assert [answer.status for answer in answers] == ["described", "described", "described", "failed"]


def test_a_full_queue_of_the_server_makes_no_description_fail(guarded: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSEC_CAPTIONER_KEY", KEY)
    asking = OpenAICaptioner("tiny", config(guarded, concurrency=32))
    asking.check()
    busy = 0
    [server] = asking._chat._servers
    complete = server.complete

    async def counted(body: dict[str, Any]) -> Any:
        nonlocal busy
        try:
            return await complete(body)
        except Exception as failure:
            busy += "503" in str(failure)
            raise

    monkeypatch.setattr(server, "complete", counted)
    assert {answer.status for answer in describe_all(asking, [subject(encoded(seed)) for seed in range(64)])} == {"described"}
    assert busy > 0, "the queue must have been full, or this test would prove nothing"


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("key", "model", "says"),
    [("sk-wrong", "tiny", r"does not accept the key in GSEC_CAPTIONER_KEY \(401"), (KEY, "large", "has no such model; its models are: tiny")],
)
def test_a_wrong_key_or_model_is_refused(guarded: VllmServer, monkeypatch: pytest.MonkeyPatch, key: str, model: str, says: str) -> None:
    monkeypatch.setenv("GSEC_CAPTIONER_KEY", key)
    asking = OpenAICaptioner(model, config(guarded))
    with pytest.raises(Refused, match=says) as refused:
        asking.check()
    assert "sk-" not in str(refused.value)
    with pytest.raises(Refused):  # the same without an earlier check, so that no row is written
        describe_all(asking, [subject()])


def test_the_server_serves_nothing_without_its_key(guarded: VllmServer) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}):
        assert httpx.get(f"{guarded.url}/models", headers=headers, timeout=60).status_code == 401
        assert httpx.post(f"{guarded.url}/chat/completions", json=asked, headers=headers, timeout=60).status_code == 401
    assert httpx.get(f"{guarded.url}/models", headers={"Authorization": f"Bearer {KEY}"}, timeout=60).is_success


@pytest.mark.parametrize("kill", ["kill_engine", "kill_api"])
def test_after_a_kill_and_restart_of_the_server_only_missing_descriptions_are_asked(
    guarded: VllmServer, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    """The server is restarted about half a minute later, while the stage waits for it."""
    monkeypatch.setenv("GSEC_CAPTIONER_KEY", KEY)
    at_once, commit = 6, 16
    context = started(source, tmp_path / "store", guarded, concurrency=at_once, commit_rows=commit)
    before = answered(guarded)
    done = 0
    reached = threading.Event()

    def progress(by: int) -> None:
        nonlocal done
        done += by
        if done >= 60:
            reached.set()

    with ThreadPoolExecutor(1) as pool:
        [step] = describe.STAGE.steps
        begin(context, describe.STAGE)
        made = pool.submit(work, context, describe.STAGE, step, ["all"], progress)
        assert reached.wait(600)
        getattr(guarded, kill)()
        guarded.stop()
        seen, known = done, len(log_of(tmp_path / "store"))
        guarded.start()
        facts = made.result(900)
    again = answered(guarded)
    print(f"{kill}: {seen} of {IMAGES} answered and {known} committed before; {again} requests answered after the restart; {before} before this test")
    assert (facts["described"], facts["failed"], facts["asked"]) == (IMAGES, 0, IMAGES)
    rows = log_of(tmp_path / "store")
    assert len({row["content_hash"] for row in rows}) == len(rows) == IMAGES
    cut = facts["requests"] - IMAGES  # replies that were cut at the limit of tokens are asked for once more
    probes = 3
    assert IMAGES - seen - at_once - commit <= again <= IMAGES - seen + cut + probes


def test_if_one_of_two_replicas_dies_all_images_are_still_described(vllm_server: VllmServer, guarded: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSEC_CAPTIONER_KEY", KEY)  # the other server accepts any key
    both = config(guarded, concurrency=4, patience=120).model_copy(update={"url": f"{guarded.url},{vllm_server.url}"})
    asking = OpenAICaptioner("tiny", both)
    asking.check()
    futures = [background.start(asking.describe(subject(encoded(seed)))) for seed in range(120)]
    while sum(future.done() for future in futures) < 30:
        futures[0].exception(600)
    guarded.kill_engine()
    assert {future.result(900).status for future in futures} == {"described"}
    guarded.stop()


def test_requests_in_a_file_are_answered_by_vllm_run_batch(vllm_server: VllmServer, tmp_path: Path) -> None:
    """The running server is not asked; only its model is used."""
    context = started(write_pictures(tmp_path / "in", range(12)), tmp_path / "store", vllm_server)
    command = ["stage", "describe", "--run", context.run.id, "--store", tmp_path / "store", "--json"]
    batch, replies = tmp_path / "batch.jsonl", tmp_path / "replies.jsonl"
    assert last_json(gsec(*command, "--export-batch", batch, home=tmp_path))["requests"] == 12
    lines = batch.read_text().splitlines()
    broken = json.loads(lines[0])
    broken["body"]["messages"][0]["content"][1]["image_url"]["url"] = "data:image/jpeg;base64," + base64.b64encode(b"no image").decode()
    batch.write_text("\n".join([json.dumps(broken), *lines[1:]]) + "\n")
    flags = ["--max-model-len", "2048", "--limit-mm-per-prompt", '{"image": 1, "video": 0}', "--enforce-eager", "--skip-mm-profiling"]
    run_batch = [
        str(PYTHON.with_name("vllm")),
        "run-batch",
        "-i",
        str(batch),
        "-o",
        str(replies),
        "--model",
        str(vllm_server.folder),
        "--served-model-name",
        "tiny",
    ]
    done = subprocess.run([*run_batch, *flags], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert last_json(gsec(*command, "--import-batch", replies, home=tmp_path)) == {
        "run_id": context.run.id,
        "answers": 12,
        "failed": 1,
        "known": 0,
        "unanswered": 0,
        "foreign": 0,
    }
    made = run_stage(Context.of(Store.open(str(tmp_path / "store")).run(context.run.id), context.config), describe.STAGE)
    assert (made["asked"], made["described"], made["failed"]) == (0, 11, 1)
