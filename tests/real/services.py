"""Debian's PostgreSQL and Redis for a test: at free ports, with temporary data, and stopped afterwards."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import quote

import pytest

from ..command import free_port


def program(name: str) -> str:
    """The path of a program, including PostgreSQL's. If it is missing, fail under `make test-real`, and skip the test otherwise."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None)
    if found is None:
        missing = f"no {name} on this machine: run `make real-parts`"
        pytest.fail(missing) if os.environ.get("GSEC_REAL") else pytest.skip(missing)
    return found


@contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, user: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run the command in the background, in a process group of its own, which is terminated at the end and then killed."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd="/", start_new_session=True, **_as(user)
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            # With SIGTERM, PostgreSQL would wait for its clients.
            process.send_signal(signal.SIGINT if Path(command[0]).name == "postgres" else signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


@dataclass(frozen=True)
class Postgres:
    """A server with the database `prefect` and the user `prefect`, who needs the password."""

    port: int
    password: str

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://prefect:{quote(self.password, safe='')}@127.0.0.1:{self.port}/prefect"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of an empty database, for Prefect's PREFECT_API_DATABASE_CONNECTION_URL."""
    with postgres_server(folder) as server:
        yield server.url


@contextmanager
def postgres_server(folder: Path, password: str = "password") -> Iterator[Postgres]:
    folder.mkdir(parents=True, exist_ok=True)
    # Not in the test's folder, which only root may read: the server must not run as root. Also, the socket's path must be short.
    home = Path(mkdtemp(prefix="gsec-postgres-"))
    user = _somebody_else()
    if user:
        shutil.chown(home, user, user)
    server = Postgres(free_port(), password)
    log = folder / "postgres.log"
    secret = home / "password"
    secret.write_text(password)
    secret.chmod(0o644)
    options = ["--pgdata", str(home / "data"), "--username", "prefect", "--auth", "scram-sha-256", "--pwfile", str(secret), "--encoding", "UTF8", "--no-sync"]
    try:
        _run([program("initdb"), *options], log, user)
        settings = {"port": server.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": home, "fsync": "off"}
        command = [program("postgres"), "-D", str(home / "data"), *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]
        with running(command, log, user=user):
            environment = {**os.environ, "PGPASSWORD": password}
            there = ["--host", "127.0.0.1", "--port", str(server.port), "--username", "prefect"]
            wait(lambda: subprocess.run([program("pg_isready"), "-q", *there], check=False).returncode == 0, "PostgreSQL to answer", log)
            subprocess.run([program("createdb"), *there, "prefect"], env=environment, check=True)
            yield server
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def redis(folder: Path, options: Sequence[str] = ("--appendonly", "yes")) -> Iterator[int]:
    """The port of an empty Redis server. ``options`` are options of redis-server."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "redis.log"
    with running([program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *options], log):
        wait(lambda: _redis_answers(port), "Redis to answer", log)
        yield port


def wait(done: Callable[[], bool], what: str, log: Path | None = None, seconds: float = 120) -> None:
    """Wait until ``done``; after ``seconds`` raise an AssertionError with the end of the log."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}\n" + (log.read_text(errors="replace")[-4000:] if log and log.exists() else ""))
        time.sleep(0.2)


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _somebody_else() -> str | None:
    """The user for servers that root starts: the one that Debian's package made; None if the tests do not run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def _as(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def _run(command: Sequence[str], log: Path, user: str | None) -> None:
    with log.open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd="/", check=False, **_as(user))
    assert done.returncode == 0, log.read_text()
