"""Start, find and stop the processes of a stack on this machine.

Each started process is recorded in ``HOME/processes.json`` with its start time, so that another process with the same number is not
taken for it. The process and its children have a mark in their environment, by which they are found if the parent or the record
is gone. Each service writes to ``HOME/logs/NAME.log``, whose size the server bounds (see `logs`).
"""

import hashlib
import json
import os
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

from deployments import config, logs
from deployments.config import AUTH, POOL, RAY_TOKEN, RayEntry, StackConfig
from flows.serve.access import TOKEN, token_of
from gsec_core.devices import usable_cores
from gsec_core.errors import GsecError, Refused

START_SECONDS = 180
"""A service that does not answer by then has failed to start."""

STOP_SECONDS = 30
"""A service that has not ended by then is killed."""

NAMES = ("server", "ray", "worker", "reports")
"""Services in the order in which they start. They stop in reverse order, because the end of a flow is reported to the server."""

WORKER = "gsec"
"""The worker's name."""

_PYTHON = (sys.executable, "-P", "-m")
"""Runs programs as modules of this environment, wherever its scripts are. -P keeps the current folder out of the module search path."""

_RAY = (*_PYTHON, "ray.scripts.scripts")

MARK = "GSEC_SERVICE"
"""Environment variable with the stack and the service that a process belongs to."""

SECRETS = (AUTH, "PREFECT_API_AUTH_STRING", TOKEN, RAY_TOKEN, "GSEC_CAPTIONER_KEY", "PGPASSWORD")
"""Environment variables that contain secrets."""

OUTSIDE = ("AWS_", "GOOGLE_", "AZURE_", "HF_", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CUDA_VISIBLE_DEVICES")
"""Prefixes of environment variables that determine how images, stores and models are reached."""

_OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory of a Ray node. Little is enough, because rows never pass through Ray."""

PROC = Path("/proc")


@dataclass(frozen=True)
class Service:
    """A service: how its process is started, and how to tell that it is ready."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    """Environment variables besides those of the process that starts it."""
    is_ready: Callable[[float], bool]
    """Whether the service answers; takes the start time of its process, in seconds since the epoch."""
    hears: tuple[str, ...] = ()
    """Prefixes of the inherited environment variables that affect it, besides secrets."""


def services(stack: StackConfig, environment: Mapping[str, str]) -> list[Service]:
    """The services of a stack, in the order in which they start. Raises Refused if the settings of one are invalid."""
    auth = environment.get(AUTH)
    server = Service(
        "server",
        (*_PYTHON, "deployments.server", "--host", stack.host, "--port", str(stack.port)),
        {**config.server_environment(stack, environment), logs.VARIABLE: str(stack.home.absolute() / "logs")},
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
    token = token_of(environment, stack.host)  # refuses what the report server would refuse, before the other services start
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
    """The head of the Ray cluster. Slices on this machine get the same environment as the worker."""
    config.check_ray(environment)
    cpus = usable_cores() if ray.cpus is None else ray.cpus
    where = ("--node-ip-address", ray.host, "--port", str(ray.port))
    told = {
        **config.worker_environment(stack, environment),
        "RAY_USAGE_STATS_ENABLED": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # with it, processes that Ray forks for drivers die at their start now and then
    }
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
    """Start a service and wait until it answers. Returns False if it runs already; if its command or environment has changed, it is restarted.

    Raises GsecError with the end of its log if the service ends, or does not answer in time.
    """
    there = _running(stack).get(service.name)
    digest = _digest(service)
    if there is not None and there["digest"] == digest:
        process = psutil.Process(there["pid"])
        _wait(service, process, process.create_time(), log_of(stack, service.name), 0)
        return False
    if there is not None or service.name not in _records(stack):  # without a record, it may run nevertheless
        stop(stack, service.name)
    log = log_of(stack, service.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    logs.bound(log.parent)  # now, and not while `_wait` looks for the service's first lines
    with log.open("ab") as output:
        before, since = output.tell(), time.time()
        environment = {**os.environ, **service.environment, MARK: _mark(stack, service.name)}
        started = subprocess.Popen(service.command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    process = psutil.Process(started.pid)
    _record(stack, service.name, {"pid": process.pid, "began": _began(process), "digest": digest, "heard": sorted(_heard(service.hears))})
    _wait(service, process, since, log, before)
    return True


def stop(stack: StackConfig, name: str) -> bool:
    """Stop a service and all its descendants, even those that outlived it. Returns False if there is nothing to stop."""
    family = _family(stack, name)
    # Only the topmost processes get the signal: they end their children, as a worker ends its flows.
    for process in [process for process in family if _parent(process) not in family]:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for lasting in left:
        with suppress(psutil.NoSuchProcess):
            lasting.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)
    _record(stack, name, None)
    return bool(family)


def started(stack: StackConfig) -> list[str]:
    """Names of the services with running processes, in the order in which to stop them."""
    return [name for name in reversed(NAMES) if _family(stack, name)]


def log_of(stack: StackConfig, name: str) -> Path:
    return stack.home / "logs" / f"{name}.log"


def _running(stack: StackConfig) -> dict[str, dict[str, Any]]:
    """Records of the services that are still running."""
    return {name: record for name, record in _records(stack).items() if _is_alive(record)}


def _is_alive(record: Mapping[str, Any]) -> bool:
    try:
        process = psutil.Process(record["pid"])
        return bool(_began(process) == record["began"] and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _began(process: psutil.Process) -> str:
    """Start of a process: the id of the boot, and ticks since the boot, which do not depend on the clock. Without /proc, the clock time."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        fields = (PROC / str(process.pid) / "stat").read_text().rpartition(")")[2].split()  # from the third field on; the second may contain spaces
        return f"{boot} {fields[19]}"
    except OSError:
        return str(process.create_time())


