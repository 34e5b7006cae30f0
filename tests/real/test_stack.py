"""One stack, started by `gsec up`: its deployments and schedules, and its recovery from faults."""

import json
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from gsec_core import pipeline
from gsec_core.stages.base import Context
from gsec_core.store import Run, Store
from gsec_core.tables import EMBEDDINGS_TABLE

from ..command import GSEC, free_port, has_ended, wait
from ..pictures import cluster, labels, settings, write_pictures
from ..results.test_publishing import write_groups
from ..stages.steps import STAGES, run_stages
from .stacks import Stack, stack_in


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    write_groups(folder / "kinds", range(10))
    write_groups(folder / "many", range(100))
    write_pictures(folder / "often", range(9))
    with stack_in(folder, {"RAY_AUTH_TOKEN": uuid4().hex}) as stack:
        often = {"source": folder / "often", "cron": "* * * * *"}
        pipelines = {"kinds": {"source": folder / "kinds"}, "many": {"source": folder / "many", "shard_rows": 10}, "often": often}
        stack.write(pipelines, f'runs_at_once = 2\nlogs = "json"\nroots = ["{folder}/bad"]\nray = {{ port = {free_port()}, cpus = 1 }}')
        stack.up()
        yield stack


@pytest.fixture(scope="module")
def first(stack: Stack) -> str:
    """The id of a completed flow run of the whole pipeline."""
    run = stack.begin("gsec/kinds")
    assert stack.ended(run)["name"] == "Completed"
    return run


