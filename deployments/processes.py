"""The processes of a stack on this machine: started, found again, stopped.

What was started is recorded in ``HOME/processes.json`` with the moment it began, so that nobody takes another process with the
same number for it. Each writes to ``HOME/logs/NAME.log``.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from deployments import config
from deployments.config import AUTH, POOL, StackConfig
from gsec_core.errors import GsecError, Refused

START_SECONDS = 180
"""A service that does not answer by then has failed to start."""

STOP_SECONDS = 30
"""A service that has not ended by then is killed."""

PROGRAMS = Path(sys.executable).parent


@dataclass(frozen=True)
class Service:
    """One process."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """What it is told beside the environment of whoever starts it."""
    is_ready: Callable[[], bool]


def services(stack: StackConfig, environment: Mapping[str, str]) -> list[Service]:
    """In the order they start."""
    auth = environment.get(AUTH)
    server = Service(
        "server",
        (str(PROGRAMS / "prefect"), "server", "start", "--host", stack.host, "--port", str(stack.port)),
        config.server_environment(stack, environment),
        lambda: _answers(f"{stack.url()}/health"),
    )
    worker = Service(
        "worker",
        (str(PROGRAMS / "prefect"), "worker", "start", "--pool", POOL, "--type", "process", "--name", "gsec"),
        config.worker_environment(stack, environment),
        lambda: _works(stack.url(), auth),
    )
    stores = [part for store in stack.stores() for part in ("--store", store)]
    reports = Service(
        "reports",
        (str(PROGRAMS / "gsec"), "serve", *stores, "--host", stack.host, "--port", str(stack.reports_port)),
        {},
        lambda: _answers(f"{stack.reports_url()}/health"),
    )
    return [server, worker, *([reports] if stores else [])]


def start(stack: StackConfig, service: Service) -> bool:
    """Start a service and wait until it answers. False if it is running already, as it should be; one that should be told other things begins anew.

    Raises GsecError with the end of its log if it ends, or does not answer in time.
    """
    there = _running(stack).get(service.name)
    digest = _digest(service)
    if there is not None and there["digest"] == digest:
        _wait(service, psutil.Process(there["pid"]), log_of(stack, service.name), 0)
        return False
    if there is not None:
        stop(stack, service.name)
    log = log_of(stack, service.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        before = output.tell()
        process = subprocess.Popen(
            service.command, env={**os.environ, **service.environment}, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    found = psutil.Process(process.pid)
    _record(stack, service.name, {"pid": process.pid, "began": found.create_time(), "digest": digest})
    _wait(service, found, log, before)
    return True


def stop(stack: StackConfig, name: str) -> bool:
    """Stop a service and all that it has started. False if it is not running."""
    there = _running(stack).get(name)
    if there is not None:
        process = psutil.Process(there["pid"])
        family = [process, *process.children(recursive=True)]
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for lasting in left:
            with suppress(psutil.NoSuchProcess):
                lasting.kill()
        psutil.wait_procs(left, timeout=STOP_SECONDS)
    _record(stack, name, None)
    return there is not None


def started(stack: StackConfig) -> list[str]:
    """Services that are running, the last one started first."""
    return list(_running(stack))[::-1]


def log_of(stack: StackConfig, name: str) -> Path:
    return stack.home / "logs" / f"{name}.log"


def _running(stack: StackConfig) -> dict[str, dict[str, Any]]:
    """What was started and still runs."""
    return {name: record for name, record in _records(stack).items() if _is_alive(record)}


def _is_alive(record: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(record["pid"])
        return bool(process.create_time() == record["began"] and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _records(stack: StackConfig) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads((stack.home / "processes.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def _record(stack: StackConfig, name: str, record: dict[str, Any] | None) -> None:
    records = {other: there for other, there in _records(stack).items() if other != name}
    if record is not None:
        records[name] = record
    path = stack.home / "processes.json"
    if records or path.exists():
        partial = path.with_name(".processes.json.partial")
        partial.write_text(json.dumps(records, indent=1))
        os.replace(partial, path)


def _digest(service: Service) -> str:
    """Of what it is told; secrets come in as a hash alone."""
    told = [list(service.command), sorted(service.environment.items()), sorted(_secrets().items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _secrets() -> dict[str, str]:
    names = (AUTH, "PREFECT_API_AUTH_STRING", "GSEC_REPORTS_TOKEN", "GSEC_CAPTIONER_KEY", "PGPASSWORD")
    return {name: os.environ[name] for name in names if name in os.environ}


def _wait(service: Service, process: psutil.Process, log: Path, before: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not service.is_ready():
        ended = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        if ended or time.monotonic() > deadline:
            end = " ".join(log.read_bytes()[before:].decode(errors="replace").splitlines()[-5:])
            raise GsecError(f"{service.name} {'ended' if ended else f'did not answer in {START_SECONDS} s'}. Its log, {log}, ends: {end}")
        time.sleep(0.5)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _works(url: str, auth: str | None) -> bool:
    """Whether a worker of the pool is online."""
    user, _, password = (auth or "").partition(":")
    try:
        found = httpx.post(f"{url}/work_pools/{POOL}/workers/filter", json={}, timeout=5, auth=(user, password) if auth else None)
        return found.is_success and any(worker["status"] == "ONLINE" for worker in found.json())
    except httpx.HTTPError:
        return False


def check_ports(stack: StackConfig) -> None:
    """Raises Refused if somebody else listens where a service that is to be started would."""
    running = _running(stack)
    for name, port, setting in (("server", stack.port, "port"), ("reports", stack.reports_port, "reports_port")):
        if name not in running:
            try:
                socket.create_server((stack.host, port), family=socket.AF_INET6 if ":" in stack.host else socket.AF_INET).close()
            except OSError as error:
                raise Refused(
                    f"host = {stack.host}, {setting} = {port}: nothing can listen there ({error.strerror}). Stop what does, or choose another."
                ) from None