def _family(stack: StackConfig, name: str) -> list[psutil.Process]:
    """All running processes of a service, by their mark or as descendants of the recorded process."""
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
    except (FileNotFoundError, ValueError):  # missing, or damaged by a power loss: running services are found by their marks and restarted
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
    """Hash of the service's command, its environment, and the inherited variables that affect it."""
    told = [list(service.command), sorted(service.environment.items()), sorted(_heard(service.hears).items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _heard(beginnings: tuple[str, ...]) -> dict[str, str]:
    """Environment variables that are secrets and not empty, or have one of these prefixes."""
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
    """Whether the worker has sent a heartbeat since that time. Its status is no proof, because it stays online for a while after the worker's end."""
    user, _, password = (auth or "").partition(":")
    try:
        found = httpx.post(f"{url}/work_pools/{POOL}/workers/filter", json={}, timeout=5, auth=(user, password) if auth else None)
    except httpx.HTTPError:
        return False
    beats = [worker["last_heartbeat_time"] for worker in found.json() if worker["name"] == WORKER] if found.is_success else []
    return any(beat is not None and datetime.fromisoformat(beat).timestamp() > since for beat in beats)


def _has_nodes(ray: RayEntry, environment: Mapping[str, str]) -> bool:
    """Whether the Ray cluster answers and has a node."""
    try:
        socket.create_connection((ray.host, ray.port), 5).close()  # checked first, because Ray would try for a minute
    except OSError:
        return False
    asked = subprocess.run([*_RAY, "status", "--address", ray.address()], env=environment, capture_output=True, text=True, check=False)
    return asked.returncode == 0 and " node_" in asked.stdout


def check_home(stack: StackConfig, file: Path | None) -> None:
    """Raises Refused if processes of another stack file run in the stack's home, because they and their deployments would be replaced.

    The demonstration (None) is also refused the home of a stopped stack: usually --config was forgotten.
    """
    owner = stack.home / "stack"
    theirs = owner.read_text() if owner.exists() else ""
    if theirs not in ("", _name_of(file)) and started(stack):
        raise Refused(f"home = {stack.home}: the processes of {theirs} use it. Give this stack a home and ports of its own, or run gsec down first.")
    if file is None and theirs and Path(theirs).exists():
        raise Refused(
            f"home = {stack.home}: it belongs to {theirs}, whose deployments the demonstration would replace. Name that file with --config, or start "
            "the demonstration in another folder."
        )


def claim(stack: StackConfig, file: Path | None) -> None:
    """Record that the stack's home belongs to this stack file; None is the demonstration."""
    stack.home.mkdir(parents=True, exist_ok=True)
    (stack.home / "stack").write_text(_name_of(file))


def _name_of(file: Path | None) -> str:
    return "" if file is None else str(file.resolve())


def check_secrets(stack: StackConfig) -> None:
    """Raises Refused if a running service was started with a secret or a variable of `OUTSIDE` that is not set now.

    It would be restarted without it, and might then be open to anybody.
    """
    lost = sorted({name for record in _running(stack).values() for name in record["heard"]} - set(_heard(OUTSIDE)))
    if lost:
        raise Refused(f"{', '.join(lost)}: processes were started with it, and now it is missing. Set it again, or run gsec down first.")


def check_ports(stack: StackConfig) -> None:
    """Raises Refused if another process listens at the port of a service."""
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
