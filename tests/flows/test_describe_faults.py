"""Stage describe with a server that is lost or misconfigured, and with a client that is killed: no image is asked, and paid for, twice."""

import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.dataset as ds
import pytest

from gsec_core.stages import baseline, encode, prototypes

from ..captioners.server import Request, Response, Server, error, reply
from ..command import GSEC, asking, environment, gsec_here, last_json, wait
from ..pictures import settings, write_pictures
from ..stages.steps import run_stages

IMAGES = 40
AT_ONCE, COMMIT = 4, 8


@pytest.fixture(autouse=True)
def _prefect(server: str) -> Iterator[None]:
    with asking(server):
        yield


@pytest.fixture
def mllm() -> Iterator[Server]:
    """A captioning server that takes a moment for each answer."""

    def answer(request: Request) -> Response:
        time.sleep(0.02)
        return reply()

    with Server() as running:
        running.answer = answer
        yield running


class Place(NamedTuple):
    """A store with one run that is ready for stage describe."""

    store: Path
    run: str

    def stage(self, mllm: Server, *more: str) -> list[str]:
        runtime = {"concurrency": AT_ONCE, "commit_rows": COMMIT, "url": mllm.url, "patience": 1}
        words = [part for name, value in runtime.items() for part in ("--set", f"describe.{name}={value}")]
        return ["stage", "describe", "--run", self.run, "--store", str(self.store), "--json", *words, *more]

    @property
    def statuses(self) -> Counter[str]:
        """The statuses of the answers in the captions log."""
        return Counter(status for log in self.store.glob("*/captions/log") for status in ds.dataset(log).to_table()["status"].to_pylist())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    config = settings(
        write_pictures(tmp_path / "in", range(IMAGES)),
        tmp_path / "store",
        prototypes={"representatives": 0},
        describe={"captioner": "openai:tiny", "min_coverage": 0},
        encode={"batch_size": IMAGES},
        ingest={"shard_rows": IMAGES},
    )
    return Place(tmp_path / "store", run_stages(config, encode.STAGE, baseline.STAGE, prototypes.STAGE).run.id)


