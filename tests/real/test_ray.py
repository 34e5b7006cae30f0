"""The pipeline on the nodes of a real Ray cluster, with nodes that are killed."""

import os
import platform
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest
from prefect import flow
from ray.cluster_utils import Cluster

import gsec_core
from gsec_core import pipeline
from gsec_core.config import PipelineConfig
from gsec_core.errors import GsecError, Refused
from gsec_core.stages import encode
from gsec_core.store import Run, Store
from tasks import engine, progress, slices
from tasks.cluster import Cluster as RayEngine
from tasks.cluster import Sender

from ..command import GSEC, SMALL, asking, environment, free_port, gsec, wait
from ..kills import HEAD, add_node, assert_equal_tables, tables
from ..pictures import settings, write_pictures

IMAGES = 60
PATIENCE = 600
"""Seconds after which a test fails. Quiet cores need a tenth."""
CLUSTERS = ("--clusters", "3")
SPREAD = (*SMALL, *CLUSTERS, "--set", "engine=ray")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("ray") / "in", range(IMAGES))


@pytest.fixture(scope="module")
def by_threads(source: Path) -> dict[str, pl.DataFrame]:
    """The tables of a run on threads, to compare with."""
    gsec("run", source, "--store", source.parent / "threads", *SMALL, *CLUSTERS, home=source.parent / "home")
    return tables(source.parent / "threads")


@pytest.fixture(scope="module")
def port() -> int:
    """The port of the cluster for drivers outside it."""
    return free_port()


