"""The watchdog ends a stage that hangs."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.utilities.engine import capture_sigterm

from flows.pipeline import run_pipeline
from flows.stages import FLOWS, run_flow
from gsec_core import pipeline
from gsec_core.errors import GsecError
from gsec_core.stages import base, baseline, encode, refit
from gsec_core.stages.base import Context
from gsec_core.store import Store
from tasks import progress, watchdog

from ..command import asking, environment, wait
from ..pictures import settings, write_pictures
from ..stages.steps import run_stages

HANGS = """
import sys, threading
from flows.pipeline import run_pipeline
from gsec_core.config import PipelineConfig
from gsec_core.stages import baseline, encode
from tasks import watchdog

end = watchdog._end

def patient(runs, why):
    watchdog.GRACE = 300.0  # for the report to the server; a busy machine needs more than for the end of threads, which is certain not to come
    end(runs, why)

watchdog.GRACE, watchdog._end = 2.0, patient
baseline.load_embeddings = lambda context: threading.Event().wait()
run_pipeline(PipelineConfig.model_validate_json(sys.argv[1]))
"""


def test_a_stage_that_hangs_fails_and_its_process_ends(server: str, tmp_path: Path) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store", hang_timeout=3)
    run_stages(config, encode.STAGE, refit.STAGE)  # on a busy machine these may take 3 s
    done = subprocess.run(
        [sys.executable, "-c", HANGS, config.model_dump_json()],
        env={**environment(tmp_path / "prefect"), "PREFECT_API_URL": server},
        capture_output=True,
        text=True,
        timeout=600,  # it would wait for ever
        check=False,
    )
    assert done.returncode == 1
    assert "stage baseline made no progress for 3 s (hang_timeout)" in done.stderr
    with httpx.Client(base_url=server, timeout=60) as client:
        runs = client.post("/flow_runs/filter", json={"sort": "START_TIME_DESC", "flow_runs": {"name": {"like_": "baseline"}}}).json()
        parent = client.get(f"/task_runs/{runs[0]['parent_task_run_id']}").json()["flow_run_id"]
        for run in (runs[0], client.get(f"/flow_runs/{parent}").json()):
            assert run["state"]["name"] == "Failed"
            assert "made no progress" in run["state"]["message"]
    [run] = Store.open(config.store).runs()
    assert run.is_complete("encode"), "committed shards must be kept"
    ends = [attempt["end"] for attempt in run.attempts() if attempt["start"]["stage"] == "baseline"]
    assert ["made no progress" in end["error"] for end in ends] == [True]


def test_slices_that_have_not_begun_are_cancelled_after_three_in_a_row_have_failed(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store", ingest={"shard_rows": 1})
    run, _ = pipeline.request(config)
    begun = []
    futures: list[PrefectFuture[Any]] = []
    waits = watchdog.wait

    def wait_for(found: Sequence[PrefectFuture[Any]], stage: str, seconds: float) -> None:
        futures.extend(found)
        waits(found, stage, seconds)

    def fails(context: Context, stage: base.Stage, step: base.Step, names: list[str], progress: base.Progress) -> dict[str, float]:
        begun.append(names)
        if len(begun) > watchdog.MOST_FAILED:
            wait(lambda: bool(futures) and cast(Any, futures[-1]).wrapped_future.cancelled(), 60)
        raise GsecError("the disk is full")

    monkeypatch.setattr(watchdog, "wait", wait_for)
    monkeypatch.setattr(base, "work", fails)
    with asking(server), pytest.raises(GsecError, match="the disk is full"):
        run_flow(config, run.id, "encode")
    assert watchdog.MOST_FAILED <= len(begun) <= watchdog.MOST_FAILED + config.max_workers  # those that had begun go on


def test_sigterm_ends_a_slice_at_its_next_progress_report(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store")
    run, _ = pipeline.request(config)
    began = threading.Event()

    def works(context: Context, stage: base.Stage, step: base.Step, names: list[str], advance: base.Progress) -> dict[str, float]:
        while not progress._watchers:  # in `watchdog.wait`; a signal while the executor starts its thread would leave a thread for which nobody waits
            time.sleep(0.01)
        began.set()
        for _ in range(6000):
            time.sleep(0.1)
            advance(0)
        return {"shards": 0}

    monkeypatch.setattr(base, "work", works)
    threading.Thread(target=lambda: began.wait(300) and os.kill(os.getpid(), signal.SIGTERM), daemon=True).start()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # after the flow, Prefect passes the signal on
    started = time.monotonic()
    try:
        with asking(server), pytest.raises(TerminationSignal):
            run_flow(config, run.id, "encode")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - started < 300
    assert [attempt["end"]["outcome"] for attempt in run.attempts()] == ["failed"]
    monkeypatch.undo()
    with asking(server):
        assert run_flow(config, run.id, "encode")["encoded"] == 12, "what ended the slice is over"


@pytest.mark.parametrize(("sent", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminationSignal)])
def test_a_signal_during_a_finalizer_is_not_lost(sent: signal.Signals, error: type[BaseException]) -> None:
    class Last:
        def __del__(self) -> None:
            os.kill(os.getpid(), sent)
            time.sleep(0)

    def works() -> None:
        with capture_sigterm(), progress.signals_kept():
            Last()
            time.sleep(20)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Prefect passes the signal on
    try:
        with pytest.raises(error):
            works()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ctrl_c_at_the_end_of_a_stages_flow_ends_the_run(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store")
    monkeypatch.setattr(FLOWS["encode"], "on_completion_hooks", [lambda flow, run, state: os.kill(os.getpid(), signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt), asking(server), progress.signals_kept():
        run_pipeline(config)
    [run] = Store.open(config.store).runs()
    assert list(run.stages()) == ["encode"]


def test_a_slow_thread_that_finishes_after_all_does_not_end_the_process(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread waits until it counts as hanging. Then it has more time than usual, or it would end the process of the tests on a busy machine."""
    config = settings(write_pictures(tmp_path / "in", range(12)), tmp_path / "store")
    run, _ = pipeline.request(config)
    load = baseline.load_embeddings

    def slow(context: Context) -> object:
        wait(lambda: bool(watchdog._ending), 300, pause=0.01)
        return load(context)

    monkeypatch.setattr(baseline, "load_embeddings", slow)
    monkeypatch.setattr(watchdog, "GRACE", 600.0)
    with asking(server):
        run_flow(config, run.id, "encode")
        with pytest.raises(GsecError, match="made no progress for 1 s"):
            run_flow(config.model_copy(update={"hang_timeout": 1}), run.id, "baseline")
        assert not watchdog._ending
        monkeypatch.undo()
        assert run_flow(config, run.id, "baseline")["there"] >= 1, "shards that the slow thread committed must be kept"
