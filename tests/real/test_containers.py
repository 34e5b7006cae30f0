"""The services of docker-compose.yml run without containers: their commands and variables with other ports and folders."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from redis import Redis

from tests.compose import CONTAINERS, command, compose, environment

from ..command import free_port
from .services import postgres_server, program, redis, running, wait

SERVICES: dict[str, dict[str, Any]] = compose()["services"]


@dataclass
class Stack:
    """Starts services of the file on this machine. ``places`` maps hosts and folders of the containers to those of this machine."""

    folder: Path
    places: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def command(self, name: str) -> list[str]:
        """The command of a service, run through the entrypoint as in the image."""
        words = [self.here(word) for word in command(SERVICES[name])]
        if name in self.ports:
            words[words.index("--port") + 1] = str(self.ports[name])
        return ["sh", str(CONTAINERS / "entrypoint.sh"), *words]

    def environment(self, name: str) -> dict[str, str]:
        # The programs of the test's environment, but none of its other variables.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.folder), **environment(SERVICES[name], self.places), **self.variables}

    def run(self, name: str) -> str:
        done = subprocess.run(self.command(name), env=self.environment(name), cwd=self.folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def healthy(self, name: str, port: int) -> bool:
        """The result of the service's health check, with another port in it."""
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        inside = command(SERVICES[name])[-1] if name in self.ports else "8080"
        check = [word.replace(f":{inside}/", f":{port}/") for word in words]
        return subprocess.run(check, env=self.environment(name), capture_output=True, check=False).returncode == 0

    def here(self, text: str) -> str:
        for place, elsewhere in self.places.items():
            text = text.replace(place, elsewhere)
        return text

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text()

    def api(self, path: str, body: object = None, password: str | None = None) -> Any:
        token = b64encode(f"gsec:{self.secret('prefect_password') if password is None else password}".encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['server']}/api{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read().decode()
            return json.loads(text) if "json" in answer.headers["Content-Type"] else text


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """PostgreSQL and Redis are running, the secrets are made and the database is migrated."""
    folder = tmp_path_factory.mktemp("stack")
    subprocess.run(["sh", shutil.copy(CONTAINERS / "secrets.sh", folder)], check=True)
    password = (folder / "secrets/database_password").read_text()
    options = [word for word in command(SERVICES["redis"]) if word != "redis-server"]
    with postgres_server(folder / "postgres", password) as database, redis(folder / "redis", options) as messages:
        port = free_port()
        places = {
            "postgres:5432": f"127.0.0.1:{database.port}",
            "server:4200": f"127.0.0.1:{port}",
            "0.0.0.0": "127.0.0.1",
            "/run/secrets": str(folder / "secrets"),
            "/var/lib/gsec": str(folder / "home"),
            "/etc/gsec": str(CONTAINERS),
        }
        stack = Stack(folder, places, {"PREFECT_REDIS_MESSAGING_HOST": "127.0.0.1", "PREFECT_REDIS_MESSAGING_PORT": str(messages)}, {"server": port})
        migrated = stack.run("migrate")
        assert "succeeded" in migrated, migrated
        yield stack


@pytest.fixture(scope="module")
def server(stack: Stack) -> Iterator[Stack]:
    log = stack.folder / "server.log"
    with running(stack.command("server"), log, stack.environment("server")) as process:
        wait(lambda: process.poll() is not None or stack.healthy("server", stack.ports["server"]), "Prefect to be healthy", log, 300)
        assert process.poll() is None, log.read_text()
        yield stack
        text = log.read_text()
    assert "Traceback" not in text, text


def test_the_server_requires_the_password_everywhere_except_at_its_health(server: Stack) -> None:
    for path in ("/metrics", "/admin/settings", "/work_pools/gsec"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.api(path, password="another")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ports['server']}/api/health", timeout=60) as answer:
        assert answer.status == 200


def test_the_server_has_the_settings_of_the_compose_file(server: Stack) -> None:
    settings = server.api("/admin/settings")["server"]
    assert settings["database"]["migrate_on_start"] is False
    assert settings["analytics_enabled"] is False
    assert settings["events"]["messaging_broker"] == settings["events"]["messaging_cache"] == "prefect_redis.messaging"
    assert settings["events"]["causal_ordering"] == "prefect_redis.ordering"
    assert settings["concurrency"]["lease_storage"] == "prefect_redis.lease_storage"
    assert settings["services"]["db_vacuum"]["enabled"] is True
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.ports['server']}/ui-settings", timeout=60)
    shown = json.load(page)
    assert (shown["api_url"], shown["auth"]) == ("http://127.0.0.1:4200/api", "BASIC")


