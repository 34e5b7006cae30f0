"""The processes of a stack on this machine: started, found again, stopped.

What was started is recorded in ``HOME/processes.json`` with the moment it began, so that nobody takes another process with the
same number for it. It and what it starts in turn carry a mark in their environment, by which they are found when the parent, or
the record, is gone. Each writes to ``HOME/logs/NAME.log``.
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
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from deployments import config
from deployments.config import AUTH, POOL, RAY_TOKEN, RayEntry, StackConfig
from flows.serve.app import TOKEN
from flows.serve.server import token_of
from gsec_core.devices import usable_cores
from gsec_core.errors import GsecError, Refused

START_SECONDS = 180
"""A service that does not answer by then has failed to start."""

STOP_SECONDS = 30
"""A service that has not ended by then is killed."""

NAMES = ("server", "ray", "worker", "reports")
"""Services, in the order they start. They stop in the other: the end of a flow is reported to the server."""

WORKER = "gsec"
"""The worker's name."""

_PYTHON = (sys.executable, "-P", "-m")
"""Programs as modules of this environment, wherever its scripts are. No module is looked for in the folder that the user is in."""

_RAY = (*_PYTHON, "ray.scripts.scripts")

MARK = "GSEC_SERVICE"
"""Environment variable that says which service of which stack a process belongs to."""

SECRETS = (AUTH, "PREFECT_API_AUTH_STRING", TOKEN, RAY_TOKEN, "GSEC_CAPTIONER_KEY", "PGPASSWORD")
"""Environment variables that have them."""

OUTSIDE = ("AWS_", "GOOGLE_", "AZURE_", "HF_", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CUDA_VISIBLE_DEVICES")
"""How variables begin that say how images, stores and models are reached."""

_OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory of a Ray node: rows never pass through Ray."""

PROC = Path("/proc")


@dataclass(frozen=True)
class Service:
    """One process."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """What it is told beside the environment of the process that starts it."""
    is_ready: Callable[[float], bool]
    """Whether it answers, given when its process began, in seconds since the epoch."""
    hears: tuple[str, ...] = ()
    """How variables of the process that starts it begin that matter to it, besides secrets."""


def services(stack: StackConfig, environment: Mapping[str, str]) -> list[Service]:
    """In the order they start. Raises Refused if one of them would."""
    auth = environment.get(AUTH)
    server = Service(
        "server",
        (*_PYTHON, "deployments.server", "--host", stack.host, "--port", str(stack.port)),
        config.server_environment(stack, environment),
        lambda since: _answers(f"{stack.url()}/health"),
    )
    worker = Service(
        "worker",
        (*_PYTHON, "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER),
        config.worker_environment(stack, environment),
        lambda since: _works(stack.url(), auth, since),
        OUTSIDE,
    )
    before = [server, *([] if stack.ray is None else [_head(stack, stack.ray, environment)]), worker]
    stores = [part for store in stack.stores() for part in ("--store", store)]
    if not stores:
        return before
    token = token_of(environment, stack.host)  # what the report server would refuse is refused before the others start
    if stack.curate and token is None:
        raise Refused(f"curate = true: curation needs a token. Set {TOKEN}, or leave curate out.")
    reports = Service(
        "reports",
        (*_PYTHON, "gsec", "serve", *stores, "--host", stack.host, "--port", str(stack.reports_port), *(["--curate"] if stack.curate else [])),
        {},
        lambda since: _answers(f"{stack.reports_url()}/health"),
        OUTSIDE,
    )
    return [*before, reports]


def _head(stack: StackConfig, ray: RayEntry, environment: Mapping[str, str]) -> Service:
    """What slices on this machine are told is what the worker is told."""
    config.check_ray(environment)
    cpus = usable_cores() if ray.cpus is None else ray.cpus
    where = ("--node-ip-address", ray.host, "--port", str(ray.port))
    told = {**config.worker_environment(stack, environment), "RAY_USAGE_STATS_ENABLED": "0"}
    return Service(
        "ray",
        (
            *(*_RAY, "start", "--head", "--block", *where, "--num-cpus", str(cpus)),
            *("--object-store-memory", str(_OBJECT_STORE), "--include-dashboard", "false"),
        ),
        told,
        lambda since: _has_nodes(ray, {**environment, **told}),
        OUTSIDE,
    )


def start(stack: StackConfig, service: Service) -> bool:
    """Start a service and wait until it answers. False if it is running already, as it should be; one that should be told other things is started again.

    Raises GsecError with the end of its log if it ends, or does not answer in time.
    """
    there = _running(stack).get(service.name)
    digest = _digest(service)
    if there is not None and there["digest"] == digest:
        process = psutil.Process(there["pid"])
        _wait(service, process, process.create_time(), log_of(stack, service.name), 0)
        return False
    if there is not None or service.name not in _records(stack):  # of which it may run nevertheless
        stop(stack, service.name)
    log = log_of(stack, service.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        before, since = output.tell(), time.time()
        environment = {**os.environ, **service.environment, MARK: _mark(stack, service.name)}
        started = subprocess.Popen(service.command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    process = psutil.Process(started.pid)
    _record(stack, service.name, {"pid": process.pid, "began": _began(process), "digest": digest, "heard": sorted(_heard(service.hears))})
    _wait(service, process, since, log, before)
    return True


def stop(stack: StackConfig, name: str) -> bool:
    """Stop a service and all that it has started, even if that has outlived it. False if there is nothing to stop."""
    family = _family(stack, name)
    # The others are ended by who has started them: a worker knows how to end its flows.
    for process in [process for process in family if _parent(process) not in family]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for lasting in left:
        with suppress(psutil.NoSuchProcess):
            lasting.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)
    _record(stack, name, None)
    return bool(family)


def started(stack: StackConfig) -> list[str]:
    """Services of which processes are running, in the order to stop them in."""
    return [name for name in reversed(NAMES) if _family(stack, name)]


def log_of(stack: StackConfig, name: str) -> Path:
    return stack.home / "logs" / f"{name}.log"


def _running(stack: StackConfig) -> dict[str, dict[str, Any]]:
    """What was started and still runs."""
    return {name: record for name, record in _records(stack).items() if _is_alive(record)}


def _is_alive(record: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(record["pid"])
        return bool(_began(process) == record["began"] and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _began(process: psutil.Process) -> str:
    """When a process began: of which boot, and ticks since that, which no setting of the clock moves. By the clock where there is no /proc."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        fields = (PROC / str(process.pid) / "stat").read_text().rpartition(")")[2].split()  # from the third on; a name in brackets may hold spaces
        return f"{boot} {fields[19]}"
    except OSError:
        return str(process.create_time())