@pytest.fixture(scope="module")
def cluster(port: int) -> Iterator[Cluster]:
    """A Ray cluster whose head takes no slices. Tests add and remove nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRPC_ENABLE_FORK_SUPPORT", "0")  # as in `gsec up`
        patch.setenv("RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S", "120")  # a busy machine needs more than Ray's 30 s to start a client's process
        made = Cluster(initialize_head=True, head_node_args={**HEAD, "ray_client_server_port": port})
    yield made
    made.shutdown()


@pytest.fixture(autouse=True)
def no_node_stays(cluster: Cluster) -> Iterator[None]:
    """The next test begins with the head alone, also after a failure."""
    yield
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)


def begun(process: subprocess.Popen[bytes], store: Path, stage: str) -> Run:
    """Wait until the stage of the run has begun, and return the run."""
    until = time.monotonic() + PATIENCE
    while True:
        runs = Store.open(str(store)).runs()
        if runs and runs[0].stage(stage) is not None:
            return runs[0]
        assert process.poll() is None, "the run ended before"
        assert time.monotonic() < until
        time.sleep(0.02)


def command(source: Path, store: Path, address: str) -> list[str]:
    return [*GSEC, "run", str(source), "--store", str(store), *SPREAD, "--set", f"ray.address={address}"]


def started(source: Path, store: Path, address: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("w") as output:
        process = command(source, store, address)
        return subprocess.Popen(process, stdout=output, stderr=output, env=environment(source.parent / "home"), start_new_session=True)


def test_after_kills_of_nodes_and_of_the_driver_a_run_on_threads_finishes_with_equal_tables(
    source: Path, by_threads: dict[str, pl.DataFrame], cluster: Cluster, tmp_path: Path
) -> None:
    """There is only one node at a time, so that a slice is certainly lost with it; its successor joins afterwards."""
    node = add_node(cluster)
    store = tmp_path / "store"
    process = started(source, store, cluster.address, tmp_path / "log")
    for stage in ("encode", "describe", "prepare", "train"):
        begun(process, store, stage)
        cluster.remove_node(node, allow_graceful=False)
        node = add_node(cluster)
    run = begun(process, store, "align")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(120)
    assert not run.is_complete("report"), (tmp_path / "log").read_text()
    done = gsec("run", source, "--store", store, *SMALL, *CLUSTERS, home=source.parent / "home")
    assert f"run {run.id}" in done.stderr, "it must be the same run on another engine"
    assert_equal_tables(store, by_threads)


def test_nodes_share_the_work_with_equal_tables_and_report_their_progress(
    source: Path, by_threads: dict[str, pl.DataFrame], cluster: Cluster, port: int, tmp_path: Path
) -> None:
    for _ in range(2):
        add_node(cluster)
    log = tmp_path / "log"
    on_a_terminal = ["script", "-qec", shlex.join(command(source, tmp_path / "store", f"ray://127.0.0.1:{port}")), str(log)]
    home = environment(source.parent / "home")
    process = subprocess.Popen(on_a_terminal, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=home)
    try:
        wait(lambda: process.poll() is not None, PATIENCE, log)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    assert_equal_tables(tmp_path / "store", by_threads)
    assert re.search(rf"\b([1-9]|[1-5]\d) of {IMAGES} images", log.read_text()), "slices on nodes must move the command's progress bar"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_warning_and_an_error_on_a_node_are_as_on_threads(
    source: Path, by_threads: dict[str, pl.DataFrame], cluster: Cluster, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """The node has a damaged ONNX Runtime, of which the library warns. The error is that of a damaged shard, which the run then makes again."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('damaged')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        add_node(cluster)
    store = shutil.copytree(source.parent / "threads", tmp_path / "store")
    shard = next(store.glob("in-*/embeddings/*/[!_]*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    monkeypatch.setenv("PREFECT_LOGGING_EXTRA_LOGGERS", "gsec_core")  # as for deployed runs
    address = ("--set", f"ray.address={f'{scheme}127.0.0.1:{port}' if scheme else cluster.address}")
    done = gsec("run", source, "--store", store, *SMALL, "--set", "engine=ray", "--clusters", "4", *address, home=tmp_path / "home")
    warning = f"{platform.node()}: lite: ONNX Runtime cannot be used"
    assert done.stderr.count(warning) == 1
    assert f"damaged, set aside and made again: {shard.relative_to(store)}" in done.stderr
    with sqlite3.connect(tmp_path / "home" / "prefect.db") as database:
        failed = database.execute("select name from task_run where state_name = 'Failed' order by name").fetchall()  # ends of the last tasks may be missing
        logged = database.execute("select task_run.name from log join task_run on log.task_run_id = task_run.id where message like ?", (f"{warning}%",))
        assert logged.fetchall() == [("encode-1",)]
    assert failed == [("gsec-refit-0",), ("refit-1",)], "the slice that read the damaged shard, and its stage"


def test_a_run_without_a_node_says_so_and_ends_its_slices_when_it_is_ended(source: Path, cluster: Cluster, tmp_path: Path) -> None:
    node = add_node(cluster)
    process = started(source, tmp_path / "store", cluster.address, tmp_path / "log")
    begun(process, tmp_path / "store", "encode")
    cluster.remove_node(node, allow_graceful=False)
    wait(lambda: "no node of the Ray cluster is left" in (tmp_path / "log").read_text(), PATIENCE, tmp_path / "log")
    node = add_node(cluster)
    wait(lambda: bool(working(node)), PATIENCE, tmp_path / "log")
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    wait(lambda: not working(node), 120)


def test_slices_that_hang_are_ended_with_an_error(source: Path, cluster: Cluster, tmp_path: Path) -> None:
    """Here hang_timeout is one second, which a process exceeds while it loads torch."""
    node = add_node(cluster)
    address = ("--set", f"ray.address={cluster.address}", "--set", "hang_timeout=1")
    done = gsec("run", source, "--store", tmp_path / "store", *SPREAD, *address, home=source.parent / "home", check=1)
    assert "stage encode made no progress for 1 s (hang_timeout) and was ended" in done.stderr
    wait(lambda: not working(node), 120)


def test_a_slice_that_is_ended_each_time_for_lack_of_memory_ends_the_run_with_what_to_do(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_usage_threshold", "0.001")
        add_node(cluster)
    assert "of the Ray cluster is short of memory (" in refused(tmp_path / "store", {"address": cluster.address})
    monkeypatch.setattr("tasks.cluster._check_nodes", lambda nodes, store: None)  # as if other programs had taken the memory after this check
    monkeypatch.setattr("tasks.cluster._worked", lambda *arguments: time.sleep(PATIENCE))
    monkeypatch.setattr("tasks.cluster.RETRIES", 1)
    config = PipelineConfig.model_validate({"store": str(tmp_path / "store"), "engine": "ray", "ray": {"address": cluster.address}})
    with engine.opened(config) as where:
        assert isinstance(where, RayEngine)
        with pytest.raises(GsecError, match=r"for lack of memory each time it was started \(.* low on memory.*\)\. Set a larger ray\.cpus"):
            where._make(config, "", "encode", 0, [], lambda by: None)


def test_progress_of_a_slice_whose_process_died_is_taken_back(
    source: Path, cluster: Cluster, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_node(cluster)
    seen = tmp_path / "seen"

    class Watcher:
        def __init__(self) -> None:
            self.told: list[int] = []

        def begin(self, stage: str, units: int, unit: str, there: int) -> None: ...

        def end(self, stage: str, sums: Mapping[str, float]) -> None: ...

        def advance(self, stage: str, by: int) -> None:
            self.told.append(by)
            seen.touch()

    def dies_once(config: PipelineConfig, run_id: str, stage: str, step: int, names: list[str], sender: Sender) -> tuple[dict[str, float], str, int]:
        if not seen.exists():
            sender.told.add.remote(sender.slice, 8)
            while not seen.exists():
                time.sleep(0.05)
            os._exit(1)
        return {"shards": 1}, "node", 5

    monkeypatch.setattr("tasks.cluster._worked", dies_once)
    config = settings(source, tmp_path / "store", engine="ray", ray={"address": cluster.address})
    run, _ = pipeline.request(config)
    watcher = Watcher()
    with asking(server), engine.opened(config) as where, progress.watched(watcher):

        @flow
        def one_slice() -> list[dict[str, float]]:
            return where.run(config, run.id, encode.STAGE, 0, [encode.STAGE.steps[0].plan(slices.context(config, run.id))], PATIENCE)

        assert one_slice.with_options(task_runner=where.runner(config))() == [{"shards": 1}]
    assert [by for by in watcher.told if by] == [8, -8, 5]


def working(node: Any) -> list[str]:
    """The processes of a node that work on a slice; Ray names them after their task."""
    raylet = next(info.process.pid for info in node.all_processes["raylet"])
    found = subprocess.run(["ps", "--ppid", str(raylet), "-o", "args="], capture_output=True, text=True, check=False).stdout
    return [line for line in found.splitlines() if line.startswith("ray::slice")]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"gpus": 4}, "ray.gpus = 4, of 0 on the largest"),
        ({"cpus": 900}, "ray.cpus = 900, of 1 on the largest"),
        ({"memory": 60_000}, "ray.memory = 60000, of "),
        ({"address": "ray://127.0.0.1:9"}, "no Ray cluster can be used there"),
    ],
)
def test_resources_that_the_cluster_lacks_or_a_missing_cluster_are_refused(cluster: Cluster, tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    add_node(cluster)
    assert said in refused(tmp_path / "store", {"address": cluster.address, **asked})
    assert not (tmp_path / "store").exists(), "nothing may be written"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_another_program_answers_is_refused_without_the_minutes_that_ray_would_try(tmp_path: Path, scheme: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        said = refused(tmp_path / "store", {"address": f"{scheme}127.0.0.1:{server.server_port}"})
        server.shutdown()
    assert "no Ray cluster can be used there (failed to connect" in said
    assert time.monotonic() - began < 90
    assert not (tmp_path / "store").exists(), "nothing may be written"


def test_a_driver_without_the_clusters_token_is_refused(source: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))  # there may be a token in the user's own
    done = gsec("run", source, "--store", tmp_path / "store", *SPREAD, "--set", f"ray.address={cluster.address}", home=source.parent / "home", check=2)
    assert f"ray.address = {cluster.address}: no Ray cluster can be used there (Token authentication is enabled but no" in done.stderr


@pytest.mark.parametrize(("hidden", "said"), [("store", "it does not see files written to"), ("package", "cannot run gsec")])
def test_a_node_that_cannot_see_the_store_or_lacks_gsec_is_refused(
    cluster: Cluster, tmp_path: Path, hidden: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The node runs in a mount namespace of its own, where an empty folder hides the store or the package."""
    (tmp_path / "store").mkdir()
    folder = tmp_path / "store" if hidden == "store" else Path(gsec_core.__file__).parent
    begin = f"mount -t tmpfs none {folder} && exec {Path(sys.executable).parent / 'ray'} start --block --num-cpus 1 --address {cluster.address}"
    there = len(ray_nodes(cluster))
    with (tmp_path / "node.log").open("w") as output:
        node = subprocess.Popen(["unshare", "--mount", "sh", "-c", begin], stdout=output, stderr=output, start_new_session=True)
    try:
        wait(lambda: len(ray_nodes(cluster)) > there, PATIENCE, tmp_path / "node.log")
        monkeypatch.setattr("tasks.cluster.SLOW", 0.001)
        assert said in refused(tmp_path / "store", {"address": cluster.address})
        assert f"for a process to start on {platform.node()} (" in caplog.text
        assert not list((tmp_path / "store").rglob("*.*")), "no probe file may be left"
    finally:
        os.killpg(node.pid, signal.SIGTERM)
        node.wait(120)
        wait(lambda: len(ray_nodes(cluster)) == there, 120)


def test_a_node_that_dies_while_nodes_are_checked_is_not_a_reason_to_refuse(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add_node(cluster)
    dying = add_node(cluster)
    monkeypatch.setattr("tasks.cluster._check_room", lambda nodes, wanted: cluster.remove_node(dying, allow_graceful=False))
    with engine.opened(PipelineConfig(store=str(tmp_path / "store"), engine="ray", ray={"address": cluster.address})):
        assert f"node {platform.node()} (" in caplog.text
        assert "has left the Ray cluster" in caplog.text


def ray_nodes(cluster: Cluster) -> list[Any]:
    """The nodes that are alive, as the head knows them."""
    return [node for node in cluster.global_state.node_table() if node["Alive"]]


def refused(store: Path, asked: dict[str, Any]) -> str:
    """The refusal when the engine of these settings is opened."""
    with pytest.raises(Refused) as error, engine.opened(PipelineConfig(store=str(store), engine="ray", ray=asked)):
        pass
    return str(error.value)
