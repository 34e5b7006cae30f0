"""Prefect for a command: the server of Prefect's settings, or a temporary server, which is started here so that its errors are reported at once."""

import atexit
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from gsec_core.errors import Refused, shortened

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

_STARTS = 3
"""Number of attempts to start the server: another process may take the free port first."""

_SERVER = """
import os, signal, threading

def follow():
    while os.read(0, 1):  # not by sys.stdin, which must not be read from while Python ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=follow, daemon=True).start()
from uvicorn import main
main()
"""
"""Code of the server process. It ends with its parent, however that ends, because its stdin is closed then. Ctrl-C does not reach it, so that
flows can report their end to it."""

_LEVEL = "PREFECT_SERVER_LOGGING_LEVEL"

_HTTP = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@contextmanager
def orchestrator() -> Iterator[str | None]:
    """Context manager in which flows can run, with the address of the server of Prefect's settings; None if it is a temporary server.

    Raises Refused if Prefect does not start in this environment, or its server does not answer.

    Prefect must not be imported before, so that errors of its import are reported here.
    """
    _check_http()
    try:
        from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        url = PREFECT_API_URL.value()
    except Exception as error:  # noqa: BLE001 - Prefect reads its settings, which raises errors of pydantic, TOML and the disk
        raise Refused(f"Prefect does not start: {_line(error)}. Correct this Prefect setting: a variable PREFECT_..., or a file in PREFECT_HOME.") from None
    if url is not None:
        _check_server(url)
        yield url
        return
    # A temporary server needs no heartbeats, and every flow would wait up to a second at its end for the thread that sends them. The address is
    # set so that no client of Prefect starts a server of its own.
    with temporary_settings({PREFECT_API_URL: _start(), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield None


def _check_http() -> None:
    """Raises Refused if the environment's proxies and certificates are invalid. Prefect's clients use them, even for a server on this machine."""
    import httpx

    try:
        httpx.Client().close()
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        given = [name for name in os.environ if name.upper() in _HTTP]
        raise Refused(f"no HTTP client can be made with this environment ({_line(error)}): correct or unset {', '.join(given)}.") from None


def _check_server(url: str) -> None:
    import httpx
    from prefect.client.orchestration import get_client

    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Refused(f"PREFECT_API_URL = {url}: the server does not answer ({_line(error)}). Start it, or unset the variable.") from None
    try:
        with get_client(sync_client=True) as client:
            client.api_version()
            client.raise_for_api_version_mismatch()
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            remedy = "Set PREFECT_API_KEY or PREFECT_API_AUTH_STRING to what it takes."
        else:
            remedy = "Give the address of Prefect's API there; it usually ends in /api."
        raise Refused(f"PREFECT_API_URL = {url}: the server answers {error.response.status_code}. {remedy}") from None
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise Refused(f"PREFECT_API_URL = {url}: what answers there is not Prefect's API ({_line(error)}). It usually ends in /api.") from None


def _start() -> str:
    """Start the temporary server and return its address. Prefect could start it, but waits two minutes even if the server has ended."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE

    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise Refused("PREFECT_API_URL is not set, and PREFECT_SERVER_EPHEMERAL_ENABLED = false forbids a temporary server. Set the first or unset the second.")
    server = SubprocessASGIServer()
    if server.running:
        return server.api_url
    said: str | None = "address already in use"
    with _alone():
        for _ in range(_STARTS):
            if said is not None and "address already in use" in said.lower():
                server.port = server.find_available_port()
                said = _begin(server)
    if said is None:
        return server.api_url
    raise Refused(
        f"Prefect's temporary server does not start: {_fault(said)}. Its database is prefect.db in PREFECT_HOME, or at "
        "PREFECT_API_DATABASE_CONNECTION_URL: if that is damaged, or from a newer Prefect, set PREFECT_HOME to another folder."
    )


@contextmanager
def _alone() -> Iterator[None]:
    """Context manager that waits while another command starts a server with the same PREFECT_HOME.

    Servers create and migrate the database when they start, and two that do so at the same time end with errors.
    """
    from prefect.settings import PREFECT_HOME

    lock = PREFECT_HOME.value() / "gsec.lock"
    with ExitStack() as held:
        with suppress(OSError):  # if the folder cannot be written to, the server says so; a file system without locks works too
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(lock.open("w")), fcntl.LOCK_EX)
        yield


def _begin(server: "SubprocessASGIServer") -> str | None:
    """Start the server and wait until it answers. Returns None, or the server's output if it ended or did not answer in time."""
    import httpx
    import prefect
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, get_current_settings

    command = [sys.executable, "-P", "-c", _SERVER, "--app-dir", str(prefect.__module_path__.parent), "--factory", "prefect.server.api.server:create_app"]
    command += ["--host", "127.0.0.1", "--port", str(server.port), "--log-level", "error", "--lifespan", "on"]
    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True), **marks}
    quiet = environment.get(_LEVEL) == "CRITICAL"
    if quiet:
        environment[_LEVEL] = "ERROR"  # otherwise it would end without an error message
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=environment, text=True, errors="replace", start_new_session=True, **pipes)
    server.server_process = process
    atexit.register(server.stop)
    lines: list[str] = []
    answers = threading.Event()
    reader = threading.Thread(target=_read, args=(process.stderr, lines, answers, quiet), daemon=True)
    reader.start()
    deadline = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    with httpx.Client(trust_env=False, timeout=10) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{server.api_url}/health").is_success:
                    answers.set()
                    server.running = True
                    return None
            except httpx.HTTPError:
                pass  # not ready yet
            time.sleep(0.05)
    ended = process.poll()
    server.stop()
    reader.join(5)
    return "".join(lines) or ("it did not answer in time" if ended is None else f"it ended with exit code {ended}")


def _read(stream: IO[str], lines: list[str], answers: threading.Event, quiet: bool) -> None:
    """Collect the server's output in ``lines`` until it answers. Later lines go to stderr, unless ``quiet``."""
    for line in stream:
        if not answers.is_set():
            lines.append(line)
        elif not quiet:
            sys.stderr.write(line)


def _fault(said: str) -> str:
    """The last line of the output that names an error. Lines of uvicorn after it only report its end."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if not line.startswith(("File ", "ERROR:", "Traceback", "[SQL", "(Background", "^", "~")) and ": " in line]
    return _line((named or lines)[-1])


def _line(error: object) -> str:
    text = " ".join(str(error).partition("For further information")[0].split())
    return shortened(text, 300).rstrip(".")