def _family(stack: StackConfig, name: str) -> list[psutil.Process]:
    """The processes of a service."""
    mark = _mark(stack, name)
    family = {process for process in psutil.process_iter(["environ"]) if (process.info["environ"] or {}).get(MARK) == mark}
    if there := _running(stack).get(name):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(there["pid"])
            family |= {process, *process.children(recursive=True)}
    return list(family)


def _mark(stack: StackConfig, name: str) -> str:
    return f"{stack.home.resolve()}:{name}"


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.NoSuchProcess:
        return None


def _records(stack: StackConfig) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = json.loads((stack.home / "processes.json").read_text())
    except (FileNotFoundError, ValueError):  # gone, or torn by a power loss: the marks still find what runs, and it is started again
        return {}
    return found


def _record(stack: StackConfig, name: str, record: dict[str, Any] | None) -> None:
    records = {other: there for other, there in _records(stack).items() if other != name}
    if record is not None:
        records[name] = record
    path = stack.home / "processes.json"
    if records or path.exists():
        partial = path.with_name(".processes.json.partial")
        with partial.open("w") as file:
            file.write(json.dumps(records, indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def _digest(service: Service) -> str:
    """Of what it is told, and of what it hears."""
    told = [list(service.command), sorted(service.environment.items()), sorted(_heard(service.hears).items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _heard(beginnings: tuple[str, ...]) -> dict[str, str]:
    """Secrets, of which an empty one is none, and variables that begin so."""
    return {name: value for name, value in os.environ.items() if (bool(value) if name in SECRETS else name.startswith(beginnings))}


def _wait(service: Service, process: psutil.Process, since: float, log: Path, before: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        ready = service.is_ready(since)
        ended = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        if ready and not ended:
            return
        if ended or time.monotonic() > deadline:
            end = " ".join(log.read_bytes()[before:].decode(errors="replace").splitlines()[-5:])
            raise GsecError(f"{service.name} {'ended' if ended else f'did not answer in {START_SECONDS} s'}. Its log, {log}, ends: {end}")
        time.sleep(0.5)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def _works(url: str, auth: str | None, since: float) -> bool:
    """Whether the worker has given a sign of life since then. Its status alone says so for a while after its end."""
    user, _, password = (auth or "").partition(":")
    try:
        found = httpx.post(f"{url}/work_pools/{POOL}/workers/filter", json={}, timeout=5, auth=(user, password) if auth else None)
    except httpx.HTTPError:
        return False
    beats = [worker["last_heartbeat_time"] for worker in found.json() if worker["name"] == WORKER] if found.is_success else []
    return any(beat is not None and datetime.fromisoformat(beat).timestamp() > since for beat in beats)


def _has_nodes(ray: RayEntry, environment: Mapping[str, str]) -> bool:
    """Whether the cluster has this machine."""
    try:
        socket.create_connection((ray.host, ray.port), 5).close()  # asked first: Ray would try for a minute
    except OSError:
        return False
    asked = subprocess.run([*_RAY, "status", "--address", ray.address()], env=environment, capture_output=True, text=True, check=False)
    return asked.returncode == 0 and " node_" in asked.stdout


def check_secrets(stack: StackConfig) -> None:
    """Raises Refused if what runs heard a secret, or where stores are, that is not set now: it would be started again without, open to everybody perhaps."""
    lost = sorted({name for record in _running(stack).values() for name in record["heard"]} - set(_heard(OUTSIDE)))
    if lost:
        raise Refused(f"{', '.join(lost)}: processes were started with it, and now it is missing. Set it again, or run gsec down first.")


def check_ports(stack: StackConfig) -> None:
    """Raises Refused if another process than the service itself listens where it is to."""
    ports = [("server", stack.port, "port"), ("reports", stack.reports_port, "reports_port")]
    for name, port, setting in [*ports, *([] if stack.ray is None else [("ray", stack.ray.port, "ray.port")])]:
        try:
            socket.create_server((stack.host, port), family=socket.AF_INET6 if ":" in stack.host else socket.AF_INET).close()
        except OSError as error:
            if not any(_listens(process, port) for process in _family(stack, name)):
                raise Refused(
                    f"host = {stack.host}, {setting} = {port}: nothing can listen there ({error.strerror}). Stop the program that does, or choose another port."
                ) from None


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        return any(there.status == psutil.CONN_LISTEN and there.laddr.port == port for there in process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False
