"""The addresses at which the server may listen, and the process itself."""

import base64
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from flows.serve import server
from flows.serve.access import TOKEN
from gsec_core.errors import Refused

from ...command import GSEC, environment, wait
from .examples import SECRET, Shown, basic


@pytest.mark.parametrize(
    ("host", "token", "said"),
    [
        ("0.0.0.0", None, "only with a token"),
        ("::", None, "only with a token"),
        ("", None, "only with a token"),
        ("example.org", None, "only with a token"),
        ("127.0.0.1.example.org", None, "only with a token"),
        ("127.0.0.1", "", "it is empty"),
        ("127.0.0.1", f"{SECRET}\n", "white space"),
        ("nobody.invalid", SECRET, "cannot listen there"),
    ],
)
def test_unsafe_or_impossible_addresses_and_tokens_are_refused(
    host: str, token: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN, token)
    with pytest.raises(Refused, match=said):
        server.serve([str(tmp_path)], host, 0)


def test_a_taken_or_invalid_port_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 70_000, -1):
            with pytest.raises(Refused, match=f"--port {port}: it cannot listen there"):
                server.serve([str(tmp_path)], "127.0.0.1", port)


def test_the_process_serves_logs_no_secrets_and_ends_on_sigterm(shown: Shown, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [*GSEC, "serve", "--store", shown.store.url, "--port", "0"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env={**environment(tmp_path), TOKEN: SECRET}) as process:
        try:
            wait(lambda: "startup complete" in log.read_text(), 300, log, pause=0.2)
            url = re.findall(r"http://127\.0\.0\.1:\d+", log.read_text())[0]
            with httpx.Client(base_url=url, timeout=60) as client:
                assert client.get("/?private=1", headers={"Authorization": f"Bearer {SECRET}"}).is_success
                assert client.get("/?private=1", headers={"Authorization": basic("me", SECRET)}).is_success
                assert client.get("/?private=1", headers={"Authorization": f"Bearer {SECRET}x"}).status_code == 401
                assert client.get("/line%0Aforged%1b%5B31m").status_code == 401
                assert client.get(f"/{'x' * 5000}").status_code == 401
                assert "server" not in client.get("/health").headers
                assert client.head("/health").content == b""
            raw = asked_raw(url, b"GET /?\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert raw.split()[1] in (b"400", b"401")
        finally:
            os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    text = log.read_text()
    assert "GET / 200" in text
    assert "GET /line%0Aforged%1B%5B31m 401" in text
    assert SECRET not in text
    assert base64.b64encode(SECRET.encode()).decode()[:-4] not in text
    assert "private" not in text
    assert max(map(len, text.splitlines())) < 1000
    assert "Traceback" not in text


def asked_raw(url: str, request: bytes) -> bytes:
    """The answer to bytes that no client library would send."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))
