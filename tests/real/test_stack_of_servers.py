"""A stack on PostgreSQL and Redis, with a password for every service that can have one."""

import asyncio
import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prefect_redis.client import get_async_redis_client
from prefect_redis.messaging import Cache, Publisher

from deployments.server import PUBLISHER

from ..pictures import write_pictures
from .services import postgres_server, redis
from .stacks import Stack, stack_in

SLICES = 600

AUTH, TOKEN, PASSWORD = "operator:s3cret-of-prefect", "t0ken-of-reports", "p@ss/word"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("servers")
    write_pictures(folder / "images", range(SLICES))
    environment = {"PREFECT_SERVER_API_AUTH_STRING": AUTH, "GSEC_REPORTS_TOKEN": TOKEN}
    with (
        postgres_server(folder / "postgres", PASSWORD) as database,
        redis(folder / "redis") as port,
        stack_in(folder, {**environment, "PGPASSWORD": PASSWORD}) as stack,
    ):
        url = f"postgresql+asyncpg://prefect@127.0.0.1:{database.port}/prefect"
        entry = {"source": folder / "images", "shard_rows": 1, "batch_size": 1, "settings": "max_slices = 1000\n"}
        stack.write({"images": entry}, f'database = "{url}"\nredis = "127.0.0.1:{port}"\n')
        stack.up()
        yield stack


def test_the_server_publishes_each_event_when_it_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event that Prefect collects instead can be lost to its timer."""

    async def publish() -> list[int]:
        published, client = [], get_async_redis_client()
        async with Publisher("events", Cache(), deduplicate_by="id") as publisher:
            for number in range(3):
                await publisher.publish_data(b"{}", {"id": str(number)})
                published.append(await client.xlen("events"))
        return published

    with redis(tmp_path / "redis") as port, ThreadPoolExecutor(1) as another:  # a thread in which no event loop runs
        for name, value in {**PUBLISHER, "PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1", "PREFECT_REDIS_MESSAGING_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        assert another.submit(asyncio.run, publish()).result() == [1, 2, 3]


def test_a_restart_of_the_server_during_a_run_loses_no_run_and_few_task_records(stack: Stack) -> None:
    """With Prefect's default settings, many of so many task records would be lost even without a restart.

    Single records may be lost: Prefect's client stops sending its unconfirmed events again if its timer and an event reconnect at the same time.
    """
    run = stack.begin("gsec/images")
    embeddings = stack.store.glob
    deadline = time.monotonic() + 300
    while len(list(embeddings("*/embeddings/*/*.parquet"))) < SLICES // 6:
        assert time.monotonic() < deadline, stack.logs()
        time.sleep(0.2)
    server = stack.process("server")
    began = server.create_time()
    server.terminate()
    server.wait(120)
    assert len(list(embeddings("*/embeddings/*/*.parquet"))) < SLICES, "the run must still have been encoding, or this test would prove nothing"
    stack.up()
    assert stack.process("server").create_time() > began
    assert stack.ended(run, 600)["name"] == "Completed"
    assert len(list(embeddings("*/embeddings/*/*.parquet"))) == SLICES
    [encode] = [child for child in stack.children(run) if child["name"].startswith("encode-")]
    wanted = {"flow_runs": {"id": {"any_": [encode["id"]]}}}

    def recorded(state: str) -> int:
        count: int = stack.api("task_runs/count", {**wanted, "task_runs": {"state": {"type": {"any_": [state]}}}})
        return count

    deadline = time.monotonic() + 120  # records are written some time after the events
    while recorded("COMPLETED") < SLICES and time.monotonic() < deadline:
        time.sleep(1)
    print(f"task runs of {SLICES} slices on record as completed: {recorded('COMPLETED')}")
    assert recorded("COMPLETED") > 0.98 * SLICES


def test_without_the_right_secret_no_service_answers_except_at_its_health(stack: Stack) -> None:
    """Every service is asked without, with a wrong, and with the right secret."""
    right = base64.b64encode(AUTH.encode()).decode()
    wrong = base64.b64encode(b"operator:guess").decode()
    table = [
        ("prefect flow runs", "POST", f"{stack.url}/api/flow_runs/filter", f"Basic {wrong}", f"Basic {right}"),
        ("prefect deployments", "POST", f"{stack.url}/api/deployments/filter", f"Basic {wrong}", f"Basic {right}"),
        ("prefect metrics", "GET", f"{stack.url}/api/metrics", f"Basic {wrong}", f"Basic {right}"),
        ("prefect settings", "GET", f"{stack.url}/api/admin/settings", f"Basic {wrong}", f"Basic {right}"),
        ("reports front page", "GET", f"{stack.reports}/", "Bearer guess", f"Bearer {TOKEN}"),
        ("reports metrics", "GET", f"{stack.reports}/metrics", "Bearer guess", f"Bearer {TOKEN}"),
        ("reports published", "GET", f"{stack.reports}/published/images", "Bearer guess", f"Bearer {TOKEN}"),
    ]
    for what, method, url, bad, good in table:
        body = {} if method == "POST" else None
        answers = [httpx.request(method, url, json=body, headers=headers, timeout=60) for headers in ({}, {"Authorization": bad}, {"Authorization": good})]
        codes = [answer.status_code for answer in answers]
        print(f"{what:<22} {codes}")
        assert codes[0] in (401, 403), what
        assert codes[1] in (401, 403), what
        assert codes[2] in (200, 302), what
    for url in (f"{stack.url}/api/health", f"{stack.reports}/health"):
        assert httpx.get(url, timeout=60).is_success


def test_no_secret_is_in_a_log_or_a_record(stack: Stack) -> None:
    found = (path for folder in ("home", "store") for path in (stack.folder / folder).rglob("*"))
    files = [path for path in found if path.is_file() and path.suffix in (".log", ".json", ".html")]
    assert files
    for path in files:
        text = path.read_text(errors="replace")
        for secret in (AUTH.partition(":")[2], TOKEN, PASSWORD, "p%40ss"):
            assert secret not in text, path