def published(stack: Stack, pipeline: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((stack.store / "published" / f"{pipeline}.json").read_text())
    return found


def runs_of(stack: Stack, pipeline: str) -> list[Run]:
    """The runs of one pipeline; the scheduler makes runs of another meanwhile."""
    return [run for run in Store.open(str(stack.store)).runs() if run.request()["config"]["pipeline"] == pipeline]


def test_a_second_gsec_up_changes_nothing(stack: Stack) -> None:
    before = {name: stack.process(name).pid for name in ("server", "ray", "worker", "reports")}
    automations = stack.api("automations/filter", {})
    said = stack.up()
    assert {name: stack.process(name).pid for name in before} == before
    assert said.count("is running") == 4
    assert stack.api("automations/filter", {}) == automations


def test_the_form_of_a_deployment_has_typed_fields_with_help_and_is_validated(stack: Stack) -> None:
    schema = stack.api("deployments/name/gsec/kinds")["parameter_openapi_schema"]
    clusters = schema["definitions"]["PipelineConfig"]["properties"]["clusters"]
    assert {"minimum": 2, "maximum": 100_000, "type": "integer"}.items() <= clusters["anyOf"][1].items()
    assert "Number of clusters" in clusters["description"]
    with pytest.raises(httpx.HTTPStatusError, match=r"409|422"):
        stack.begin("gsec/kinds", config={"clusters": "many"})


def test_a_run_from_the_form_completes_with_artifacts_of_report_progress_and_stages(stack: Stack, first: str) -> None:
    run_id = published(stack, "kinds")["run_id"]
    [link] = [artifact["data"] for artifact in stack.artifacts("report") if artifact["flow_run_id"] == first]
    assert run_id in link
    url = link.partition("](")[2].rstrip(")")
    page = httpx.get(url, timeout=60)
    assert page.status_code == 200
    assert "30 images in 3 clusters" in page.text
    [encode] = [child for child in stack.children(first) if child["name"].startswith("encode")]
    shown = min(datetime.fromisoformat(artifact["created"]) for artifact in stack.artifacts("encode-%") if artifact["flow_run_id"] == encode["id"])
    first_shard = min(line["created"] for line in made(stack, run_id) if line["stage"] == "encode")
    assert shown.timestamp() < first_shard, "its progress must be visible before anything is done"
    [table] = [json.loads(artifact["data"]) for artifact in stack.artifacts("stages") if artifact["flow_run_id"] == first]
    assert [row["stage"] for row in table] == [child["name"].partition("-")[0] for child in stack.children(first)[1:]]


def test_a_single_stage_with_a_changed_setting_makes_a_run_that_shares_earlier_stages(stack: Stack, first: str) -> None:
    old = Store.open(str(stack.store)).run(published(stack, "kinds")["run_id"])
    for stage, changed, shared in (
        ("train", {"train": {"random_state": 5}}, ["encode", "refit", "baseline", "prototypes", "describe", "fuse", "prepare", "duplicates", "train"]),
        ("encode", {"encode": {"precision": "bf16"}}, ["encode"]),
    ):
        before = {run.id for run in runs_of(stack, "kinds")}
        state = stack.ended(stack.begin(f"gsec-{stage}/kinds", config=changed))
        assert state["name"] == "Completed", state["message"]
        [made] = [run for run in runs_of(stack, "kinds") if run.id not in before]
        assert [name for name in made.request()["stages"] if made.is_complete(name)] == shared
        # Stage refit depends on all settings of the training, so its record is always another one.
        assert [name for name in shared if name != "refit" and made.stage(name) != old.stage(name)] == [stage], "only the changed stage may have another record"
        assert [attempt["start"]["stage"] for attempt in made.attempts()] == [stage], "no other stage may be worked on"


def test_running_the_last_stage_alone_publishes_if_allowed_and_sends_events(stack: Stack, first: str) -> None:
    """All stages of a run but the last are done one by one. It has more rejects than allowed by default."""
    (stack.folder / "bad").mkdir()
    write_groups(stack.folder / "bad", range(6))
    (stack.folder / "bad" / "bad.jpg").write_text("no image")
    config = settings(stack.folder / "bad", stack.store, pipeline="alone")
    context = run_stages(config, *STAGES[:-1])
    parameters = {"config": config.model_dump(mode="json", include={"source", "pipeline"}), "run_id": context.run.id}
    for allowed, name, event in ((0.01, "CompletedNotPublished", "held"), (1, "Completed", "published"), (1, "Completed", "kept")):
        state = stack.ended(stack.begin("gsec-report/kinds", **{**parameters, "config": {**parameters["config"], "max_rejects": allowed}}))
        assert state["name"] == name, state["message"]
        body = {"filter": {"event": {"prefix": ["gsec.clustering."]}, "resource": {"id": ["gsec.pipeline.alone"]}}}

        def sent(body: dict[str, Any] = body, event: str = event) -> bool:
            return [found["event"] for found in stack.api("events/filter", body)["events"]][:1] == [f"gsec.clustering.{event}"]

        wait(sent, 300)
    assert published(stack, "alone")["run_id"] == context.run.id


def made(stack: Stack, run_id: str) -> list[dict[str, Any]]:
    """The lines about shards of a run in the worker's log, which includes that of its flows."""
    lines = [json.loads(line) for line in (stack.folder / "home" / "logs" / "worker.log").read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("run") == run_id and line["name"] == "gsec_core.stages.base"]


def planned(run: Run) -> set[tuple[str, str]]:
    """The stages and shards of a run."""
    return {(stage, shard) for stage, record in run.stages().items() for shards in record["tables"].values() for shard in shards}


def test_the_workers_log_has_run_stage_and_shard_of_everything_that_was_made(stack: Stack, first: str) -> None:
    run = Store.open(str(stack.store)).run(published(stack, "kinds")["run_id"])
    assert {(line["stage"], line["shard"]) for line in made(stack, run.id)} == planned(run)


def test_a_stage_whose_inputs_are_missing_fails_with_the_incomplete_stage(stack: Stack, first: str) -> None:
    state = stack.ended(stack.begin("gsec-align/kinds", config={"train": {"random_state": 6}}))
    assert state["type"] == "FAILED"
    assert "which is not complete" in state["message"]


def test_a_path_outside_the_roots_is_refused(stack: Stack, tmp_path: Path) -> None:
    elsewhere, _ = pipeline.request(settings(write_pictures(tmp_path / "elsewhere", range(9)), stack.store))
    for deployment, changed in (
        ("gsec/kinds", {"config": {"source": "/etc"}}),
        ("gsec-encode/kinds", {"config": {"store": "/var/tmp/store"}}),
        ("gsec-encode/kinds", {"run_id": elsewhere.id}),
        ("gsec-maintenance/all", {"stores": ["/var/tmp/store"]}),
        ("gsec-assign-images/kinds", {"source": "/etc"}),
    ):
        state = stack.ended(stack.begin(deployment, **changed))
        assert state["type"] == "FAILED"
        assert "a deployed flow may use what is under" in state["message"]


def test_images_can_be_assigned_to_the_published_clustering(stack: Stack, first: str) -> None:
    state = stack.ended(stack.begin("gsec-assign-images/kinds", source=str(stack.folder / "often")))
    assert state["name"] == "Completed", state["message"]


def test_maintenance_completes_and_the_publication_is_still_there(stack: Stack, first: str) -> None:
    assert stack.ended(stack.begin("gsec-maintenance/all"))["name"] == "Completed"
    assert published(stack, "kinds")


def test_a_schedule_makes_future_runs_and_a_due_run_starts(stack: Stack) -> None:
    deployment = stack.api("deployments/name/gsec/often")["id"]
    body = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = stack.api("flow_runs/filter", body)
        return found

    deadline = time.monotonic() + 300
    while not any(run["state"]["type"] == "COMPLETED" for run in runs()):
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(1)
    ahead = [run for run in runs() if run["state"]["name"] == "Scheduled" and run["expected_start_time"] > datetime.now(UTC).isoformat()]
    assert ahead
    assert published(stack, "often")["number"] == 1, "later runs must find nothing to do"
    assert stack.api(f"deployments/{deployment}")["global_concurrency_limit"]["limit"] == 1


def until_encoded(stack: Stack, run: str, shards: int) -> None:
    """Wait until a run of ``many`` is running and ``shards`` shards are encoded, by this run or before it."""
    stack.when(run, lambda state: state["name"] == "Running", 300)
    deadline = time.monotonic() + 300
    while len(list(stack.store.glob("many-*/embeddings/*/*.parquet"))) < shards:
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(0.02)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def crashes(stack: Stack, run: str) -> list[str]:
    return [state["name"] for state in stack.api(f"flow_run_states/?flow_run_id={run}") if state["name"] in ("Crashed", "AwaitingRetry")]


def test_after_a_kill_of_worker_and_flow_the_run_is_resumed_and_ends_with_equal_labels(stack: Stack, tmp_path: Path) -> None:
    run = stack.begin("gsec/many")
    until_encoded(stack, run, 2)  # one table of the last shard may be missing
    worker = stack.process("worker")
    kill([*worker.children(recursive=True), worker])
    stack.up()
    state = stack.when(run, lambda state: state["name"] != "Running", 300)
    assert state["type"] in ("CRASHED", "SCHEDULED", "PENDING"), state
    assert stack.when(run, lambda state: state["type"] in ("COMPLETED", "FAILED"), 300)["name"] == "Completed"
    assert crashes(stack, run) == ["Crashed", "AwaitingRetry"]
    assert not [child for child in stack.children(run) if child["state"]["type"] == "RUNNING"], "no stage may stay in the state running"
    done = Store.open(str(stack.store)).run(published(stack, "many")["run_id"])
    undisturbed, _, _ = cluster(done.config().model_copy(update={"store": str(tmp_path)}))
    assert labels(Context.of(done, done.config())) == labels(undisturbed)
    facts = [attempt for attempt in done.attempts() if attempt["start"]["stage"] == "encode"]
    assert [attempt["end"] is None for attempt in facts] == [True, False], "the first attempt was cut, and the second did the rest"
    assert facts[1]["end"]["sums"]["there"] >= 1


def test_after_kills_of_a_flow_and_of_its_worker_the_run_goes_on_with_the_redo_it_began(stack: Stack) -> None:
    run = stack.begin("gsec/many", redo=["encode"])
    there = len(list(stack.store.glob("many-*/embeddings/*/*.parquet")))
    until_encoded(stack, run, there + 1)
    kill(stack.process("worker").children(recursive=True))
    wait(lambda: "AwaitingRetry" in crashes(stack, run), 300)  # looked up in its history, since it may run again within a second
    assert crashes(stack, run) == ["Crashed", "AwaitingRetry"], "the worker reports the crash twice, which must count once"
    until_encoded(stack, run, there + 3)
    worker = stack.process("worker")
    flows = worker.children(recursive=True)
    worker.kill()
    assert not all(map(has_ended, flows))
    stack.down()
    assert all(map(has_ended, flows))
    stack.up()
    assert stack.when(run, lambda state: state["type"] in ("COMPLETED", "FAILED"), 300)["name"] == "Completed"
    done = Store.open(str(stack.store)).run(published(stack, "many")["run_id"])
    assert done.request()["redo"] == {"encode": 1}
    assert len(list(stack.store.glob("many-*/embeddings/*/*.parquet"))) == 2 * there


def test_a_taken_port_is_refused_before_anything_starts(stack: Stack, tmp_path: Path) -> None:
    other = Stack(tmp_path, port=stack.port)
    other.write({})
    done = subprocess.run([*GSEC, "up", "--config", str(other.file)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"port = {stack.port}: nothing can listen there" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_pipeline_uses_the_ray_head_of_the_stack(stack: Stack, first: str) -> None:
    changed = {"engine": "ray", "ray": {"address": "auto"}, "encode": {"batch_size": 5}}
    began = datetime.now(UTC).isoformat()
    state = stack.ended(stack.begin("gsec-encode/kinds", config=changed))
    assert state["name"] == "Completed", state["message"]
    [run] = [run for run in runs_of(stack, "kinds") if run.config().encode.batch_size == 5]
    assert run.is_complete("encode")
    lines = made(stack, run.id)
    assert {(line["stage"], line["shard"]) for line in lines} == planned(run)
    assert all(line["message"].startswith(f"{platform.node()}: encode: ") for line in lines), "only nodes put their name before a message"
    told = stack.api("logs/filter", {"logs": {"timestamp": {"after_": began}}, "sort": "TIMESTAMP_DESC"})
    shards = [line["message"] for line in told if line["message"].startswith(f"{platform.node()}: encode: shard ") and line["task_run_id"]]
    assert len(shards) == len(run.stages()["encode"]["tables"][EMBEDDINGS_TABLE]), "the dashboard must have a log line for each shard"
    assert any(line["message"].startswith(f"encode on {platform.node()}: ") for line in told), "the log must say on which node they were made"


def test_down_and_up_again_keeps_the_records(stack: Stack, first: str) -> None:
    assert stack.down().count("stopped") == 4
    assert "nothing is running" in stack.down()
    stack.up()
    assert stack.api(f"flow_runs/{first}")["state"]["name"] == "Completed"
