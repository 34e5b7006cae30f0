"""The command in environments in which Prefect cannot start, or would use a proxy or a wrong server."""

import os
import re
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..command import GSEC
from ..pictures import picture

GIVES_UP = 1200
"""Seconds after which Prefect itself gives up here. Usually it is a tenth, which is not much more than the command takes on a busy machine."""

LIMIT = 600
"""The most seconds that the command may take."""


class Proxy:
    """A proxy that accepts connections, answers none, and counts them."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.asked = 0
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:  # closed
                return
            self.asked += 1
            connection.close()

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with closing(Proxy()) as proxy:
        yield proxy


def ingest(place: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run stage ingest with these environment variables, as from a user's shell."""
    (place / "images").mkdir()
    for number in range(4):
        picture(number).save(place / "images" / f"{number}.png")
    (place / "gsec.toml").write_text(f'source = "{place}/images"\nstore = "{place}/store"\nclusters = 2\n')
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SSL_CERT")) and not name.lower().endswith("_proxy")}
    own = {"PREFECT_HOME": str(place / "home"), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(GIVES_UP)}
    environment = {**own, **kept, **variables}
    command = [*GSEC, "stage", "ingest", "--config", str(place / "gsec.toml")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence that a refused command prints."""
    assert done.returncode == 2, f"exit {done.returncode}\n{done.stderr}"
    assert "a fault in gsec" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    return last


@pytest.mark.parametrize(
    "variables",
    [
        {"HTTP_PROXY": "http://{}", "https_proxy": "http://{}"},
        {"ALL_PROXY": "socks5h://{}", "NO_PROXY": "example.org"},
    ],
    ids=str,
)
def test_servers_on_this_machine_are_asked_without_a_proxy(proxy: Proxy, tmp_path: Path, variables: dict[str, str]) -> None:
    done = ingest(tmp_path, **{name: value.format(f"127.0.0.1:{proxy.port}") for name, value in variables.items()})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ingest .* 4 new$", done.stderr, re.MULTILINE)
    assert proxy.asked == 0


def test_no_proxy_is_extended_by_this_machine_only_if_a_proxy_is_set() -> None:
    code = "import os, flows; print(os.environ.get('NO_PROXY'), os.environ.get('no_proxy'))"
    for variables, found in (({"HTTP_PROXY": "http://x", "NO_PROXY": "a.org,127.0.0.1"}, "a.org,127.0.0.1,localhost,::1"), ({}, "None")):
        python = [str(Path(GSEC[0]).parent / "python"), "-c", code]
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        assert subprocess.check_output(python, env={**kept, **variables}, text=True).split() == [found, found]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PREFECT_LOGGING_LEVEL": "foo"}, r"Prefect does not start: .*level Input should be 'DEBUG'.*FOO.*a variable PREFECT_"),
        ({"PREFECT_API_DATABASE_TIMEOUT": "soon"}, r"Prefect does not start: .*timeout Input should be a valid number"),
        ({"ALL_PROXY": "socks4://127.0.0.1:9"}, r"no HTTP client can be made .*socks4.*correct or unset ALL_PROXY"),
        ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, r"no HTTP client can be made .*No such file.*unset SSL_CERT_FILE"),
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, r"PREFECT_API_URL = http://127.0.0.1:9/api: the server does not answer .*Start it, or unset"),
        ({"PREFECT_API_URL": "127.0.0.1/api"}, r"PREFECT_API_URL|Prefect does not start: "),
        ({"PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}, r"PREFECT_API_URL is not set, and PREFECT_SERVER_EPHEMERAL_ENABLED = false"),
        ({"PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://a:hunter2@127.0.0.1:9/x"}, r"temporary server does not start: .*Connect call failed"),
        ({"PREFECT_API_DATABASE_CONNECTION_URL": "nosuch://x"}, r"temporary server does not start: .*Can't load plugin.*PREFECT_API_DATABASE_CONNECTION_URL"),
    ],
    ids=str,
)
def test_an_environment_in_which_prefect_does_not_start_is_refused(tmp_path: Path, variables: dict[str, str], sentence: str) -> None:
    done = ingest(tmp_path, **variables)
    assert re.search(sentence, refusal(done)), done.stderr
    assert "hunter2" not in done.stderr


def test_commands_that_start_at_the_same_time_on_a_new_machine_make_its_database_one_after_the_other(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda name: ingest(tmp_path / name, PREFECT_HOME=str(tmp_path / "home")), "abc"))
    assert [one.returncode for one in done] == [0] * 3, [one.stderr for one in done]


def test_an_invalid_profiles_file_of_prefect_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "profiles.toml").write_text("active = [")
    assert "Prefect does not start: Invalid value" in refusal(ingest(tmp_path))


def test_a_prefect_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("x")
    assert "unable to open database file" in refusal(ingest(tmp_path))


def test_a_database_of_a_newer_prefect_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    with closing(sqlite3.connect(tmp_path / "home" / "prefect.db")) as database:
        database.executescript("create table alembic_version (version_num varchar(32)); insert into alembic_version values ('ffffffffffff');")
    before = (tmp_path / "home" / "prefect.db").read_bytes()
    sentence = refusal(ingest(tmp_path))
    assert "Can't locate revision identified by 'ffffffffffff'" in sentence
    assert "set PREFECT_HOME to another folder" in sentence
    assert (tmp_path / "home" / "prefect.db").read_bytes()[100:] == before[100:]


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "prefect.db").write_bytes(b"no database" * 1000)
    assert "file is not a database" in refusal(ingest(tmp_path))


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, "the server answers 404. Give the address of Prefect's API"),
        (401, "the server answers 401. Set PREFECT_API_KEY or PREFECT_API_AUTH_STRING"),
        (200, "what answers there is not Prefect's API"),
    ],
)
def test_a_server_that_is_not_prefects_or_refuses_access_is_refused(tmp_path: Path, status: int, sentence: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"{}"
            self.send_response(200 if self.path == "/health" else status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            assert sentence in refusal(ingest(tmp_path, PREFECT_API_URL=f"http://127.0.0.1:{other.server_port}"))
        finally:
            other.shutdown()
