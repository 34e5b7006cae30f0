"""A stack as an operator runs it: started by `gsec up` from a stack file, and asked by Prefect's API."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil

from ..command import GSEC, free_port, has_ended

SETTINGS = """
clusters = 3
threads = 1
encode = {{ batch_size = {batch_size} }}
ingest = {{ shard_rows = {shard_rows} }}
baseline = {{ n_init = 2 }}
train = {{ n_members = 10 }}
gsec = {{ ensemble_size = 4, max_steps = 20 }}
"""

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass
class Stack:
    """One stack file and the processes that `gsec up` starts from it."""

    folder: Path
    port: int = field(default_factory=free_port)
    reports_port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    program: Sequence[str | Path] = tuple(GSEC)
    called_in: Path | None = None

    @property
    def file(self) -> Path:
        return self.folder / "stack.toml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def reports(self) -> str:
        return f"http://127.0.0.1:{self.reports_port}"

    def write(self, pipelines: Mapping[str, Mapping[str, Any]], more: str = "") -> None:
        """Write the stack file. ``pipelines``: name -> source, and optionally cron, shard_rows, batch_size and more settings as TOML."""
        text = f'home = "home"\nport = {self.port}\nreports_port = {self.reports_port}\ncrashed_after = 60\n{more}\n'
        for name, entry in pipelines.items():
            cron = f'cron = "{entry["cron"]}"\n' if "cron" in entry else ""
            settings = SETTINGS.format(shard_rows=entry.get("shard_rows", 8), batch_size=entry.get("batch_size", 8)) + entry.get("settings", "")
            text += f'[pipelines.{name}]\n{cron}[pipelines.{name}.settings]\nsource = "{entry["source"]}"\nstore = "{self.store}"\n{settings}\n'
        self.file.write_text(text)

    def gsec(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        command = [*self.program, *words]
        done = subprocess.run(command, cwd=self.called_in, capture_output=True, text=True, env=environment, timeout=900, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def up(self) -> str:
        return self.gsec("up", "--config", str(self.file)).stderr

    def down(self) -> str:
        return self.gsec("down", "--config", str(self.file)).stderr

    def logs(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in sorted((self.folder / "home" / "logs").glob("*.log")))

    def process(self, service: str) -> psutil.Process:
        return psutil.Process(json.loads((self.folder / "home" / "processes.json").read_text())[service]["pid"])

    def api(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer of Prefect's API to a GET, or to a POST of ``body``. It retries as Prefect's own client does."""
        auth = tuple(self.environment["PREFECT_SERVER_API_AUTH_STRING"].split(":")) if "PREFECT_SERVER_API_AUTH_STRING" in self.environment else None
        for left in range(5, -1, -1):
            try:
                answer = httpx.request("GET" if body is None else "POST", f"{self.url}/api/{path}", json=body, auth=auth, timeout=60)
            except httpx.TimeoutException:
                assert left, f"{path}: no answer\n{self.logs()}"
                continue
            if answer.status_code != 503 or not left:  # which Prefect's server answers if SQLite is overloaded
                break
            time.sleep(2)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def begin(self, deployment: str, **parameters: Any) -> str:
        """Start a run as the dashboard's form does: the deployment's parameters with some of them changed. Returns its id."""
        there = self.api(f"deployments/name/{deployment}")
        config = _over(there["parameters"].get("config", {}), parameters.pop("config", {}))
        wanted = {**there["parameters"], **({"config": config} if config else {}), **parameters}
        body = {"parameters": wanted, "state": {"type": "SCHEDULED"}, "idempotency_key": uuid4().hex}
        run: str = self.api(f"deployments/{there['id']}/create_flow_run", body)["id"]
        return run

    def ended(self, run: str, seconds: float = 900) -> dict[str, Any]:
        """Wait until the run has ended and return its last state."""
        return self.when(run, lambda state: state["type"] in ENDED, seconds)

    def when(self, run: str, condition: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            state: dict[str, Any] = self.api(f"flow_runs/{run}")["state"]
            if condition(state):
                return state
            assert time.monotonic() < deadline, f"after {seconds:.0f} s the run is {state['name']}: {state['message']}\n{self.logs()}"
            time.sleep(0.5)

    def artifacts(self, key: str) -> list[dict[str, Any]]:
        """The artifacts whose key is like ``key``, newest first."""
        found: list[dict[str, Any]] = self.api("artifacts/filter", {"artifacts": {"key": {"like_": key}}, "sort": "CREATED_DESC"})
        return found

    def children(self, run: str) -> list[dict[str, Any]]:
        """The flow runs that a flow run has started."""
        found: list[dict[str, Any]] = self.api("flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}, "sort": "START_TIME_ASC"})
        return found


@contextmanager
def stack_in(
    folder: Path, environment: Mapping[str, str] | None = None, program: Sequence[str | Path] = tuple(GSEC), called_in: Path | None = None
) -> Iterator[Stack]:
    """A stack that is stopped at the end, when none of its processes may be left. ``program`` is the `gsec` to call, in the folder ``called_in``."""
    stack = Stack(folder, environment=dict(environment or {}), program=program, called_in=called_in)
    yield stack
    processes = [child for service in ("server", "ray", "worker", "reports") for child in _family(stack, service)]
    stack.down()
    assert all(map(has_ended, processes))


def _family(stack: Stack, service: str) -> list[psutil.Process]:
    try:
        process = stack.process(service)
    except (KeyError, FileNotFoundError, psutil.NoSuchProcess):
        return []
    return [process, *process.children(recursive=True)]


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    return {**below, **{name: _over(below[name], value) if isinstance(value, Mapping) else value for name, value in above.items()}}