def test_an_event_goes_through_redis_to_the_database(server: Stack) -> None:
    run = server.api("/flow_runs/", {"flow_id": server.api("/flows/", {"name": "seen"})["id"], "state": {"type": "SCHEDULED"}})
    wanted = {"filter": {"any_resource": {"id": [f"prefect.flow-run.{run['id']}"]}}}
    wait(lambda: server.api("/events/filter", wanted)["total"] > 0, "the event of a flow run", server.folder / "server.log")
    with Redis(port=int(server.variables["PREFECT_REDIS_MESSAGING_PORT"])) as messages:
        assert b"events" in set(messages.scan_iter(_type="stream"))


def test_a_worker_comes_online_in_the_pool(server: Stack) -> None:
    server.api("/work_pools/", {"name": "gsec", "type": "process"})
    log, port = server.folder / "worker.log", free_port()
    with running(server.command("worker"), log, {**server.environment("worker"), "PREFECT_WORKER_WEBSERVER_PORT": str(port)}):
        wait(lambda: [one["status"] for one in server.api("/work_pools/gsec/workers/filter", {})] == ["ONLINE"], "a worker online", log, 300)
        wait(lambda: server.healthy("worker", port), "the worker to be healthy", log)


def test_the_pipelines_of_the_stack_file_are_deployed(server: Stack) -> None:
    names = server.run("deploy").split("\n")
    assert {"gsec/photos", "gsec-encode/photos", "gsec-maintenance/all"} <= set(names)
    assert server.run("deploy").split("\n") == names
    assert server.api("/deployments/name/gsec/photos")["parameters"]["config"]["source"] == "/images"


def test_the_reports_are_served_only_with_the_token(stack: Stack) -> None:
    port, log = free_port(), stack.folder / "reports.log"
    there = Stack(stack.folder, {**stack.places, "/store": str(stack.folder / "store")}, ports={"reports": port})
    with running(there.command("reports"), log, there.environment("reports")):
        wait(lambda: there.healthy("reports", port), "the reports to be healthy", log)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {there.secret('reports_token')}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert b"gsec_runs" in answer.read()


def test_prometheus_accepts_its_configuration_and_scrapes_prefects_metrics(server: Stack) -> None:
    """The mounted configuration, with other hosts and folders, is valid, and Prefect's target is up."""
    configuration = server.folder / "prometheus.yml"
    configuration.write_text(server.here((CONTAINERS / "prometheus.yml").read_text()).replace("15s", "1s"))
    checked = subprocess.run([program("promtool"), "check", "config", str(configuration)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    port, log = free_port(), server.folder / "prometheus.log"
    folders = {"/etc/prometheus/prometheus.yml": str(configuration), "=/prometheus": f"={server.folder / 'prometheus'}"}
    words = command(SERVICES["prometheus"])
    for place, elsewhere in folders.items():
        words = [word.replace(place, elsewhere) for word in words]
    with running([program("prometheus"), *words, f"--web.listen-address=127.0.0.1:{port}"], log):

        def health(job: str) -> list[str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets?state=active", timeout=5) as answer:
                    return [target["health"] for target in json.load(answer)["data"]["activeTargets"] if target["labels"]["job"] == job]
            except OSError:
                return []

        wait(lambda: health("prefect") == ["up"], "Prefect's target to be up", log)
        assert health("vllm") == [], "a host name that does not exist must give no target"


def test_the_bucket_is_made_and_a_second_run_of_its_service_succeeds(stack: Stack) -> None:
    with ExitStack() as exits:
        s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        s3.start()
        exits.callback(s3.stop)
        host, port = s3.get_host_and_port()
        there = Stack(stack.folder, {**stack.places, "s3:8333": f"{host}:{port}"})
        there.run("bucket")
        there.run("bucket")
        with urllib.request.urlopen(f"http://{host}:{port}/moto-api/data.json", timeout=60) as answer:
            assert "gsec" in json.dumps(json.load(answer)["s3"])