def test_after_a_kill_only_uncommitted_descriptions_are_asked_again(place: Place, mllm: Server, server: str) -> None:
    """The server answers no more than three quarters of the requests before the kill, however long that takes."""
    environs, killed, answer = {**environment(place.store.parent), "PREFECT_API_URL": server}, threading.Event(), mllm.answer
    mllm.answer = lambda request: answer(request) if len(mllm.asked) <= IMAGES * 3 // 4 or killed.wait(300) else error(500)
    with subprocess.Popen([*GSEC, *place.stage(mllm)], env=environs, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait(lambda: len(mllm.asked) >= IMAGES // 2 or process.poll() is not None, 300, pause=0.01)
        os.kill(process.pid, signal.SIGKILL)
    killed.set()
    asked, committed = len(pictures(mllm)), place.statuses.total()
    assert IMAGES // 2 <= asked < IMAGES, "the process was killed too late for this test to prove anything"
    assert asked - committed <= 2 * AT_ONCE + COMMIT, "twice as many requests are in hand as the server gets at once"
    mllm.requests.clear()
    made = last_json(gsec_here(*place.stage(mllm)))
    assert (made["known"], made["asked"], made["described"]) == (committed, IMAGES - committed, IMAGES)
    assert len(pictures(mllm)) == IMAGES - committed


def pictures(mllm: Server) -> set[bytes]:
    """The pictures that were asked about, each once: on a busy machine a connection may fail, and the same request is sent again."""
    return {request.picture.tobytes() for request in mllm.asked}


def test_a_server_that_stays_away_ends_the_stage_but_answers_are_kept_and_a_rerun_goes_on(place: Place, mllm: Server) -> None:
    alive = threading.Semaphore(IMAGES // 2)
    mllm.answer = lambda request: reply() if alive.acquire(blocking=False) else error(500, "EngineCore died")
    said = gsec_here(*place.stage(mllm), check=1).stderr
    assert "no server has answered for describe.patience = 1 s (it fails at every request (500: EngineCore died)). All answers are kept" in said
    answered = place.statuses["described"]
    assert IMAGES // 2 - 3 <= answered < IMAGES // 2, "up to three requests are spent on plain pictures that check the connection"
    mllm.requests.clear()
    mllm.answer = lambda request: reply()
    gsec_here(*place.stage(mllm))
    assert len(mllm.asked) == IMAGES - answered


@pytest.mark.parametrize(("status", "says"), [(401, "does not accept requests without a key"), (404, "usually ends in /v1")])
def test_a_wrong_key_or_address_ends_the_stage_before_a_row_is_written(place: Place, mllm: Server, status: int, says: str) -> None:
    mllm.models = mllm.answer = lambda request: error(status)
    assert says in gsec_here(*place.stage(mllm), check=2).stderr
    assert place.statuses.total() == 0


def test_a_key_that_is_withdrawn_ends_the_stage_and_no_image_is_marked_as_failed(place: Place, mllm: Server) -> None:
    mllm.answer = lambda request: error(401) if len(mllm.asked) > IMAGES // 2 else reply()
    assert "does not accept requests without a key" in gsec_here(*place.stage(mllm), check=2).stderr
    assert set(place.statuses) == {"described"}
    mllm.answer = lambda request: reply()
    assert last_json(gsec_here(*place.stage(mllm)))["described"] == IMAGES


def test_a_batch_needs_no_server_at_all(place: Place) -> None:
    with Server() as gone:
        pass
    batch, replies = place.store.parent / "batch.jsonl", place.store.parent / "replies.jsonl"
    gsec_here(*place.stage(gone, "--export-batch", str(batch)))
    answers = [{"custom_id": json.loads(line)["custom_id"], "response": {"status_code": 200, "body": json.loads(reply().body)}} for line in batch.open()]
    replies.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    assert last_json(gsec_here(*place.stage(gone, "--import-batch", str(replies))))["answers"] == IMAGES
    assert last_json(gsec_here(*place.stage(gone)))["described"] == IMAGES


def test_plan_export_and_retry_failed_cover_exactly_the_remaining_or_failed_images(place: Place, mllm: Server) -> None:
    assert last_json(gsec_here(*place.stage(mllm, "--plan")))["calls"] == IMAGES
    batch = place.store.parent / "batch.jsonl"
    done = gsec_here(*place.stage(mllm, "--export-batch", str(batch)))
    assert last_json(done)["requests"] == len(batch.read_text().splitlines()) == IMAGES
    assert "vllm run-batch" in done.stderr
    assert "none of its 0 lines" in gsec_here(*place.stage(mllm, "--import-batch", "/dev/null"), check=2).stderr
    assert mllm.requests == []
    for wrong, says in (
        (place.stage(mllm, "--plan", "--redo"), "cannot be combined"),
        (["stage", "encode", "--run", place.run, "--plan"], "only stage describe takes this option"),
    ):
        assert says in gsec_here(*wrong, check=2).stderr

    mllm.answer = lambda request: reply("I cannot.") if not request.is_plain and sum(request.picture.getpixel((60, 2))) > 380 else reply()  # type: ignore[arg-type]
    failed = last_json(gsec_here(*place.stage(mllm)))["failed"]
    assert 0 < failed < IMAGES
    mllm.requests.clear()
    mllm.answer = lambda request: reply()
    again = last_json(gsec_here(*place.stage(mllm, "--retry-failed")))
    assert (again["asked"], again["failed"], len(mllm.asked)) == (failed, 0, failed)
    assert again["run_id"] != place.run
    assert "no description has failed" in gsec_here(*place._replace(run=again["run_id"]).stage(mllm, "--retry-failed")).stderr
    [row] = last_json(gsec_here("status", "--store", str(place.store), "--json"))["descriptions"]
    assert (row["model"], row["answers"], row["failed"]) == ("tiny", IMAGES + failed, failed)
    assert (row["requests"], row["prompt_tokens"]) == (IMAGES + 2 * failed, 30 * (IMAGES + 2 * failed)), (
        "an image whose answer was a refusal takes two requests"
    )
